"""Which regions the submission host name may lead to."""

import pytest

from engine.failover.messages import Standing
from engine.failover.region_health import RegionHealth, region_health

GONE, IDLE, HEALTHY = RegionHealth


@pytest.mark.parametrize(
    ("condition", "standing", "health"),
    [
        ("up", None, HEALTHY),
        ("up", Standing.LIVE, HEALTHY),
        ("up", Standing.SUSPECT, HEALTHY),
        ("up", Standing.DEAD, GONE),  # its disk is stalled: it answers calls, and no beats
        ("up", Standing.RETURNING, IDLE),
        ("refusing", Standing.LIVE, IDLE),
        ("draining", None, IDLE),
        ("drained", Standing.LIVE, IDLE),
        ("waiting", None, IDLE),
        ("returning", None, IDLE),
        ("down", None, GONE),
        ("drained, down", Standing.DEAD, GONE),
    ],
)
def test_health(condition: str, standing: Standing | None, health: RegionHealth) -> None:
    assert region_health(condition, standing, has_gateway=True) is health
    assert region_health(condition, standing, has_gateway=False) is GONE

"""`sendfleet alerts`, `sendfleet top`, and the line of alerts in `sendfleet status`."""

import itertools
import json
from types import SimpleNamespace
from typing import Any

import pytest

from engine.cli import top
from engine.metrics.catalogue import Point
from tests.unit.cli.support import MemoryFleet, invoke

STALL = {
    "alert": "stall",
    "region": "eu",
    "where": "google",
    "severity": "critical",
    "value": 9.0,
    "limit": 1.0,
    "since_ms": 1_800_000_000_000,
    "reason": "nothing is delivered to google: 9 messages are due [of 10], 0 were put off lately",
}
CLOCK = {
    **STALL,
    "alert": "clock",
    "where": "",
    "severity": "warning",
    "reason": "the machine's clock is 60 s behind",
}


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that folds nothing."""
    monkeypatch.setenv("COLUMNS", "250")


def fleet_with(alerts: list[dict[str, Any]] | None) -> MemoryFleet:
    fleet = MemoryFleet()
    fleet.state["alerts"] = alerts
    return fleet


def test_what_fires_is_shown_the_worst_first() -> None:
    result = invoke("alerts", fleet=fleet_with([STALL, CLOCK]))
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["alert", "severity", "region", "where", "since", "what"]
    assert lines[1].split()[:6] == ["stall", "critical", "eu", "google", "2027-01-15", "08:00:00"]
    assert STALL["reason"] in lines[1]
    assert lines[2].startswith("clock")


def test_as_json() -> None:
    result = invoke("alerts", "--json", fleet=fleet_with([STALL]))
    assert json.loads(result.stdout) == [STALL]


@pytest.mark.parametrize(("alerts", "status"), [([], 0), ([CLOCK], 1)])
def test_a_script_asks_for_the_exit_status(alerts: list[dict[str, Any]], status: int) -> None:
    assert invoke("alerts", "--check", fleet=fleet_with(alerts)).exit_code == status


def test_when_nothing_is_wrong() -> None:
    assert invoke("alerts", fleet=fleet_with([])).stdout == "nothing is wrong\n"


def test_a_fleet_that_does_not_watch_itself_says_so() -> None:
    result = invoke("alerts", fleet=fleet_with(None))
    assert result.exit_code == 1
    assert "alerts.enabled" in result.stderr


def test_status_counts_what_fires() -> None:
    assert (
        "alerts: 2, 1 of them critical: stall, clock"
        in invoke("status", fleet=fleet_with([STALL, CLOCK])).stdout
    )
    for alerts in ([], None):
        assert "alerts" not in invoke("status", fleet=fleet_with(alerts)).stdout


def test_top_shows_rates_of_regions_and_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top, "FIRST_LOOK_S", 0.0)
    monkeypatch.setattr(top, "time", SimpleNamespace(monotonic=itertools.count(100.0, 2.0).__next__))
    fleet = fleet_with([STALL])
    looks = itertools.count(1)

    async def figures() -> dict[str, Any]:
        number = next(looks)
        points = [
            Point("sendfleet.region.up", (), 1),
            Point("sendfleet.messages.queued", (), 1234),
            Point("sendfleet.outcomes", ("marketing", "google", "delivered"), 3000 * number),
            Point("sendfleet.outcomes", ("transactional", "google", "delivered"), 1000 * number),
            Point("sendfleet.outcomes", ("marketing", "yahoo", "deferred"), 8 * number),
            Point("sendfleet.messages.waiting", ("marketing", "google", "ready"), 700),
            Point("sendfleet.messages.waiting", ("marketing", "google", "held"), 30),
            Point("sendfleet.messages.ready.age", ("marketing", "google"), 61),
            Point("sendfleet.sessions.open", ("google", "eu-1"), 7),
            Point("sendfleet.sessions.limit", ("google", "eu-1"), 20),
            Point("process.cpu.time", ("region",), 1.0 * number),
        ]
        regions = {"eu": points, "us": [Point("sendfleet.region.up", (), 0)]}
        return {"regions": regions, "alerts": [STALL]}

    monkeypatch.setattr(fleet, "figures", figures)
    result = invoke("top", "--once", fleet=fleet)
    assert result.exit_code == 0, result.output
    rows = {tuple(line.split()[:2]): line.split() for line in result.stdout.splitlines() if line.split()}
    assert rows["eu", "0"][:8] == ["eu", "0", "2,000", "4", "0", "0", "1,234", "50%"]
    assert "does not answer" in result.stdout
    google = ["google", "eu", "2,000", "0", "700", "30", "0", "0", "61", "s", "7/20", "0", "0"]
    assert rows["google", "eu"] == google
    assert rows["yahoo", "eu"][:4] == ["yahoo", "eu", "0", "4"]
    assert f"critical stall, eu: {STALL['reason']}" in result.stdout

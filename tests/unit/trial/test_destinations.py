"""A trial's mail goes only where somebody has said that it may."""

from pathlib import Path
from typing import Any

import pytest

from engine.config.schema import FleetConfig
from engine.trial.destinations import UnsafeTrial, destinations_of
from tests.support.region import fleet


def routed(directory: Path, *routes: tuple[list[str], list[str]]) -> FleetConfig:
    sections: dict[str, Any] = {"routes": [{"domains": d, "hosts": h} for d, h in routes]}
    return fleet(directory, 2525, **sections)


def test_destinations_are_those_that_are_routed_to_this_machine(tmp_path: Path) -> None:
    config = fleet(tmp_path, 2525)
    assert destinations_of(config, 3) == ["d0.bench.invalid", "d1.bench.invalid", "d2.bench.invalid"]


def test_named_domains_are_used_as_they_are_and_again_when_there_are_too_few(tmp_path: Path) -> None:
    config = routed(
        tmp_path,
        (["a.example"], ["127.0.0.1:2525"]),
        (["*.b.example"], ["[::1]:2525"]),
        (["far.example"], ["192.0.2.1"]),
    )
    assert destinations_of(config, 2) == ["a.example", "d0.b.example"]
    assert destinations_of(config, 4) == ["a.example", "d0.b.example", "d1.b.example", "d2.b.example"]
    assert destinations_of(routed(tmp_path, (["a.example"], ["localhost"])), 2) == ["a.example"] * 2


@pytest.mark.parametrize("hosts", [[], ["192.0.2.1"], ["127.0.0.1:2525", "mx.example.com"], ["mx.local"]])
def test_a_fleet_without_such_a_route_is_refused(tmp_path: Path, hosts: list[str]) -> None:
    with pytest.raises(UnsafeTrial, match="no route of this fleet leads to this machine only"):
        destinations_of(routed(tmp_path, (["*"], hosts)), 3)


def test_a_named_sink_is_reached_over_the_routes_that_lead_only_there(tmp_path: Path) -> None:
    config = routed(
        tmp_path,
        (["here.example"], ["127.0.0.1:2525"]),
        (["lab.example"], ["192.0.2.1:2525"]),
        (["both.example"], ["192.0.2.1:2525", "192.0.2.2:2525"]),
    )
    assert destinations_of(config, 1, sink="192.0.2.1:2525") == ["lab.example"]
    for other in ("192.0.2.1", "192.0.2.2:2525"):  # another port; not alone
        with pytest.raises(UnsafeTrial, match=r"192\.0\.2\.1:2525"):
            destinations_of(config, 1, sink=other)


def test_mail_may_leave_only_over_written_routes(tmp_path: Path) -> None:
    config = routed(tmp_path, (["lab.example"], ["192.0.2.1"]))
    assert destinations_of(config, 1, may_leave=True) == ["lab.example"]
    with pytest.raises(UnsafeTrial):
        destinations_of(routed(tmp_path, (["mx.example"], [])), 1, may_leave=True)

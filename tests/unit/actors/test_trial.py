"""A throughput trial never leaves the machine, and its report is complete."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from actors.trial import UnsafeTrial, _sums, body_of, destinations_of, lines_of, run_trial, write_plot
from engine.values.message import Receipt
from tests.support.region import fleet


def test_destinations_are_those_that_are_routed_to_this_machine(tmp_path: Path) -> None:
    config = fleet(tmp_path, 2525)
    assert destinations_of(config, 3) == ["d0.bench.invalid", "d1.bench.invalid", "d2.bench.invalid"]


@pytest.mark.parametrize("hosts", [[], ["192.0.2.1"], ["127.0.0.1:2525", "mx.example.com"]])
def test_a_fleet_without_such_a_route_is_refused(tmp_path: Path, hosts: list[str]) -> None:
    config = fleet(tmp_path, 2525, routes=[{"domains": ["*"], "hosts": hosts}])
    with pytest.raises(UnsafeTrial):
        destinations_of(config, 3)


def test_bodies_have_the_size_asked_for() -> None:
    assert len(body_of(1, 2048)) == 2048
    assert body_of(1, 2048).endswith(b"\r\n")


class CountingFleet:
    """Accepts and delivers at once."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.count = 0

    async def submit(self, batch: list[Any]) -> Receipt:
        self.count += len(batch)
        return Receipt("eu", tuple((n,) for n in range(len(batch))))

    async def snapshot(self) -> dict[str, Any]:
        counts = {"accepted": self.count, "delivered": self.count, "bounced": 0, "queued": 0}
        region = {"counts": counts, "scheduler": {"parkings": 2}, "suspensions": []}
        return {"regions": {"eu": region}}


def test_report_counts_what_was_sent_and_says_what_held_it_back(tmp_path: Path) -> None:
    client = CountingFleet(fleet(tmp_path, 2525))
    report = asyncio.run(run_trial(client, messages=450, size=300, rate=0, destinations=2))
    assert (report.accepted, report.delivered, report.refused) == (450, 450, 0)
    assert report.held_back == ["region eu: 2 waits for a source's rate, window or daily cap"]
    assert any("450" in line for line in lines_of(report))
    write_plot(report, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").read_text().count("<polyline") == 2


def test_snapshot_of_a_region_that_is_down_counts_nothing() -> None:
    assert _sums({"regions": {"eu": {"region": "eu", "error": "gone"}}})["delivered"] == 0

"""What the monitor says of changes, and to whom, while regions come and go."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from engine.alerts import monitor as module
from engine.alerts.monitor import Monitor
from engine.config.load import parse_fleet
from engine.metrics import gather
from engine.metrics.catalogue import Point
from engine.spool.errors import SpoolFailed
from tests.support.region import fleet


class Port:
    """Regions that are up unless named in `away`; `offset` is their clocks'."""

    def __init__(self) -> None:
        self.away: set[str] = set()
        self.refuse: dict[str, Exception] = {}
        self.offset = 0.0
        self.told: list[tuple[str, dict[str, Any]]] = []

    async def region_figures(self, region: str) -> list[Point]:
        if region in self.away:
            raise ConnectionError(region)
        return [Point("sendfleet.region.up", (), 1), Point("sendfleet.clock.offset", (), self.offset)]

    async def pool_figures(self, region: str) -> dict[str, list[Point]]:
        return {}

    async def source_figures(self, source: str) -> list[Point]:
        return []

    async def note_alerts(self, region: str, rows: list[tuple[int, str, dict[str, Any]]]) -> None:
        if region in self.refuse:
            raise self.refuse[region]
        self.told += [(region, fields) for _, kind, fields in rows if kind == "alert"]


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Port:
    monkeypatch.setattr(gather, "FRESH_S", 0.0)
    return Port()


def monitor_of(folder: Path, port: Port) -> Monitor:
    alerts = {"quiet": "1ms", "region": {"after": "1ms"}, "clock": {"after": "1ms"}}
    config = fleet(folder, 25, alerts=alerts).model_dump(mode="json")
    sources = [{**config["sources"][0], "name": "us-1", "region": "us", "ip": "127.0.0.90"}]
    config["sources"] += sources
    config["regions"].append({"name": "us", "number": 2})
    return Monitor(parse_fleet(config), port)


def look(monitor: Monitor, times: int = 3) -> None:
    async def run() -> None:
        for _ in range(times):
            await monitor.look()
            await asyncio.sleep(0.005)

    asyncio.run(run())


def test_an_alert_is_told_to_its_region_or_another(tmp_path: Path, port: Port) -> None:
    monitor = monitor_of(tmp_path, port)
    look(monitor)
    assert (port.told, monitor.listing()) == ([], [])
    port.away = {"us"}
    port.refuse = {"us": ConnectionError("away")}
    look(monitor)
    ((where, fields),) = port.told
    assert where == "eu"
    assert (fields["alert"], fields["region"], fields["state"]) == ("region", "us", "firing")
    assert [row["alert"] for row in monitor.listing()] == ["region"]
    port.away, port.refuse = set(), {}
    look(monitor)
    assert [(where, fields["state"]) for where, fields in port.told] == [("eu", "firing"), ("us", "resolved")]
    assert monitor.listing() == []


def test_what_nobody_takes_waits_within_a_bound(
    tmp_path: Path, port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT", 3)
    monitor = monitor_of(tmp_path, port)
    port.refuse = {"eu": TimeoutError(), "us": SpoolFailed("disk")}
    for _ in range(2):
        port.offset = 100.0
        look(monitor)
        port.offset = 0.0
        look(monitor)
    assert port.told == []
    port.refuse = {}
    look(monitor, 1)
    assert [fields["state"] for _, fields in port.told] == ["firing", "resolved", "resolved"]

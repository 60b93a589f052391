"""Fleet lets regions go on without copies, whenever the last of them can be asked, and whoever has started Fleet."""

import asyncio
from typing import Any

import pytest

from actors.fleet import FleetActor
from actors.names import region_actor
from engine.config.load import parse_fleet
from engine.config.schema import FleetConfig
from engine.region import leaving
from engine.region.leaving import Rest
from tests.support.fleets import fleet_data

PATIENCE_S = 30.0
EU, US = region_actor("eu"), region_actor("us")


class Services:
    """Two regions that wait. `fails`: actor and method, of calls that fail."""

    def __init__(self) -> None:
        self.rests = {EU: Rest(7, True, (("us", 3),)), US: Rest(7, True, (("eu", 5),))}
        self.fails: set[tuple[str, str]] = set()
        self.calls: list[tuple[str, str]] = []

    async def ensure_region(self, region: str) -> None: ...

    async def ensure_source(self, source: str, region: str) -> None: ...

    async def ensure_gateway(self, region: str) -> None: ...

    async def end(self, actor: str) -> None: ...

    async def call(self, actor: str, method: str, *args: Any, timeout_s: float) -> Any:
        if method in ("rest", "drop_copies", "begin_alone"):
            self.calls.append((actor, method))
            await asyncio.sleep(0)
            if (actor, method) in self.fails:
                raise ConnectionError(f"{actor} does not answer")
        rest = self.rests.get(actor, Rest())
        if method == "rest":
            return rest
        if method == "drop_copies":
            self.rests[actor] = Rest(rest.number, True)
        if method == "begin_alone":
            self.rests[actor] = Rest(0, True)
        return 1


def config() -> FleetConfig:
    first = fleet_data()["sources"][0]
    return parse_fleet(
        fleet_data(
            regions=[{"name": "eu", "number": 1}, {"name": "us", "number": 2}],
            sources=[first, {**first, "name": "us-1", "region": "us", "ip": "127.0.0.12"}],
            alerts={"enabled": False},
        )
    )


@pytest.mark.parametrize("failure", [(US, "rest"), (EU, "drop_copies"), (US, "begin_alone")])
def test_it_tries_until_no_region_waits(failure: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a restart of Fleet: nobody calls its `start`."""
    monkeypatch.setattr(leaving, "RETRY_S", 0.0)

    async def run() -> None:
        services = Services()
        services.fails.add(failure)
        fleet = FleetActor(config().model_dump_json(), services)
        async with asyncio.timeout(PATIENCE_S):
            while services.calls.count(failure) < 3:
                await asyncio.sleep(0)
            assert services.rests[failure[0]].number == 7
            if failure[1] != "begin_alone":  # nobody sends before all have dropped their copies
                assert {method for _, method in services.calls}.isdisjoint({"begin_alone"})
            services.fails.clear()
            while any(rest.number for rest in services.rests.values()):
                await asyncio.sleep(0)
            await fleet._leave
        fleet._watch.cancel()

    asyncio.run(run())


def test_its_snapshot_says_why_regions_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "RETRY_S", 0.0)

    async def run() -> None:
        services = Services()
        services.rests[US] = Rest(8, True)
        fleet = FleetActor(config().model_dump_json(), services)
        async with asyncio.timeout(PATIENCE_S):
            while services.calls.count((US, "rest")) < 2:
                await asyncio.sleep(0)
            assert "not stopped together" in str((await fleet.snapshot())["without_copies"])
            services.rests[US] = Rest(7, True)
            await fleet._leave
        assert (await fleet.snapshot())["without_copies"] == ""
        fleet._watch.cancel()

    asyncio.run(run())

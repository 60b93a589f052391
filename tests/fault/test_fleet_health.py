"""How Fleet sees its regions for the submission host name: those that answer calls and yet take no mail."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from actors.fleet import FleetActor
from actors.names import gateway_actor, region_actor
from engine.config.load import parse_fleet
from engine.config.schema import FleetConfig
from engine.failover.messages import Beat, BeatReply
from engine.failover.region_health import RegionHealth
from engine.region.leaving import Rest
from tests.support.fleets import fleet_data

GONE, IDLE, HEALTHY = RegionHealth
PATIENCE_S = 60.0


class Services:
    """Two regions, and whatever else they have, as the test wants them."""

    def __init__(self) -> None:
        self.down: set[str] = set()  # actors that do not answer
        self.stalled: set[str] = set()  # regions that answer no beat
        self.conditions: dict[str, str] = {}
        self.may_start = asyncio.Event()  # before, no ping is answered
        self.may_start.set()

    async def ensure_region(self, region: str) -> None: ...

    async def ensure_source(self, source: str, region: str) -> None: ...

    async def ensure_gateway(self, region: str) -> None: ...

    async def call(self, actor: str, method: str, *args: Any, timeout_s: float) -> Any:
        if method == "ping":
            await self.may_start.wait()
        if actor in self.down:
            raise ConnectionError(f"{actor} is away")
        if method == "condition":
            return self.conditions.get(actor, "up")
        if method == "beat":
            return None if actor in self.stalled else beaten(args[0])
        if method == "rest":
            return Rest()
        return {} if method == "snapshot" else 1


def beaten(beat: Beat) -> BeatReply:
    """What a region answers that obeys."""
    now = time.monotonic_ns()
    return BeatReply(beat.fleet, 1, now, beat.epoch, beat.epoch > 0, (), unbroken=True, fresh=False)


def fleet_of(**sections: Any) -> FleetConfig:
    source = fleet_data()["sources"][0]
    return parse_fleet(
        {
            "regions": [{"name": "eu", "number": 1}, {"name": "us", "number": 2}],
            "sources": [source, source | {"name": "us-1", "region": "us", "ip": "127.0.0.12"}],
            "alerts": {"enabled": False},
            **sections,
        }
    )


async def until(actor: FleetActor, **expected: RegionHealth) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while actor.regions_health() != expected:
            await asyncio.sleep(0.02)


def run(config: FleetConfig, test: Callable[[FleetActor, Services], Any]) -> None:
    async def go() -> None:
        services = Services()
        await test(FleetActor(config.model_dump_json(), services), services)

    asyncio.run(go())


def test_a_region_that_fleet_calls_dead_is_not_healthy_though_it_answers() -> None:
    async def test(actor: FleetActor, services: Services) -> None:
        assert actor.regions_health() is None
        assert {row["standing"] for row in actor._standings().values()} == {"unknown"}
        await until(actor, eu=HEALTHY, us=HEALTHY)
        services.stalled = {region_actor("eu")}
        await until(actor, eu=GONE, us=HEALTHY)
        services.conditions = {region_actor("us"): "refusing"}  # it has no standby any more
        await until(actor, eu=GONE, us=IDLE)
        services.stalled, services.conditions = set(), {}
        await until(actor, eu=HEALTHY, us=HEALTHY)

    run(fleet_of(fleet={"replicas": 1}), test)


WITH_GATEWAYS = {
    "tokens": {"keys": [{"id": 1, "file": "token.key"}]},
    "ingress": {"mail": {"eu": "127.0.0.1:2525"}},
    "metrics": {"listen": {"us": "127.0.0.1:9464"}},
}


def test_a_region_whose_gateway_for_mail_is_dead_is_not_healthy() -> None:
    async def test(actor: FleetActor, services: Services) -> None:
        await until(actor, eu=HEALTHY, us=HEALTHY)
        services.down = {gateway_actor("eu"), gateway_actor("us")}  # that of us only shows figures
        await until(actor, eu=GONE, us=HEALTHY)
        services.down = set()
        await until(actor, eu=HEALTHY, us=HEALTHY)

    run(fleet_of(**WITH_GATEWAYS), test)


def test_what_is_being_started_is_not_down() -> None:
    """The records of before stay as they are while the regions come up, one after the other."""

    async def test(actor: FleetActor, services: Services) -> None:
        services.may_start.clear()
        services.down = {region_actor("us"), gateway_actor("eu")}
        starting = asyncio.create_task(actor.start())
        async with asyncio.timeout(PATIENCE_S):
            while (await actor.health()).get("us") != "down":
                await asyncio.sleep(0.02)
        assert actor.regions_health() is None
        services.down = set()
        services.may_start.set()
        await starting
        assert actor.regions_health() == {"eu": HEALTHY, "us": HEALTHY}
        services.may_start.clear()
        services.down = {region_actor("us")}
        again = asyncio.create_task(actor.start())  # an `up` because something is wrong
        await until(actor, eu=HEALTHY, us=GONE)
        again.cancel()
        await asyncio.gather(again, return_exceptions=True)

    run(fleet_of(**WITH_GATEWAYS), test)


def test_a_start_that_fails_hides_nothing() -> None:
    async def test(actor: FleetActor, services: Services) -> None:
        services.down = {region_actor("us")}
        with pytest.raises(ConnectionError):
            await actor.start()
        await until(actor, eu=HEALTHY, us=GONE)

    run(fleet_of(), test)

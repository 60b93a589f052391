"""Fleet ends sources and gateways that live and answer nothing, and nobody else. Without Ray."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from actors import fleet
from actors.fleet import FleetActor
from actors.head_calls import HeadSilent
from actors.names import gateway_actor, region_actor, source_actor
from actors.silence import HUNG_PINGS, STARTING_PINGS
from engine.config.load import parse_fleet
from tests.support.fleets import fleet_data

PATIENCE_S = 30.0
SOURCE, GATEWAY, REGION = source_actor("eu-1"), gateway_actor("eu"), region_actor("eu")


class Services:
    """What Ray would do. `fails`: how actors fail; an actor that is ended answers again."""

    def __init__(self) -> None:
        self.fails: dict[str, Exception] = {}
        self.pings: dict[str, int] = {SOURCE: 0, GATEWAY: 0, REGION: 0}
        self.ended: list[tuple[str, int]] = []  # with how many pings it had
        self.ensured: list[str] = []

    async def ensure_region(self, region: str) -> None:
        self.ensured.append(region_actor(region))

    async def ensure_source(self, source: str, region: str) -> None:
        self.ensured.append(source_actor(source))

    async def ensure_gateway(self, region: str) -> None:
        self.ensured.append(gateway_actor(region))

    async def call(self, actor: str, method: str, *args: Any, timeout_s: float) -> Any:
        self.pings[actor] += 1
        if actor in self.fails:
            raise self.fails[actor]
        return "up" if method == "condition" else 1

    async def end(self, actor: str) -> None:
        self.ended.append((actor, self.pings[actor]))
        self.pings[actor] = 0
        self.fails.pop(actor, None)

    async def more(self, actor: str, pings: int) -> None:
        """Returns after so many more."""
        wanted = self.pings[actor] + pings
        while self.pings[actor] < wanted:
            await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "WATCH_S", 0.0)


def go(scenario: Callable[[Services, FleetActor], Awaitable[None]], services: Services) -> None:
    settings = parse_fleet(
        fleet_data() | {"alerts": {"enabled": False}, "metrics": {"listen": {"eu": "127.0.0.1:9464"}}}
    )

    async def run() -> None:
        actor = FleetActor(settings.model_dump_json(), services)
        async with asyncio.timeout(PATIENCE_S):
            await scenario(services, actor)
        actor._watch.cancel()

    asyncio.run(run())


@pytest.mark.parametrize("actor", [SOURCE, GATEWAY])
def test_one_that_answered_and_hangs_is_ended_once(actor: str) -> None:
    async def scenario(services: Services, _: FleetActor) -> None:
        await services.more(actor, 3)
        assert services.ended == []
        services.pings[actor] = 0
        services.fails[actor] = TimeoutError("no answer")
        while not services.ended:
            await asyncio.sleep(0)
        assert services.ended == [(actor, HUNG_PINGS)]
        await services.more(actor, 2 * HUNG_PINGS)
        assert len(services.ended) == 1

    go(scenario, Services())


def test_one_that_is_silent_from_the_first_has_time_to_start() -> None:
    services = Services()
    services.fails[SOURCE] = TimeoutError("no answer")

    async def scenario(services: Services, _: FleetActor) -> None:
        while not services.ended:
            await asyncio.sleep(0)
        assert services.ended == [(SOURCE, STARTING_PINGS)]

    go(scenario, services)


@pytest.mark.parametrize("error", [ConnectionError("died"), HeadSilent("no answer"), RuntimeError("raised")])
def test_an_error_is_no_silence(error: Exception) -> None:
    """Who is dead is made again; without Ray's head nobody has been asked."""

    async def scenario(services: Services, _: FleetActor) -> None:
        await services.more(SOURCE, 2)
        services.fails[SOURCE] = error
        await services.more(SOURCE, STARTING_PINGS + 1)
        assert services.ended == []
        assert SOURCE in services.ensured

    go(scenario, Services())


def test_one_that_dies_and_is_made_again_has_time_to_start() -> None:
    async def scenario(services: Services, _: FleetActor) -> None:
        await services.more(SOURCE, 2)
        services.fails[SOURCE] = ConnectionError("died")
        await services.more(SOURCE, 2)
        services.fails[SOURCE] = TimeoutError("starts")
        await services.more(SOURCE, HUNG_PINGS + 2)
        assert services.ended == []

    go(scenario, Services())


def test_nobody_is_ended_while_its_whole_node_is_silent() -> None:
    async def scenario(services: Services, _: FleetActor) -> None:
        await services.more(SOURCE, 2)
        services.fails = {name: TimeoutError("no answer") for name in (SOURCE, GATEWAY, REGION)}
        await services.more(SOURCE, STARTING_PINGS + 2)
        assert services.ended == []
        del services.fails[REGION]
        while len(services.ended) < 2:
            await asyncio.sleep(0)
        assert {actor for actor, _ in services.ended} == {SOURCE, GATEWAY}

    go(scenario, Services())


def test_one_that_does_not_end_is_ended_again() -> None:
    async def scenario(services: Services, _: FleetActor) -> None:
        await services.more(SOURCE, 2)
        services.fails[SOURCE] = TimeoutError("no answer")
        while not services.ended:
            await asyncio.sleep(0)
        services.fails[SOURCE] = TimeoutError("no answer")
        while len(services.ended) < 2:
            await asyncio.sleep(0)
        assert services.ended[1] == (SOURCE, HUNG_PINGS)

    go(scenario, Services())

"""What Fleet's actor does with the answers to its beats. Without Ray."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from actors import fleet
from actors.fleet import FleetActor
from engine.failover.messages import Beat, BeatReply, Behind
from tests.support.ray_fleet import two_regions

PATIENCE_S = 30.0
LATER = 1 << 62  # than any number of a Fleet that starts now


class Regions:
    """They answer Fleet's beats. `newest`: the number of another Fleet, which they obey."""

    def __init__(self) -> None:
        self.newest = 0
        self.numbers: list[int] = []

    async def call(self, actor: str, method: str, *args: Any, timeout_s: float) -> Any:
        if method != "beat":
            raise TimeoutError("no answer")
        (beat,) = args
        assert isinstance(beat, Beat)
        self.numbers.append(beat.fleet)
        if self.newest > beat.fleet:
            return Behind(beat.fleet, self.newest, 7)
        return BeatReply(beat.fleet, 1, beat.number, 5, True, (), True, False)

    async def ensure(self, *_: object) -> None:
        raise ConnectionError("no head")

    ensure_region = ensure_source = ensure_gateway = end = ensure


async def more(regions: Regions) -> None:
    """Both have been beaten again."""
    wanted = len(regions.numbers) + 4
    async with asyncio.timeout(PATIENCE_S):
        while len(regions.numbers) < wanted:
            await asyncio.sleep(0)


def test_a_fleet_whose_clock_was_set_back_is_obeyed_and_ends_when_another_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(fleet.os, "_exit", ended.append)
    monkeypatch.setattr(fleet, "BEAT_TICK_S", 0.0)
    config = two_regions(tmp_path, 1, fleet={"replicas": 1}, alerts={"enabled": False})

    async def run() -> None:
        regions = Regions()
        regions.newest = LATER
        actor = FleetActor(config.model_dump_json(), regions)  # type: ignore[arg-type]
        await more(regions)
        await more(regions)
        assert regions.numbers[0] < LATER < regions.numbers[-1]
        assert ended == []
        regions.newest = regions.numbers[-1] + 1
        async with asyncio.timeout(PATIENCE_S):
            while not ended:
                await asyncio.sleep(0)
        said = len(regions.numbers)
        await asyncio.sleep(0)
        assert len(regions.numbers) == said
        actor._watch.cancel()

    asyncio.run(run())
    assert ended == [1]

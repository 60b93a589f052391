import asyncio

import pytest

from engine.routing.cache import ExpiringCache
from tests.support.clock import ManualClock


def build(limit: int = 10) -> tuple[ExpiringCache[str], ManualClock, list[str]]:
    loads: list[str] = []

    async def load(key: str) -> tuple[str, float]:
        loads.append(key)
        await asyncio.sleep(0)
        if key == "bad":
            raise LookupError(key)
        return key.upper(), 10.0

    clock = ManualClock()
    return ExpiringCache(limit=limit, clock=clock, loader=load), clock, loads


def test_a_value_is_kept_until_it_expires() -> None:
    async def run() -> None:
        cache, clock, loads = build()
        assert cache.get("a") is None
        assert await cache.fetch("a") == "A"
        clock.advance(9.99)
        assert cache.get("a") == "A"
        assert await cache.fetch("a") == "A"
        clock.advance(0.02)
        assert cache.get("a") is None
        await cache.fetch("a")
        assert loads == ["a", "a"]

    asyncio.run(run())


def test_a_wall_clock_step_expires_nothing() -> None:
    async def run() -> None:
        cache, clock, _ = build()
        await cache.fetch("a")
        clock.step_wall(10_000)
        assert cache.get("a") == "A"

    asyncio.run(run())


def test_the_least_recently_used_goes_first() -> None:
    async def run() -> None:
        cache, _, _ = build(limit=2)
        await cache.fetch("a")
        await cache.fetch("b")
        cache.get("a")
        await cache.fetch("c")
        assert (cache.get("a"), cache.get("b"), cache.get("c")) == ("A", None, "C")
        assert len(cache) == 2

    asyncio.run(run())


def test_one_load_for_many_waiters_and_a_cancelled_one_harms_nobody() -> None:
    async def run() -> None:
        cache, _, loads = build()
        waiters = [asyncio.ensure_future(cache.fetch("a")) for _ in range(5)]
        await asyncio.sleep(0)
        waiters[0].cancel()
        assert await asyncio.gather(*waiters[1:]) == ["A"] * 4
        assert loads == ["a"]

    asyncio.run(run())


def test_a_failed_load_reaches_its_waiters_and_is_not_kept() -> None:
    async def run() -> None:
        cache, _, loads = build()
        for _ in range(2):
            with pytest.raises(LookupError):
                await cache.fetch("bad")
        assert loads == ["bad", "bad"]
        assert len(cache) == 0

    asyncio.run(run())

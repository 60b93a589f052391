"""A region without its lease says nothing about messages that another may own."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from engine.region import routing
from engine.region.ports import RegionAway
from engine.region.region import Region
from engine.region.routing import Routing
from engine.routing.route import Failure
from engine.values.reply import Reply


class Cover:
    """Only its lease."""

    has_lease = False

    def may_dispatch(self) -> bool:
        return self.has_lease


class Cancelling:
    async def cancel(self, ids: Sequence[int]) -> int:
        return len(ids)


class Expiry:
    looks = 0

    def tick(self, now_ms: int, now_ns: int) -> None:
        self.looks += 1


def region_with(cover: Cover | None, expiry: Expiry | None = None) -> Any:
    region: Any = Region.__new__(Region)
    region.name = "eu"
    idle = SimpleNamespace(new_day=lambda now_ms: None, tick=lambda: None)
    region.parts = SimpleNamespace(
        has_lease=lambda: cover is None or cover.may_dispatch(),
        cancelling=Cancelling(),
        expiry=expiry,
        sites=idle,
        windows=idle,
    )
    region._clock = SimpleNamespace(wall_ms=lambda: 1, monotonic_ns=lambda: 1)
    region._sweep = lambda: None
    return region


def test_nothing_is_cancelled_that_another_may_own() -> None:
    cover = Cover()
    region = region_with(cover)
    with pytest.raises(RegionAway, match="no lease"):
        asyncio.run(region.cancel([1, 2]))
    cover.has_lease = True
    assert asyncio.run(region.cancel([1, 2])) == 2
    assert asyncio.run(region_with(None).cancel([1, 2])) == 2


@pytest.mark.parametrize("has_lease", [True, False])
def test_nothing_is_given_up_as_expired_that_another_may_own(has_lease: bool) -> None:
    cover, expiry = Cover(), Expiry()
    cover.has_lease = has_lease

    async def run() -> None:
        task = asyncio.create_task(region_with(cover, expiry)._tick())
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(run())
    assert expiry.looks == int(has_lease)


def test_mail_without_a_route_waits_for_the_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "AWAY_S", 0)
    cover = Cover()
    waiting = [b"key"]
    settled: list[bytes] = []

    async def settle_keys(keys: list[bytes], *about: object) -> None:
        settled.extend(keys)

    def take(domain: str, failure: Failure, limit: int) -> list[bytes]:
        taken, waiting[:] = waiting[:], []
        return taken

    async def route(domain: str) -> Failure:
        return Failure("bounced", Reply(550, "5.1.2", "no such domain"))

    async def run() -> None:
        tasks: list[asyncio.Task[None]] = []
        parts: Any = {
            "router": SimpleNamespace(cached=lambda domain: None, route=route),
            "windows": SimpleNamespace(take_unroutable=take),
            "enforcement": None,
            "outcomes": SimpleNamespace(settle_keys=settle_keys),
        }
        one = Routing(
            **parts,
            has_lease=cover.may_dispatch,
            spawn=lambda work: tasks.append(asyncio.create_task(work)),
        )
        one.want("example.org")
        for _ in range(5):
            await asyncio.sleep(0)
        assert waiting
        assert not settled
        cover.has_lease = True
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert settled == [b"key"]

"""After how long a silence a client turns to another region, on a clock that the test owns (docs/failover.md)."""

import asyncio
import time
from typing import Any

import pytest

from tests.support.virtual_time import run_in_virtual_time
from tests.unit.actors.test_covered_submit import RECEIPT, REGIONS, Region, client_of

KEY = bytes(16)


class Timed(Region):
    """Notes when it was asked, in seconds."""

    def __init__(self, *answers: str) -> None:
        super().__init__(*answers)
        self.asked_at: list[float] = []

    async def call(self, *args: Any, timeout_s: float) -> bytes:
        self.asked_at.append(time.monotonic())
        return await super().call(*args, timeout_s=timeout_s)


def fleet_with(first: str, others: str = "accepts") -> tuple[Any, list[Timed]]:
    """A client, and the regions in the order in which it asks them for `KEY`."""
    order = client_of(**{name: Region("accepts") for name in REGIONS})._regions.ranked(KEY, ())
    regions = {name: Timed(first if name == order[0] else others) for name in order}
    return client_of(**regions), [regions[name] for name in order]


async def submit(client: Any) -> bytes:
    return bytes(await client._submit_covered(KEY, b"header", b"blob", (), is_lasting=True))


@pytest.mark.parametrize(
    ("usual_s", "silence_s"), [(0.0, 0.3), (0.05, 0.3), (0.2, 0.8), (0.45, 1.8), (0.9, 2.0), (60.0, 2.0)]
)
def test_another_region_is_asked_after_a_silence_that_follows_what_is_usual(
    usual_s: float, silence_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def go() -> None:
        client, (first, second, third) = fleet_with("silent")
        client._usual_s = usual_s
        assert await submit(client) == RECEIPT
        await client.end()
        assert first.asked_at == [0.0]
        assert second.asked_at == [pytest.approx(silence_s)]
        assert third.asked_at == []

    run_in_virtual_time(go(), monkeypatch)


def test_a_refusal_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        client, (_, second, _) = fleet_with("away")
        assert await submit(client) == RECEIPT
        await client.end()
        assert second.asked_at == [0.0]

    run_in_virtual_time(go(), monkeypatch)


@pytest.mark.parametrize(("after_s", "is_quiet"), [(0.04, False), (0.06, True)])
def test_what_comes_next_goes_elsewhere_sooner(
    after_s: float, is_quiet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def go() -> None:
        client, (first, second, _) = fleet_with("silent")
        earlier = asyncio.create_task(submit(client))
        await asyncio.sleep(after_s)
        later = asyncio.create_task(submit(client))
        assert await later == await earlier == RECEIPT
        await client.end()
        assert len(first.asked_at) == (1 if is_quiet else 2)
        assert second.asked_at[0] == pytest.approx(after_s if is_quiet else 0.3)

    run_in_virtual_time(go(), monkeypatch)


def test_who_asks_for_a_region_gets_it_although_it_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is passed over when it is silent, as others are asked then."""

    async def go() -> None:
        client, (first, second, third) = fleet_with("silent", "silent")
        name = client._regions.ranked(KEY, ())[0]
        for at_s in (0.0, 0.2, 0.35):
            calls = asyncio.create_task(client._submit_covered(KEY, b"header", b"blob", (name,)))
            await asyncio.sleep({0.0: 0.2, 0.2: 0.15, 0.35: 0.0}[at_s])
            tasks.append(calls)
        await asyncio.sleep(0.0)
        assert first.asked_at == [0.0, 0.2]
        assert second.asked_at + third.asked_at == [pytest.approx(0.3), pytest.approx(0.35)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await client.end()

    tasks: list[asyncio.Task[bytes]] = []
    run_in_virtual_time(go(), monkeypatch)

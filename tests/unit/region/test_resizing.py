"""The steps by which a source goes from one process of a pool to another, and what none of them may skip.

The processes are scripted: what a real one answers is in tests/unit/delivery/test_tenure.py, both together are in
tests/e2e/test_shards.py.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from engine.config.load import parse_fleet
from engine.delivery.wire import Assignment, Holding, decode_assignment, encode_holding
from engine.providers.profiles import load_profiles
from engine.region import resizing
from engine.region.feeds import PoolFeed, Shard
from engine.region.resizing import Resizer
from engine.region.sites import Counts, Sites
from native.scheduler import Scheduler
from tests.support.clock import ManualClock
from tests.support.decisions import decisions, due_keys, packed
from tests.support.fleets import fleet_data

S = 1_000_000_000


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resizing, "STEP_S", 0)


class Process:
    """Answers `assign` with `holding`, and keeps what it was told."""

    def __init__(self) -> None:
        self.holding = Holding()
        self.told: list[Assignment] = []
        self.error: Exception | None = None
        self.stopped = 0

    async def assign(self, assignment: bytes) -> bytes:
        if self.error is not None:
            raise self.error
        self.told.append(decode_assignment(assignment))
        return encode_holding(self.holding)

    async def load(self) -> tuple[int, int]:
        return 0, 0

    async def resume(self, epoch: int) -> bytes:
        raise NotImplementedError

    async def deliver(self, header: bytes, entries: bytes) -> None:
        raise NotImplementedError

    async def acknowledge(self, sequence: int) -> None:
        raise NotImplementedError

    async def stop(self, deadline_s: float) -> None:
        if self.error is not None:
            raise self.error
        self.stopped += 1


class Pool:
    """One pool with four sources at one site, and a resizer; a step at a time."""

    def __init__(self, processes: int = 1, **profile: Any) -> None:
        base = fleet_data()["sources"][0]
        sources = [base | {"name": f"eu-{n}", "ip": f"127.0.0.{20 + n}"} for n in range(4)]
        providers = {"default": {"rate": "1/10s", **profile}}
        config = parse_fleet(fleet_data(sources=sources, providers=providers))
        self.clock = ManualClock()
        self.scheduler = Scheduler(seed=1, horizon_ns=0)
        self.sites = Sites(
            config=config, region="eu", profiles=load_profiles(config.providers), scheduler=self.scheduler
        )
        self.site = self.sites.open(
            "mx.example.net", "default", now_ns=self.clock.monotonic_ns(), counts=Counts(1), terms={}
        )
        self.resizer = Resizer(
            scheduler=self.scheduler,
            sites=self.sites,
            clock=self.clock,
            epoch=7,
            most=4,
            busy=0.8,
            spawn=lambda coroutine: asyncio.get_running_loop().create_task(coroutine),
        )
        self.feed = PoolFeed(self.site.pool, "default", self.sites.sources)
        self.processes: list[Process] = []
        for _ in range(processes):
            self.add()
        self.feed.of = processes

    def add(self) -> Process:
        process = Process()
        index = len(self.processes)
        self.processes.append(process)
        if index:
            self.feed.shards.append(Shard("default", index))
        self.feed.shards[index].port = process
        return process

    def take(self, after_s: float = 60.0) -> list[int]:
        """The sources of what the scheduler hands out now."""
        self.clock.advance(after_s)
        return [
            d.source for d in decisions(self.scheduler.take(self.site.pool, self.clock.monotonic_ns(), 100))
        ]

    def fill(self, first: int, count: int) -> None:
        flow = self.scheduler.flow(self.site.number, 1, 0, 0)
        self.scheduler.add(flow, due_keys(range(first, first + count)))

    async def step(self) -> bool:
        return await self.resizer._step(self.feed)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def test_a_source_stays_held_until_its_old_process_has_nothing_of_it() -> None:
    async def go() -> None:
        pool = Pool(2)
        old, new = pool.processes
        assert await pool.step()
        pool.resizer._move(pool.feed, {0: 0, 1: 0, 2: 1, 3: 1})
        pool.fill(1, 50)
        old.holding = Holding(left=(2, 3))
        assert not await pool.step()
        assert old.told[-1].sources == (0, 1)
        assert set(pool.take()) == {0, 1}
        old.holding = Holding(left=(3,))
        new.error = ConnectionError("away")
        for _ in range(3):
            await pool.step()  # 2 is free and becomes the other's, which cannot be told yet
        assert set(pool.take()) == {0, 1}
        new.error = None
        await pool.step()
        assert new.told[-1].sources == (2,)
        assert set(pool.take()) == {0, 1, 2}
        old.holding = Holding()
        for _ in range(3):
            await pool.step()
        assert new.told[-1].sources == (2, 3)
        assert set(pool.take()) == {0, 1, 2, 3}
        assert await pool.step()

    run(go)


def test_a_source_with_messages_outstanding_does_not_move_whatever_its_process_says() -> None:
    """The batch may still be on its way to the process."""

    async def go() -> None:
        pool = Pool(2)
        await pool.step()
        pool.fill(1, 4)
        assert sorted(pool.take()) == [0, 1, 2, 3]
        pool.resizer._move(pool.feed, {0: 0, 1: 0, 2: 0, 3: 1})
        for _ in range(3):
            assert not await pool.step()
        assert pool.feed.owners[3] == 0
        pool.scheduler.settle(packed([1, 2, 3, 4]))
        for _ in range(3):
            await pool.step()
        assert pool.feed.owners[3] == 1

    run(go)


def test_a_process_that_does_not_answer_keeps_its_sources_held() -> None:
    async def go() -> None:
        pool = Pool(2)
        await pool.step()
        pool.resizer._move(pool.feed, {0: 1, 1: 0, 2: 0, 3: 0})
        pool.processes[0].error = ConnectionError("away")
        for _ in range(3):
            assert not await pool.step()
        assert pool.feed.owners[0] == 0
        pool.feed.shards[0].ended()  # it was away because it is dead: nobody has sessions
        await pool.step()
        assert pool.feed.owners[0] == 1

    run(go)


def test_the_pace_of_a_source_goes_along() -> None:
    async def go() -> None:
        pool = Pool(2)
        pool.take()
        now_ns = pool.clock.monotonic_ns()
        pool.resizer._move(pool.feed, {0: 1, 1: 0, 2: 0, 3: 0})
        pool.processes[0].holding = Holding(paces=((0, "mx.example.net", now_ns + 9 * S), (0, "gone", 1)))
        for _ in range(4):
            await pool.step()
        pool.fill(1, 100)
        assert 0 not in pool.take(8.0)
        assert 0 in pool.take(2.0)

    run(go)


def test_nobody_new_starts_before_the_others_are_down_to_their_parts() -> None:
    async def go() -> None:
        pool = Pool(max_connections=2, max_connections_total=4)
        [first] = pool.processes
        first.holding = Holding(is_over=True)
        growing = asyncio.create_task(pool.resizer._grow(pool.feed, {0: 0, 1: 0, 2: 1, 3: 1}))
        for _ in range(20):
            await asyncio.sleep(0)
        assert (first.told[-1].shard, first.told[-1].of) == (0, 2)
        assert len(pool.feed.shards) == 1
        first.holding = Holding()
        async with asyncio.timeout(60):
            while len(pool.feed.shards) == 1:
                await asyncio.sleep(0)
        assert pool.feed.wake.is_set()  # whoever feeds starts it
        second = Process()
        pool.feed.shards[1].port = second
        async with asyncio.timeout(60):
            await growing
        assert (second.told[-1].sources, second.told[-1].shard, second.told[-1].of) == ((2, 3), 1, 2)

    run(go)


def test_the_parts_grow_only_after_the_last_one_has_ended() -> None:
    async def go() -> None:
        pool = Pool(2)
        first, second = pool.processes
        pool.resizer.adopt(pool.feed, {0: frozenset({0, 1}), 1: frozenset({2, 3})})
        second.error = TimeoutError("busy")
        shrinking = asyncio.create_task(pool.resizer._shrink(pool.feed, dict.fromkeys(range(4), 0)))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not shrinking.done()  # it cannot be told to let go
        second.error = None
        async with asyncio.timeout(60):
            await shrinking
        assert second.told[-1].sources == ()
        assert second.stopped == 1
        assert len(pool.feed.shards) == 1
        divisions = [(told.sources, told.of) for told in first.told]
        assert divisions[-1] == ((0, 1, 2, 3), 1)
        assert all(of == 2 for _, of in divisions[:-1])

    run(go)


def test_after_a_restart_what_nobody_or_two_claim_is_held_until_all_have_nothing_of_it() -> None:
    async def go() -> None:
        pool = Pool(2)
        pool.fill(1, 100)
        pool.resizer.adopt(pool.feed, {0: frozenset({0, 1}), 1: frozenset({1, 2})})
        assert set(pool.take()) == {0, 2}
        pool.processes[1].holding = Holding(left=(1, 3))
        for _ in range(3):
            assert not await pool.step()
        assert set(pool.take()) == {0, 2}
        assert not {1, 3} & {source for process in pool.processes for source in process.told[-1].sources}
        pool.processes[1].holding = Holding()
        for _ in range(4):
            await pool.step()
        assert set(pool.take()) == {0, 1, 2, 3}
        told = [set(process.told[-1].sources) for process in pool.processes]
        assert told[0] | told[1] == {0, 1, 2, 3}
        assert not told[0] & told[1]

    run(go)


def test_every_assignment_has_a_greater_number() -> None:
    async def go() -> None:
        pool = Pool(2)
        await pool.step()
        pool.resizer._move(pool.feed, {0: 1, 1: 0, 2: 0, 3: 0})
        for _ in range(4):
            await pool.step()
        told = sorted(t.number for process in pool.processes for t in process.told)
        assert len(set(told)) == len(told)
        assert {t.epoch for process in pool.processes for t in process.told} == {7}

    run(go)


@pytest.mark.parametrize(("total", "most"), [(None, 4), (3, 3), (1, 1)])
def test_never_more_processes_than_connections_to_divide(total: int | None, most: int) -> None:
    pool = Pool(**({} if total is None else {"max_connections": 1, "max_connections_total": total}))
    assert pool.resizer._most_of(pool.feed) == most

"""What becomes of messages whose pools behave unlike the rest: they outlive the region, or speak after their death."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.delivery.wire import ENTRY, Holding, encode_holding, encode_report, encode_resume
from engine.region import outcomes
from engine.region.awaiting import deliver_on
from engine.region.ports import PoolName
from engine.region.region import Region
from engine.spool.errors import SpoolFull
from engine.spool.records import MAYBE_SENT
from engine.spool.store import Spool
from engine.values.clock import SteadyClock
from engine.values.outcome import OutcomeKind, Scope
from tests.support.region import LocalNode, fleet, region_on, until
from tests.support.spools import batch, open_spool

POOL = PoolName("default")


def row_of(id_: int, kind: OutcomeKind, at_ms: int = 1) -> Any:
    return (id_, int(kind), str(Scope.MESSAGE), 250, "2.0.0", "ok", "mx", 0, at_ms, 0, 0)


class Pool:
    """A process that takes what it gets and says nothing by itself. `has`: what it had before this region began.

    `unreported`: what became of messages and is told when a region attaches it, once. `after_resume` is called when it
    has answered that.
    """

    def __init__(self, has: list[int]) -> None:
        self.has = has
        self.unreported: list[Any] = []
        self.after_resume: Callable[[], None] = lambda: None
        self.got: list[int] = []
        self.errors: list[Exception] = []

    async def resume(self, epoch: int) -> bytes:
        state = encode_resume(0, self.unreported, self.has, [0, 1])
        self.unreported = []
        self.after_resume()
        return state

    async def assign(self, assignment: bytes) -> bytes:
        return encode_holding(Holding())

    async def load(self) -> tuple[int, int]:
        return 0, 1

    async def deliver(self, header: bytes, entries: bytes) -> None:
        self.got += [entry[0] for entry in ENTRY.iter_unpack(entries)]

    async def acknowledge(self, sequence: int) -> None:
        if self.errors:
            raise self.errors.pop(0)

    async def stop(self, deadline_s: float) -> None:
        pass


class Node(LocalNode):
    """Starts such pools; none while `is_refusing`."""

    is_refusing = False
    pool: Pool | None = None
    on_death: Callable[[PoolName], None]

    async def launch(self, name: PoolName, on_death: Callable[[PoolName], None]) -> Any:
        self.on_death = on_death
        if self.is_refusing:
            raise ConnectionError("no process can be started")
        self.pool = self.pool or Pool([])
        return self.pool

    async def survivors(self) -> list[PoolName]:
        return [POOL] if self.pool else []

    def kill(self) -> None:
        self.pool = None
        self.on_death(POOL)


class Scene:
    def __init__(self, spool: Spool, node: Node) -> None:
        self.spool = spool
        self.node = node
        self.region: Region

    async def accept(self) -> int:
        accepted = asyncio.wrap_future(self.spool.accept(batch(due_ms=self.node.clock.wall_ms())))
        result = await accepted
        if hasattr(self, "region"):
            self.region.parts._offer(result.due_keys)
        return result.ids[0][0]

    async def start(self) -> None:
        self.region = await region_on(self.node, self.spool)

    async def says(self, id_: int, kind: OutcomeKind) -> None:
        row = row_of(id_, kind, self.node.clock.wall_ms())
        await self.region.settle(encode_report(1, self.spool.epoch, [row]))

    async def got(self, id_: int) -> None:
        await until(lambda: self.node.pool is not None and id_ in self.node.pool.got)


@asynccontextmanager
async def scene(directory: Path) -> Any:
    config = fleet(directory, 9)
    clock = SteadyClock()
    spool = open_spool(
        directory / "spool",
        clock,
        deliver=deliver_on(asyncio.get_running_loop()),
        keep_names_ms=0,
        forget_every=1,
    )
    made = Scene(spool, Node(config, "eu", spool, clock))
    try:
        yield made
    finally:
        if hasattr(made, "region"):
            await made.region.stop()
        spool.close()


def test_a_report_for_the_former_incarnation_settles_nothing(tmp_path: Path) -> None:
    async def go() -> None:
        async with scene(tmp_path) as made:
            id_ = await made.accept()
            await made.start()
            await made.got(id_)
            former = encode_report(5, made.spool.epoch - 1, [row_of(id_, OutcomeKind.DELIVERED)])
            assert await made.region.settle(former) == 5, "so that its pool forgets it"
            assert made.spool.counts()["delivered"] == 0
            await made.says(id_, OutcomeKind.DELIVERED)
            assert made.spool.counts()["delivered"] == 1

    asyncio.run(go())


def test_what_a_survivor_gives_back_is_sent_by_another_way(tmp_path: Path) -> None:
    async def run() -> None:
        async with scene(tmp_path) as it:
            old = await it.accept()
            it.node.pool = Pool([old])
            await it.start()
            await it.got(await it.accept())  # the region has read the disk, and passed the old one over
            assert old not in it.node.pool.got
            await it.says(old, OutcomeKind.RETURNED)
            await it.got(old)

    asyncio.run(run())


def test_a_survivor_is_attached_once_though_its_pool_has_something_to_send_meanwhile(tmp_path: Path) -> None:
    """What it gives back is due at once; on that account its pool was started, and attached, once more, and nobody
    listened to what it told then."""

    async def run() -> None:
        async with scene(tmp_path) as it:
            held, returned = await it.accept(), await it.accept()
            pool = it.node.pool = Pool([held])
            pool.unreported = [row_of(returned, OutcomeKind.RETURNED)]
            attached = 0

            def deliver() -> None:
                nonlocal attached
                attached += 1
                pool.has = []
                pool.unreported = [row_of(held, OutcomeKind.DELIVERED)]

            async def slow(sequence: int) -> None:
                await asyncio.sleep(0.2)  # so that a second attachment would come in between

            pool.after_resume = deliver
            pool.acknowledge = slow  # type: ignore[method-assign]
            await it.start()
            await it.got(returned)
            assert attached == 1

    asyncio.run(run())


def test_what_a_survivor_says_that_does_not_answer_at_first_is_heard_when_it_does(tmp_path: Path) -> None:
    async def run() -> None:
        async with scene(tmp_path) as it:
            delivered, held = await it.accept(), await it.accept()
            pool = it.node.pool = Pool([delivered, held])
            pool.errors = [ConnectionError("lost")]

            def deliver() -> None:
                pool.after_resume = lambda: None
                pool.has = [held]
                pool.unreported = [row_of(delivered, OutcomeKind.DELIVERED)]

            pool.after_resume = deliver
            await it.start()
            await it.got(await it.accept())
            assert it.spool.counts()["delivered"] == 1
            assert pool.got == [pool.got[-1]], "what it still has is not given to it again"
            await it.says(held, OutcomeKind.RETURNED)
            await it.got(held)

    asyncio.run(run())


def test_a_survivor_that_is_out_of_reach_at_first_is_not_thought_dead(tmp_path: Path) -> None:
    """Somebody else's report would be acknowledged meanwhile without being read: it is of the former incarnation."""

    async def run() -> None:
        async with scene(tmp_path) as it:
            delivered, held = await it.accept(), await it.accept()
            pool = it.node.pool = Pool([held])
            pool.unreported = [row_of(delivered, OutcomeKind.DELIVERED)]
            resume, errors = pool.resume, [ConnectionError("lost"), TimeoutError("late")]

            async def late(epoch: int) -> bytes:
                if errors:
                    raise errors.pop()
                return await resume(epoch)

            pool.resume = late  # type: ignore[method-assign]
            await it.start()
            await it.got(await it.accept())
            assert it.spool.counts()["delivered"] == 1
            assert not {delivered, held}.intersection(pool.got)

    asyncio.run(run())


def test_what_a_survivor_has_given_back_and_got_again_stays_its(tmp_path: Path) -> None:
    """The former incarnation died before it could acknowledge that it was given back."""

    async def run() -> None:
        async with scene(tmp_path) as it:
            held = await it.accept()
            pool = it.node.pool = Pool([held])
            pool.unreported = [row_of(held, OutcomeKind.RETURNED)]
            await it.start()
            await it.got(await it.accept())
            assert held not in pool.got
            await it.says(held, OutcomeKind.DELIVERED)
            assert it.spool.counts()["delivered"] == 1

    asyncio.run(run())


def test_what_is_held_for_a_process_that_is_being_ended_is_sent_when_it_dies(tmp_path: Path) -> None:
    async def run() -> None:
        async with scene(tmp_path) as it:
            held = await it.accept()
            it.node.pool = Pool([held])
            await it.start()
            await it.got(await it.accept())  # and the one that is held has been passed over
            (feed,) = it.region.parts.dispatcher._feeds.values()
            shard = feed.shards[0]
            shard.is_ending = True
            it.node.kill()
            shard.is_ending = False
            shard.ended()
            feed.wake.set()
            await it.got(held)

    asyncio.run(run())


@pytest.mark.parametrize("moment", ["before its answer", "after its answer"])
def test_what_a_survivor_had_that_dies_while_it_is_attached_is_sent_again(
    moment: str, tmp_path: Path
) -> None:
    async def run() -> None:
        async with scene(tmp_path) as it:
            held = await it.accept()
            pool = it.node.pool = Pool([held])

            async def die(sequence: int) -> None:
                it.node.kill()

            if moment == "before its answer":
                pool.after_resume = it.node.kill
            else:
                pool.acknowledge = die  # type: ignore[method-assign]
            await it.start()
            await it.got(held)
            assert it.node.pool is not pool

    asyncio.run(run())


def test_what_the_dead_have_delivered_is_not_sent_again_if_that_is_heard_in_time(tmp_path: Path) -> None:
    async def run() -> None:
        async with scene(tmp_path) as it:
            await it.start()
            first = await it.accept()
            await it.got(first)
            it.node.is_refusing = True
            it.node.kill()
            number = it.region.parts.sites.pools.number(POOL.provider)
            scheduler = it.region.parts.scheduler
            await until(lambda: scheduler.contains(first) and not scheduler.in_flight_of(number))
            await it.says(first, OutcomeKind.DELIVERED)
            assert not scheduler.contains(first)
            it.node.is_refusing = False
            await it.got(await it.accept())
            assert first not in it.node.pool.got

    asyncio.run(run())


def test_what_has_expired_is_not_busy_for_ever(tmp_path: Path) -> None:
    async def run() -> None:
        async with scene(tmp_path) as it:
            await it.start()
            late = batch(due_ms=it.node.clock.wall_ms() - 49 * 3_600_000)
            result = await asyncio.wrap_future(it.spool.accept(late))
            it.region.parts.windows.settling([7])  # something else is
            it.region.parts._offer(result.due_keys)
            it.region.parts.scheduler.remove(result.ids[0][0].to_bytes(8, "little"))
            it.region.parts.outcomes.expire(result.due_keys)
            await until(lambda: it.spool.counts()["expired"] == 1)
            await until(lambda: not it.region.parts.windows.is_settling(result.ids[0][0]))

    asyncio.run(run())


def test_a_domain_whose_name_was_forgotten_is_served_as_ever(tmp_path: Path) -> None:
    async def run() -> None:
        async with scene(tmp_path) as it:
            await it.start()
            for number in (1, 2):
                id_ = await it.accept()
                await it.got(id_)
                assert it.spool.queue(number)[0] == "example.net"
                known = [row[0] for row in it.spool.queues()]
                assert known == [number]  # a new one, and the old one is gone
                await it.says(id_, OutcomeKind.DELIVERED)
                for _ in range(12):
                    await asyncio.wrap_future(it.spool.put_state("nothing", b""))
                assert list(it.spool.queues()) == []

    asyncio.run(run())


def test_what_could_not_be_written_before_its_pool_died_is_sent_again_and_what_is_said_again_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "UNSAID_S", 0.5)

    async def run() -> None:
        async with scene(tmp_path) as it:
            await it.start()
            first, second = await it.accept(), await it.accept()
            await it.got(first)
            await it.got(second)
            settle = it.spool.settle
            for id_ in (first, second):
                full: Future[Any] = Future()
                full.set_exception(SpoolFull("disk", 0, 1))
                it.spool.settle = lambda _, full=full: full
                with pytest.raises(SpoolFull):
                    await it.says(id_, OutcomeKind.DELIVERED)
            it.spool.settle = settle
            await it.says(second, OutcomeKind.DELIVERED)
            it.node.kill()
            await until(lambda: it.node.pool is not None)
            await it.got(first)
            assert it.spool.message(first).flags & MAYBE_SENT
            assert second not in it.node.pool.got
            assert not it.region.parts.outcomes._unwritten

    asyncio.run(run())

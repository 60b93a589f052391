"""From decisions to a pool: durable first, within credits, again after an error, back again after a death."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from engine.config.load import parse_fleet
from engine.config.schema import LimitsConfig
from engine.delivery.wire import ENTRY, Holding, decode_header, encode_holding, encode_resume
from engine.providers.profiles import load_profiles
from engine.region import dispatch
from engine.region.dispatch import Dispatcher, most_shards
from engine.region.ports import PoolName
from engine.region.sites import Counts, Sites
from native.scheduler import Scheduler
from tests.support.clock import ManualClock
from tests.support.decisions import due_keys, packed
from tests.support.fleets import fleet_data

POOL = PoolName("default")


class Nothing:
    """Windows that never have more on disk."""

    def refill(self, pool: int) -> None:
        pass


class World:
    """A dispatcher between a real scheduler and a scripted pool; `log` has what happened, in order."""

    def __init__(self, **limits: int) -> None:
        config = parse_fleet(fleet_data(providers={"default": {"rate": "unlimited", "max_connections": 100}}))
        self.clock = ManualClock()
        self.scheduler = Scheduler(seed=1)
        self.sites = Sites(
            config=config, region="eu", profiles=load_profiles(config.providers), scheduler=self.scheduler
        )
        self.sites.open("mx", "default", now_ns=self.clock.monotonic_ns(), counts=Counts(1), terms={})
        self.clock.advance(10)
        self.log: list[tuple[str, Any]] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.on_death: Callable[[PoolName], None] = lambda name: None
        self.disk = asyncio.Event()
        self.disk.set()
        self.losses = asyncio.Event()  # what died processes held is due again, on disk
        self.losses.set()
        self.stopped: list[int] = []
        self.launch_errors: list[Exception] = []
        self.deliver_errors: list[Exception] = []
        self.takes = 0
        self.term: int | None = 7  # of the lease
        self.dispatcher = Dispatcher(
            scheduler=self.scheduler,
            windows=Nothing(),  # type: ignore[arg-type]
            sites=self.sites,
            spool=self,
            launcher=self,
            clock=self.clock,
            limits=LimitsConfig(**{"pool_credits": 40, "batch": 10, **limits}),
            epoch=3,
            spawn=self._spawn,
            lost=self._lost,
            attach=lambda name, port, has_died: port.resume(3),
            cores=1,
            term=lambda: self.term,
        )
        self.dispatcher.adopt()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self.tasks.add(task)
        return task

    # the launcher, and the pool it launches

    async def launch(self, name: PoolName, on_death: Callable[[PoolName], None]) -> "World":
        if self.launch_errors:
            raise self.launch_errors.pop(0)
        self.on_death = on_death
        self.log.append(("launch", str(name)))
        return self

    async def survivors(self) -> list[PoolName]:
        return []

    async def resume(self, epoch: int) -> bytes:
        return encode_resume(0, [], [])

    async def assign(self, assignment: bytes) -> bytes:
        self.log.append(("assign", None))
        return encode_holding(Holding())

    async def load(self) -> tuple[int, int]:
        return 0, 0

    async def deliver(self, header: bytes, entries: bytes) -> None:
        batch = decode_header(header).batch
        assert decode_header(header).term == 7
        self.log.append(("deliver", (batch, [entry[0] for entry in ENTRY.iter_unpack(entries)])))
        if self.deliver_errors:
            raise self.deliver_errors.pop(0)

    async def acknowledge(self, sequence: int) -> None:
        pass

    async def stop(self, deadline_s: float) -> None:
        pass

    # the spool, and the region

    async def dispatch(self, batch_no: int, ids: bytes, daily: dict[str, int]) -> list[int]:
        self.log.append(("durable", batch_no))
        await self.disk.wait()
        return self.stopped

    async def _lost(self, name: PoolName, ids: list[int]) -> None:
        self.log.append(("lost", (str(name), sorted(ids))))
        self.scheduler.settle(packed(ids))
        await self.losses.wait()

    # the test

    def add(self, first: int, count: int) -> None:
        self.scheduler.add(self.scheduler.flow(0, 1, 0, 0), due_keys(range(first, first + count)))
        self.dispatcher.wake(0)

    def settled(self, ids: list[int]) -> None:
        self.scheduler.settle(packed(ids))
        self.dispatcher.finished(0, len(ids))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                self.clock.advance(0.01)
                await asyncio.sleep(0)

    async def rest(self) -> None:
        for _ in range(200):
            self.clock.advance(0.01)
            await asyncio.sleep(0)

    def delivered(self) -> list[int]:
        return [id_ for what, said in self.log if what == "deliver" for id_ in said[1]]


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "LAUNCH_DELAY_S", 0)
    monkeypatch.setattr(dispatch, "RESEND_DELAY_S", 0)


def run(test: Callable[[World], Awaitable[None]], **limits: int) -> None:
    async def go() -> None:
        world = World(**limits)
        await test(world)
        for task in world.tasks:
            if task.done():
                task.result()
            task.cancel()
        await asyncio.gather(*world.tasks, return_exceptions=True)

    asyncio.run(go())


def test_a_pool_starts_on_first_use_and_is_told_before_it_is_fed() -> None:
    async def go(world: World) -> None:
        await world.rest()
        assert world.log == []
        world.add(1, 3)
        await world.until(lambda: len(world.delivered()) == 3)
        assert [what for what, _ in world.log] == ["launch", "assign", "durable", "deliver"]

    run(go)


def test_a_pool_that_dies_between_a_decision_and_its_hand_over() -> None:
    """What was taken for it is lost with it, once; the next process gets nothing of that batch."""

    async def go(world: World) -> None:
        spawn = world.dispatcher._spawn

        def spawn_and_die(coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
            task = spawn(coroutine)
            if coroutine.__name__ == "_hand_over":
                world.dispatcher._spawn = spawn
                world.on_death(POOL)
            return task

        world.dispatcher._spawn = spawn_and_die
        world.add(1, 3)
        await world.until(lambda: any(what == "lost" for what, _ in world.log))
        await world.rest()
        assert [said for what, said in world.log if what == "lost"] == [("default.0", [1, 2, 3])]
        assert world.delivered() == []
        assert not [task for task in world.tasks if task.done() and task.exception()]

    run(go)


def test_without_a_lease_nothing_is_taken_and_with_one_it_goes_on() -> None:
    async def go(world: World) -> None:
        world.term = None
        world.add(1, 3)
        await world.rest()
        assert not {"durable", "deliver"} & {what for what, _ in world.log}
        world.term = 7
        world.dispatcher.wake(0)
        await world.until(lambda: len(world.delivered()) == 3)

    run(go)


def test_a_pool_is_full_when_no_process_of_it_has_room_for_a_batch() -> None:
    async def go(world: World) -> None:
        assert not world.dispatcher.is_full(0)  # nothing has been wanted of it
        world.add(1, 100)
        assert world.dispatcher.is_full(0)  # its process does not run yet
        await world.until(lambda: len(world.delivered()) == 40)
        assert world.dispatcher.is_full(0)
        world.scheduler.settle(packed(range(1, 11)))
        assert not world.dispatcher.is_full(0)

    run(go)


def test_nothing_is_handed_over_before_its_record_is_on_disk() -> None:
    async def go(world: World) -> None:
        world.disk.clear()
        world.add(1, 25)
        await world.until(lambda: ("durable", 3) in world.log)  # batches overlap
        await world.rest()
        assert world.delivered() == []
        world.disk.set()
        await world.until(lambda: len(world.delivered()) == 25)

    run(go)


def test_a_pool_holds_what_its_credits_allow_and_is_fed_again_in_batches_worth_a_call() -> None:
    async def go(world: World) -> None:
        world.add(1, 100)
        await world.until(lambda: len(world.delivered()) == 40)
        await world.rest()
        assert sorted(world.delivered()) == list(range(1, 41))
        assert world.dispatcher.outstanding() == {"default.0": 40}
        world.settled(list(range(1, 10)))  # nine: less than a quarter of the credits
        await world.rest()
        assert len(world.delivered()) == 40
        world.settled([10])
        await world.until(lambda: len(world.delivered()) == 50)
        await world.rest()
        assert len(world.delivered()) == 50

    run(go)


def test_nobody_polls_while_a_pool_has_no_credits() -> None:
    async def go(world: World) -> None:
        world.add(1, 100)
        await world.until(lambda: len(world.delivered()) == 40)
        world.add(200, 5)
        await world.rest()
        feed = world.dispatcher._feeds[0]
        waiting = asyncio.timeout
        asked: list[float | None] = []

        def watched(delay: float | None) -> Any:
            asked.append(delay)
            return waiting(delay)

        dispatch.asyncio.timeout = watched  # type: ignore[attr-defined]
        try:
            feed.wake.set()
            for _ in range(200):
                world.clock.advance(0.01)
                await asyncio.sleep(0)
        finally:
            dispatch.asyncio.timeout = waiting  # type: ignore[attr-defined]
        assert asked in ([], [None])

    run(go)


def test_a_hand_over_that_fails_is_repeated_with_the_same_number() -> None:
    async def go(world: World) -> None:
        world.deliver_errors = [ConnectionError("lost"), ConnectionError("lost")]
        world.add(1, 2)
        await world.until(lambda: [what for what, _ in world.log].count("deliver") == 3)
        said = [said for what, said in world.log if what == "deliver"]
        assert said[0] == said[1] == said[2]

    run(go)


def test_what_a_dead_pool_held_comes_back_once_and_another_is_started() -> None:
    async def go(world: World) -> None:
        world.add(1, 15)
        await world.until(lambda: len(world.delivered()) == 15)
        world.settled([4])
        world.on_death(POOL)
        await world.until(lambda: [what for what, _ in world.log].count("launch") == 2)
        lost = [said for what, said in world.log if what == "lost"]
        assert lost == [("default.0", [n for n in range(1, 16) if n != 4])]
        assert world.dispatcher.outstanding() == {"default.0": 0}
        world.add(100, 3)
        await world.until(lambda: world.delivered()[-3:] == [100, 101, 102])

    run(go)


def test_what_a_dead_pool_held_counts_for_the_rate_from_its_death() -> None:
    async def go(world: World) -> None:
        world.scheduler.set_total(0, interval_ns=1_000_000_000)
        world.clock.advance(100)
        world.add(1, 2)
        await world.until(lambda: world.delivered() == [1])
        world.clock.advance(0.9)
        world.on_death(POOL)
        await world.until(lambda: any(what == "lost" for what, _ in world.log))
        for seconds, delivered in ((0.2, [1]), (0.9, [1, 2])):
            world.clock.advance(seconds)
            world.dispatcher.wake_all()
            await world.rest()
            assert world.delivered() == delivered

    run(go)


def test_another_process_takes_over_while_what_was_lost_is_written() -> None:
    async def go(world: World) -> None:
        world.add(1, 3)
        await world.until(lambda: len(world.delivered()) == 3)
        world.losses.clear()
        world.on_death(POOL)
        world.add(4, 2)
        await world.until(lambda: len(world.delivered()) == 5)
        assert world.delivered() == [1, 2, 3, 4, 5]
        lost = [said for what, said in world.log if what == "lost"]
        assert lost == [("default.0", [1, 2, 3])], "what the next one has is not lost"

    run(go)


def test_a_batch_for_a_pool_that_died_is_not_given_to_the_next() -> None:
    async def go(world: World) -> None:
        world.deliver_errors = [ConnectionError("dead")] * 1000
        world.add(1, 2)
        await world.until(lambda: len(world.delivered()) >= 2)
        world.on_death(POOL)
        world.deliver_errors = [ConnectionError("dead")]
        await world.until(lambda: any(what == "lost" for what, _ in world.log))
        await world.rest()
        before = len(world.delivered())
        await world.rest()
        assert len(world.delivered()) == before

    run(go)


def test_a_pool_that_does_not_start_is_started_again() -> None:
    async def go(world: World) -> None:
        world.launch_errors = [ConnectionError("no"), TimeoutError("no")]
        world.add(1, 1)
        await world.until(lambda: world.delivered() == [1])

    run(go)


def test_a_recipient_suppressed_at_the_last_moment_is_not_handed_over() -> None:
    async def go(world: World) -> None:
        world.stopped = [2]
        world.add(1, 3)
        await world.until(lambda: world.delivered() == [1, 3])
        assert not world.scheduler.contains(2)
        assert world.dispatcher.outstanding() == {"default.0": 2}

    run(go)


def test_a_paused_region_takes_nothing() -> None:
    async def go(world: World) -> None:
        world.dispatcher.paused = True
        world.add(1, 3)
        await world.rest()
        assert world.log == []
        world.dispatcher.paused = False
        world.dispatcher.wake(0)
        await world.until(lambda: len(world.delivered()) == 3)

    run(go)


@pytest.mark.parametrize(
    ("configured", "cores", "most"),
    [(None, 1, 1), (None, 2, 1), (None, 8, 7), (4, 8, 4), (4, 2, 2), (1, 8, 1)],
)
def test_processes_of_a_pool_by_configuration_and_cores(
    configured: int | None, cores: int, most: int
) -> None:
    assert most_shards(LimitsConfig(pool_shards=configured), cores) == most


def test_a_pause_takes_nothing_more_and_waits_for_what_is_on_its_way() -> None:
    async def go() -> None:
        world = World()

        def count(what: str) -> int:
            return sum(said == what for said, _ in world.log)

        world.add(1, 10)
        await world.until(lambda: count("deliver") == 1)
        world.disk.clear()
        world.add(11, 10)
        await world.until(lambda: count("durable") == 2)
        pause = asyncio.ensure_future(world.dispatcher.pause())
        world.add(21, 10)
        await world.rest()
        assert not pause.done()
        world.disk.set()
        await pause
        assert count("deliver") == 2
        await world.rest()
        assert count("durable") == 2

    asyncio.run(go())

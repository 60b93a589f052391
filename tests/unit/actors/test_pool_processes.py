"""Which process is which pool, and that none is forgotten, with real processes to kill in place of Ray's actors."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from actors import pool_processes
from actors.pool_processes import PoolProcesses
from actors.ports import ActorDied
from engine.region.ports import PoolName

GOOGLE, YAHOO, OTHER = PoolName("google"), PoolName("yahoo"), PoolName("other")
PATIENCE_S = 30.0
# says back what it hears
CHILD = [sys.executable, "-S", "-c", "import os\nwhile sign := os.read(0, 1): os.write(1, sign)"]


class Actor:
    """A process, and what actors/isp_pool.py does when it is called."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(CHILD, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self.name: PoolName | None = None
        self.incarnation = ""
        self.is_warm = False
        self.takes: list[Callable[[], Awaitable[None]]] = []  # what happens instead of the answer to a `take`

    def check(self) -> None:
        if self.process.poll() is not None:
            raise ActorDied("died")

    async def introduce(self, incarnation: str) -> tuple[int, PoolName | None]:
        self.check()
        self.incarnation = incarnation
        return self.process.pid, self.name

    async def ping(self) -> int:
        """Answered by the process itself."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.check()
        os.write(self.process.stdin.fileno(), b"?")
        if not await asyncio.to_thread(os.read, self.process.stdout.fileno(), 1):
            raise ActorDied("died")
        return self.process.pid

    async def warm(self) -> None:
        self.check()
        self.is_warm = True

    async def take(self, incarnation: str, name: PoolName) -> None:
        self.check()
        if incarnation != self.incarnation or self.name not in (None, name):
            raise ConnectionError("not yours")
        self.name = name
        if self.takes:
            await self.takes.pop()()
        self.check()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Node:
    """Ray on one node: it outlives the region. `gate`: clear it, and starts do not get on."""

    def __init__(self) -> None:
        self.actors: dict[int, Actor] = {}
        self.begun: list[int] = []
        self.failures: list[Exception] = []
        self.unlisted: set[int] = set()
        self.gate = asyncio.Event()
        self.gate.set()
        self.made: list[Actor] = []

    def actor(self, number: int) -> str:
        return f"pool:eu:{number}"

    def alive(self) -> dict[int, Actor]:
        return {number: actor for number, actor in self.actors.items() if actor.process.poll() is None}

    async def numbers(self) -> list[int]:
        return [number for number in self.alive() if number not in self.unlisted]

    async def find(self, number: int) -> Any:
        if number not in self.alive():
            raise ActorDied("none")
        return self.actors[number]

    async def start(self, number: int) -> Any:
        self.begun.append(number)
        if self.failures:
            raise self.failures.pop()
        await self.gate.wait()
        if number not in self.alive():
            self.actors[number] = Actor()
            self.made.append(self.actors[number])
        return self.actors[number]

    async def end(self, number: int) -> None:
        self.actors[number].kill()

    def pid(self, name: PoolName) -> int:
        """Of the one process that is this pool."""
        (pid,) = (actor.process.pid for actor in self.alive().values() if actor.name == name)
        return pid


@contextmanager
def running() -> Iterator[Node]:
    node = Node()
    try:
        yield node
    finally:
        for actor in node.made:
            actor.kill()
            assert actor.process.stdin is not None
            actor.process.stdin.close()  # the other end is closed when nobody reads it any more


def go(scenario: Callable[[Node], Awaitable[None]]) -> None:
    async def run() -> None:
        with running() as node:
            async with asyncio.timeout(PATIENCE_S):
                await scenario(node)

    asyncio.run(run())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def ignore(_: PoolName) -> None:
    pass


async def with_spare(node: Node, spares: int = 1) -> PoolProcesses:
    """A region that has just started, whose spares are ready."""
    pools = PoolProcesses(node, spares)
    await pools.survivors()
    await until(lambda: spares_of(pools) >= spares)
    return pools


def spares_of(pools: PoolProcesses) -> int:
    return sum(pool.name is None for pool in pools.running())


def test_a_spare_becomes_the_pool_that_is_needed_and_another_comes() -> None:
    async def scenario(node: Node) -> None:
        pools = await with_spare(node)
        (spare,) = pools.running()
        assert (spare.name, spare.actor) == (None, "pool:eu:0")
        assert node.actors[0].is_warm
        port = await pools.launch(GOOGLE, ignore)
        assert port is node.actors[0]
        assert node.pid(GOOGLE) == spare.pid
        await until(lambda: spares_of(pools) == 1)
        assert [(pool.name, pool.actor) for pool in pools.running()] == [
            (GOOGLE, "pool:eu:0"),
            (None, "pool:eu:1"),
        ]
        assert await pools.launch(GOOGLE, ignore) is port, "it is that pool already"
        assert len(node.alive()) == 2

    go(scenario)


def test_a_spare_takes_the_place_of_a_pool_that_dies() -> None:
    async def scenario(node: Node) -> None:
        pools = await with_spare(node)
        deaths: list[PoolName] = []
        await pools.launch(GOOGLE, deaths.append)
        await until(lambda: spares_of(pools) == 1)
        spare = pools.running()[1].pid
        node.gate.clear()  # nothing that would have to be started could help
        os.kill(node.pid(GOOGLE), signal.SIGKILL)
        await until(lambda: deaths == [GOOGLE])
        await pools.launch(GOOGLE, deaths.append)
        assert node.pid(GOOGLE) == spare
        node.gate.set()
        await until(lambda: spares_of(pools) == 1)
        assert deaths == [GOOGLE]

    go(scenario)


def test_a_spare_that_dies_is_replaced() -> None:
    async def scenario(node: Node) -> None:
        pools = await with_spare(node)
        before = pools.running()[0].pid
        os.kill(before, signal.SIGKILL)
        await until(lambda: [pool.pid != before for pool in pools.running()] == [True])

    go(scenario)


def test_one_that_is_being_started_is_given_to_whoever_waits() -> None:
    async def scenario(node: Node) -> None:
        node.gate.clear()
        pools = PoolProcesses(node, 1)
        await pools.survivors()
        launches = [asyncio.ensure_future(pools.launch(name, ignore)) for name in (GOOGLE, YAHOO)]
        await until(lambda: len(node.begun) == 3)
        node.gate.set()
        await asyncio.gather(*launches)
        await until(lambda: spares_of(pools) == 1)
        assert node.begun == [0, 1, 2]
        assert {actor.name for actor in node.alive().values()} == {GOOGLE, YAHOO, None}

    go(scenario)


def test_without_spares_one_is_started_when_it_is_needed() -> None:
    async def scenario(node: Node) -> None:
        pools = await with_spare(node, spares=0)
        assert node.begun == []
        await pools.launch(GOOGLE, ignore)
        await until(lambda: not pools._starting)
        assert [pool.name for pool in pools.running()] == [GOOGLE]
        assert node.begun == [0]

    go(scenario)


def test_several_spares_serve_several_deaths() -> None:
    async def scenario(node: Node) -> None:
        pools = await with_spare(node, spares=2)
        node.gate.clear()
        await asyncio.gather(*(pools.launch(name, ignore) for name in (GOOGLE, YAHOO)))
        assert len(node.alive()) == 2

    go(scenario)


def test_another_incarnation_of_the_region_finds_pools_and_spares() -> None:
    async def scenario(node: Node) -> None:
        former = await with_spare(node)
        await former.launch(GOOGLE, ignore)
        await until(lambda: spares_of(former) == 1)
        begun = len(node.begun)
        pools = PoolProcesses(node, 1)
        assert await pools.survivors() == [GOOGLE]
        assert [pool.name for pool in pools.running()] == [GOOGLE, None]
        deaths: list[PoolName] = []
        assert await pools.launch(GOOGLE, deaths.append) is node.actors[0]
        node.actors[0].kill()
        await until(lambda: deaths == [GOOGLE])
        assert len(node.begun) == begun
        await former.close()

    go(scenario)


def test_an_order_of_the_former_incarnation_that_is_late_has_no_effect() -> None:
    async def scenario(node: Node) -> None:
        await with_spare(node)
        actor = node.actors[0]
        old = actor.incarnation
        pools = PoolProcesses(node, 1)
        await pools.survivors()
        with pytest.raises(ConnectionError):
            await actor.take(old, YAHOO)
        await pools.launch(GOOGLE, ignore)
        assert actor.name == GOOGLE

    go(scenario)


def test_a_region_that_dies_before_it_hears_that_a_spare_took_over_finds_the_pool() -> None:
    async def scenario(node: Node) -> None:
        former = await with_spare(node)
        lost = asyncio.Event()
        node.actors[0].takes = [lost.wait]  # type: ignore[list-item]
        asking = asyncio.ensure_future(former._next())
        process = await asking
        task = asyncio.ensure_future(process.port.take(former._incarnation, GOOGLE))
        await until(lambda: node.actors[0].name == GOOGLE)
        pools = PoolProcesses(node, 1)
        assert await pools.survivors() == [GOOGLE]
        assert await pools.launch(GOOGLE, ignore) is node.actors[0]
        node.pid(GOOGLE)  # there is one
        await former.close()
        task.cancel()

    go(scenario)


def test_one_that_the_former_incarnation_was_just_having_started_is_found() -> None:
    async def scenario(node: Node) -> None:
        former = await with_spare(node)
        await former.launch(GOOGLE, ignore)
        await until(lambda: spares_of(former) == 1)
        await former.close()
        node.unlisted = {1}
        pools = await with_spare(node)
        assert pools.running()[1].actor == "pool:eu:1"
        assert len(node.alive()) == 2
        assert node.begun == [0, 1, 1]

    go(scenario)


def test_a_pool_that_was_in_no_list_is_ended_when_it_is_found() -> None:
    """Its region goes on from what it knows: that one is gone, and what it held may have been sent."""

    async def scenario(node: Node) -> None:
        former = await with_spare(node)
        await former.launch(GOOGLE, ignore)
        await former.close()
        await until(lambda: not former._starting)
        node.unlisted = {0, 1}
        lost = node.actors[0]
        pools = await with_spare(node)
        assert lost.process.wait(PATIENCE_S) == -signal.SIGKILL
        await pools.launch(GOOGLE, ignore)
        node.pid(GOOGLE)  # there is one

    go(scenario)


def test_a_process_whose_answer_is_lost_is_killed_and_another_takes_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(node: Node) -> None:
        pools = await with_spare(node)

        async def lost() -> None:
            raise TimeoutError("no answer")

        first = node.actors[0]
        first.takes = [lost]
        await pools.launch(GOOGLE, ignore)
        assert first.process.wait(PATIENCE_S) == -signal.SIGKILL
        assert first.name == GOOGLE
        node.pid(GOOGLE)  # there is one

    go(scenario)


def test_a_launch_that_is_given_up_leaves_no_process_of_that_name() -> None:
    async def scenario(node: Node) -> None:
        pools = await with_spare(node)
        never = asyncio.Event()
        first = node.actors[0]
        first.takes = [never.wait]  # type: ignore[list-item]
        task = asyncio.ensure_future(pools.launch(GOOGLE, ignore))
        await until(lambda: first.name == GOOGLE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert first.process.wait(PATIENCE_S) == -signal.SIGKILL
        node.gate.clear()
        await until(lambda: spares_of(pools) == 0)
        waiting = asyncio.ensure_future(pools.launch(YAHOO, ignore))
        await until(lambda: len(pools._wanted) == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        node.gate.set()
        await until(lambda: not pools._starting and len(node.alive()) == 1)
        assert [pool.name for pool in pools.running()] == [None], "one too many is ended"

    go(scenario)


def test_a_spare_that_dies_while_it_takes_over_is_followed_by_the_next() -> None:
    async def scenario(node: Node) -> None:
        pools = await with_spare(node)

        async def dies() -> None:
            node.actors[0].kill()

        node.actors[0].takes = [dies]
        deaths: list[PoolName] = []
        port = await pools.launch(GOOGLE, deaths.append)
        assert port.process.poll() is None  # type: ignore[attr-defined]
        assert deaths == []

    go(scenario)


def test_a_spare_that_dies_as_soon_as_it_has_taken_over_is_followed_by_the_next() -> None:
    async def scenario(node: Node) -> None:
        pools = await with_spare(node)
        first = node.actors[0]

        async def dies() -> None:
            """It has answered; that it is dead is known before the answer is."""
            first.kill()
            first.check = lambda: None  # type: ignore[method-assign]
            await until(lambda: 0 not in pools._numbers or node.begun != [0])

        first.takes = [dies]
        port = await pools.launch(GOOGLE, ignore)
        assert port is not first
        assert next(pool.name for pool in pools.running()) == GOOGLE

    go(scenario)


def test_one_that_came_for_somebody_who_has_just_given_up_stays_a_spare() -> None:
    async def scenario(node: Node) -> None:
        pools = await with_spare(node)
        process = pools._ready.popleft()
        node.gate.clear()
        task = asyncio.ensure_future(pools.launch(GOOGLE, ignore))
        await until(lambda: len(pools._wanted) == 1)
        pools._offer(process)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [(pool.name, pool.pid) for pool in pools.running()] == [(None, process.pid)]

    go(scenario)


def test_what_does_not_start_is_tried_again_at_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    call_later = asyncio.BaseEventLoop.call_later

    def noted(loop: Any, delay: float, callback: Any, *args: Any, **options: Any) -> Any:
        if getattr(callback, "__name__", "") == "_go_on":
            pauses.append(delay)
            delay = 0.0
        return call_later(loop, delay, callback, *args, **options)

    monkeypatch.setattr(asyncio.BaseEventLoop, "call_later", noted)

    async def scenario(node: Node) -> None:
        node.failures = [ConnectionError("no memory")] * 12
        pools = await with_spare(node)
        assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0, 30.0]
        await pools.launch(GOOGLE, ignore)
        pauses.clear()
        await until(lambda: spares_of(pools) == 1)
        node.failures = [RuntimeError("unforeseen"), ConnectionError("no memory")]
        before = pools.running()[1].pid
        os.kill(before, signal.SIGKILL)
        await until(lambda: [pool.pid for pool in pools.running() if pool.name is None] not in ([], [before]))
        assert pauses == [0.1, 0.2, 0.4]

    go(scenario)


def test_who_needs_one_does_not_wait_for_the_pause_of_a_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_processes, "RETRY_S", 1000.0)
    monkeypatch.setattr(pool_processes, "LONGEST_PAUSE_S", 1000.0)

    async def scenario(node: Node) -> None:
        node.failures = [ConnectionError("no memory")]
        pools = PoolProcesses(node, 1)
        await pools.survivors()
        await until(lambda: pools._pause is not None)
        await pools.launch(GOOGLE, ignore)

    go(scenario)


def test_one_that_does_not_answer_a_new_region_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_processes, "MEET_S", 0.0)
    monkeypatch.setattr(pool_processes, "RETRY_S", 0.0)

    async def scenario(node: Node) -> None:
        former = await with_spare(node)
        await former.launch(GOOGLE, ignore)
        await former.close()

        async def silent(incarnation: str) -> tuple[int, PoolName | None]:
            node.actors[0].check()
            raise TimeoutError("no answer")

        monkeypatch.setattr(node.actors[0], "introduce", silent)
        pools = PoolProcesses(node, 0)
        assert await pools.survivors() == []
        assert node.actors[0].process.poll() is not None

    go(scenario)


def test_when_it_is_closed_nothing_is_started() -> None:
    async def scenario(node: Node) -> None:
        pools = await with_spare(node)
        begun = list(node.begun)
        await pools.close()
        node.actors[0].kill()
        await until(lambda: spares_of(pools) == 0)
        await asyncio.sleep(0)
        assert node.begun == begun

    go(scenario)


def test_a_process_that_cannot_be_prepared_is_used_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(self: Actor) -> None:
        raise ValueError("a file is missing")

    monkeypatch.setattr(Actor, "warm", fails)

    async def scenario(node: Node) -> None:
        pools = await with_spare(node)
        await pools.launch(GOOGLE, ignore)

    go(scenario)


def test_one_that_hangs_while_it_is_started_is_ended_the_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    introduce = Actor.introduce

    async def hangs(self: Actor, incarnation: str) -> tuple[int, PoolName | None]:
        asked.append(self.process.pid)
        if self.process.pid == asked[0]:
            self.check()
            raise TimeoutError("no answer")
        return await introduce(self, incarnation)

    monkeypatch.setattr(Actor, "introduce", hangs)

    async def scenario(node: Node) -> None:
        pools = await with_spare(node)
        first, second, third = asked
        assert first == second != third
        assert node.begun == [0, 0, 0]
        assert [pool.pid for pool in pools.running()] == [third]
        assert node.made[0].process.poll() == -signal.SIGKILL

    go(scenario)


async def look(pools: PoolProcesses, times: int) -> None:
    """So many looks, and to each the answers of those that give any."""
    for _ in range(times):
        pools._look()
        asked = [p.asking for p in pools._running if p.asking is not None and _state(p.pid) in ("S", "R")]
        await asyncio.gather(*asked)


def _state(pid: int) -> str:
    """Of a process by proc_pid_stat(5); "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


async def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: _state(pid) == "T")


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test looks itself (`look`), and no answer takes too long."""
    monkeypatch.setattr(pool_processes, "LOOK_S", 1000.0)
    monkeypatch.setattr(pool_processes, "SIGN_S", 1000.0)


@pytest.mark.usefixtures("by_hand")
def test_a_pool_that_hangs_is_killed_and_a_spare_takes_its_place() -> None:
    async def scenario(node: Node) -> None:
        pools = await with_spare(node)
        deaths: list[PoolName] = []
        await pools.launch(GOOGLE, deaths.append)
        await until(lambda: spares_of(pools) == 1)
        await look(pools, 3 * pool_processes.SILENT_LOOKS)
        assert deaths == [], "they answer"
        hung, spare = (pool.pid for pool in pools.running())
        await stop(hung)
        await look(pools, pool_processes.SILENT_LOOKS)
        assert _state(hung) == "T", "not yet"
        await look(pools, 1)
        await until(lambda: deaths == [GOOGLE])
        assert node.actors[0].process.wait(PATIENCE_S) == -signal.SIGKILL
        await pools.launch(GOOGLE, deaths.append)
        assert node.pid(GOOGLE) == spare
        assert deaths == [GOOGLE]

    go(scenario)


@pytest.mark.usefixtures("by_hand")
def test_a_pool_that_goes_on_in_time_is_left_alone() -> None:
    async def scenario(node: Node) -> None:
        pools = await with_spare(node)
        await pools.launch(GOOGLE, ignore)
        pid = node.pid(GOOGLE)
        for _ in range(2):
            await stop(pid)
            await look(pools, pool_processes.SILENT_LOOKS)
            os.kill(pid, signal.SIGCONT)
            await until(lambda: next(p for p in pools._running if p.pid == pid).silent_looks == 0)
        await look(pools, pool_processes.SILENT_LOOKS)
        assert node.pid(GOOGLE) == pid

    go(scenario)


@pytest.mark.usefixtures("by_hand")
def test_a_spare_that_hangs_is_replaced_also_while_it_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    warmed: list[Actor] = []
    hung: list[Actor] = []
    warm = Actor.warm

    async def hangs_once(self: Actor) -> None:
        warmed.append(self)
        if len(warmed) == 3:
            hung.append(self)
            await asyncio.to_thread(self.process.wait)
        await warm(self)

    monkeypatch.setattr(Actor, "warm", hangs_once)

    async def scenario(node: Node) -> None:
        pools = await with_spare(node)
        first = node.actors[0]
        await stop(first.process.pid)
        await look(pools, pool_processes.SILENT_LOOKS + 1)
        assert first.process.wait(PATIENCE_S) == -signal.SIGKILL
        await until(lambda: spares_of(pools) == 1)

        await pools.launch(GOOGLE, ignore)
        await until(lambda: len(hung) == 1)
        await stop(hung[0].process.pid)
        await look(pools, pool_processes.SILENT_LOOKS + 1)
        await until(lambda: spares_of(pools) == 1)
        assert hung[0].process.poll() == -signal.SIGKILL

    go(scenario)


@pytest.mark.usefixtures("by_hand")
def test_one_that_waits_for_its_disk_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_processes, "waits_for_disk", lambda pid: True)

    async def scenario(node: Node) -> None:
        pools = await with_spare(node)
        await pools.launch(GOOGLE, ignore)
        pid = node.pid(GOOGLE)
        await stop(pid)
        await look(pools, 3 * pool_processes.SILENT_LOOKS)
        assert _state(pid) == "T"
        monkeypatch.setattr(pool_processes, "waits_for_disk", lambda pid: False)
        await look(pools, 1)
        assert node.actors[0].process.wait(PATIENCE_S) == -signal.SIGKILL

    go(scenario)


def test_a_region_that_was_frozen_itself_does_not_count_that_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_processes, "LOOK_S", 0.01)

    async def scenario(node: Node) -> None:
        pools = await with_spare(node)
        (process,) = pools._running
        await stop(process.pid)
        await until(lambda: process.silent_looks > 1)
        before = process.silent_looks
        time.sleep(2 * pool_processes.SILENT_LOOKS * pool_processes.LOOK_S)  # noqa: ASYNC251 - that is the point
        await asyncio.sleep(0)
        assert process.silent_looks <= before + 1
        await until(lambda: process.has_ended)  # it is looked at again, and killed

    go(scenario)

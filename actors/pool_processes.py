"""The processes of pools on a region's node: which pool each one is, and the spares, which are none yet.

To start a process and import everything takes one to three seconds, and mail waits for it whenever a process of a pool
dies, or a provider is met for the first time. So unbound processes are kept running (`limits.pool_spares`). One is told
which pool it is when it is needed, once and for ever, and the next is started then. Without spares one is started when
it is needed, and bound in the same way.

Each process has the lowest number that is free on its node; the actor's name is made of it, not of the pool's. No pool
has two processes, and no process is forgotten, whoever is killed when:
- A new incarnation of the region introduces itself to all processes, and each says which pool it is, if any: the
  others are spares. From then on they obey nobody else: a late order of the former incarnation is too late.
- A process that the former one was just having started may be in no list yet. Its number is free for whoever has not
  heard of it, so a later start finds it.
- If the answer to "be that pool" is lost, the process is killed, by its id. Neither that nor taking over needs Ray's
  head.

A process that lives and does nothing (stopped, or in a loop that does not end) is killed as well, through its pidfd,
and all goes on as after any other death. It is asked for a sign of life at every look, which its event loop gives at
once; `SILENT_LOOKS` in a row without one, and it hangs. Looks are counted, not seconds: while this process itself was
frozen, or the machine asleep, there were none. One that waits for its disk is left alone: another would wait, too, and
what it has on the wire would be sent twice.

Everything runs on the region's loop. Does not import Ray.
"""

import asyncio
import functools
import logging
import os
import secrets
import signal
import time
from collections import deque
from collections.abc import Callable

from actors.ports import ActorDied, PoolProcess, PoolStarter, RunningPool
from engine.ops.process import waits_for_disk
from engine.region.ports import PoolName, PoolPort

log = logging.getLogger(__name__)

RETRY_S = 0.1
WANTED_PAUSE_S = 1.0  # at most, between tries to start a process that somebody waits for
LONGEST_PAUSE_S = 30.0  # the same for a spare
STABLE_S = 60.0  # a spare that lived for so long and died was not to blame
MEET_S = 60.0  # for what outlived the former incarnation to answer; it may still be importing
CLOSE_S = 5.0
LOOK_S = 0.5
# Five seconds. What a pool's loop does at a time (a message of 50 MiB, a full garbage collection) takes some tenths of
# a second, several times that on two cores that do too much. Who is killed wrongly costs a mark on what it held, and up
# to that much sent twice; each second of waiting is one in which that mail stands.
SILENT_LOOKS = 10
SIGN_S = 2.0  # an answer that is lost is asked for again


class _Process:
    """One that runs. `on_end` is called at once when it ends (through a pidfd)."""

    def __init__(
        self, number: int, port: PoolProcess, pid: int, on_end: Callable[["_Process"], None]
    ) -> None:
        """ProcessLookupError: it has ended already."""
        self.number = number
        self.port = port
        self.pid = pid
        self.name: PoolName | None = None
        self.on_death: Callable[[PoolName], None] | None = None
        self.has_ended = False
        self.since_s = time.monotonic()
        self.silent_looks = 0  # since the last sign of life
        self.asking: asyncio.Task[None] | None = None
        self._on_end = on_end
        self._descriptor = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._descriptor, self._ended)

    def _ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)
        self.has_ended = True
        self._on_end(self)

    def kill(self) -> None:
        if not self.has_ended:
            try:
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)
            except ProcessLookupError:
                log.debug("process %d of pools has ended already", self.number)

    async def ask(self) -> None:
        """Ask for a sign of life, once."""
        try:
            async with asyncio.timeout(SIGN_S):
                await self.port.ping()
        except (ConnectionError, TimeoutError) as error:
            log.debug("process %d of pools: no sign of life: %s", self.number, error)
        else:
            self.silent_looks = 0


class PoolProcesses:
    """See the module docstring."""

    def __init__(self, starter: PoolStarter, spares: int) -> None:
        self._starter = starter
        self._spares = spares
        self._incarnation = secrets.token_hex(8)
        self._numbers: set[int] = set()  # of those that run or are being started
        self._bound: dict[PoolName, _Process] = {}
        self._ready: deque[_Process] = deque()
        self._wanted: deque[asyncio.Future[_Process]] = deque()
        self._starting: set[asyncio.Task[None]] = set()
        self._registering = 0
        self._late: set[int] = set()  # were asked once who they are, and did not answer in time
        self._failures = 0
        self._pause: asyncio.TimerHandle | None = None  # nothing is started meanwhile
        self._is_closed = False
        self._running: set[_Process] = set()  # whatever they are
        self._watching: asyncio.Task[None] | None = None

    # -- for the region

    async def survivors(self) -> list[PoolName]:
        """The pools that outlived the former incarnation. To be asked once, before anything is launched."""
        self._watching = asyncio.get_running_loop().create_task(self._watch())
        self._watching.add_done_callback(_not_watched)
        numbers = await self._starter.numbers()
        self._numbers.update(numbers)
        await asyncio.gather(*(self._meet(number) for number in numbers))
        self._fill()
        return sorted(self._bound, key=str)

    async def launch(self, name: PoolName, on_death: Callable[[PoolName], None]) -> PoolPort:
        """The process of that pool: the one that is it, else a spare, else one that is started now."""
        process = self._bound.get(name)
        if process is None:
            process = await self._bind(name)
        process.on_death = on_death
        return process.port

    def running(self) -> list[RunningPool]:
        """Those that are a pool, by its name, and then the spares."""
        bound = sorted(self._bound.values(), key=lambda process: str(process.name))
        return [
            RunningPool(process.name, self._starter.actor(process.number), process.pid)
            for process in (*bound, *self._ready)
        ]

    async def close(self) -> None:
        """Start no more. When this returns every process is known to Ray by its name, or was never asked for."""
        self._is_closed = True
        if self._watching is not None:
            self._watching.cancel()
        if self._pause is not None:
            self._pause.cancel()
        deadline_s = time.monotonic() + CLOSE_S
        while self._registering and time.monotonic() < deadline_s:
            await asyncio.sleep(RETRY_S)

    # -- what outlived the former incarnation

    async def _meet(self, number: int) -> None:
        deadline_s = time.monotonic() + MEET_S
        while True:
            try:
                port = await self._starter.find(number)
                pid, name = await port.introduce(self._incarnation)
                process = self._met(number, port, pid)
            except (ActorDied, ProcessLookupError):
                self._numbers.discard(number)
                return
            except (ConnectionError, TimeoutError) as error:
                # it may have sessions: until it is gone no other can take its place
                if time.monotonic() >= deadline_s:
                    log.error("process %d of pools does not answer, and is ended: %s", number, error)
                    await self._starter.end(number)
                await asyncio.sleep(RETRY_S)
                continue
            break
        if name is None:
            self._offer(process)
        elif name in self._bound:
            log.critical("pool %s has two processes; %d is ended", name, process.pid)
            process.kill()
        else:
            process.name = name
            self._bound[name] = process

    def _met(self, number: int, port: PoolProcess, pid: int) -> _Process:
        """ProcessLookupError: it has ended already."""
        process = _Process(number, port, pid, self._ended)
        self._running.add(process)
        return process

    # -- those that hang

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            self._look()

    def _look(self) -> None:
        for process in self._running:
            process.silent_looks += 1
            if process.silent_looks > SILENT_LOOKS:
                self._silent(process)
            if process.asking is None or process.asking.done():
                process.asking = asyncio.get_running_loop().create_task(process.ask())

    def _silent(self, process: _Process) -> None:
        what = "a spare" if process.name is None else f"pool {process.name}"
        silence = f"{what}, pid {process.pid}, gives no sign of life for {SILENT_LOOKS * LOOK_S:g} s"
        if waits_for_disk(process.pid):
            if process.silent_looks == SILENT_LOOKS + 1:
                log.error("%s: it waits for its disk", silence)
            return
        log.error("%s, and is killed", silence)
        process.kill()

    # -- binding

    async def _bind(self, name: PoolName) -> _Process:
        while True:
            process = await self._next()
            try:
                await process.port.take(self._incarnation, name)
            except (ConnectionError, TimeoutError) as error:
                log.warning("pool %s: process %d does not take over: %s", name, process.pid, error)
                process.kill()
                continue
            except BaseException:  # cancelled: nobody will know what the process is
                process.kill()
                raise
            if process.has_ended:
                continue
            process.name = name
            self._bound[name] = process
            self._failures = 0
            self._fill()
            return process

    async def _next(self) -> _Process:
        """An unbound process, as soon as there is one."""
        if self._ready:
            return self._ready.popleft()
        if self._pause is not None and not self._wanted:  # of a spare, which nobody waited for
            self._pause.cancel()
            self._pause = None
        future: asyncio.Future[_Process] = asyncio.get_running_loop().create_future()
        self._wanted.append(future)
        self._fill()
        try:
            return await future
        except asyncio.CancelledError:
            if future in self._wanted:
                self._wanted.remove(future)
            elif not future.cancelled():
                self._offer(future.result())
            raise

    def _offer(self, process: _Process) -> None:
        """To whoever waits for one, else as a spare; one too many is ended."""
        if process.has_ended:
            return
        while self._wanted:
            future = self._wanted.popleft()
            if not future.done():
                future.set_result(process)
                return
        if len(self._ready) < self._spares:
            self._ready.append(process)
        else:
            process.kill()

    # -- starting

    def _fill(self) -> None:
        """Start what is missing."""
        if self._is_closed or self._pause is not None:
            return
        missing = len(self._wanted) + self._spares - len(self._ready) - len(self._starting)
        for _ in range(missing):
            number = next(n for n in range(len(self._numbers) + 1) if n not in self._numbers)
            self._numbers.add(number)
            task = asyncio.get_running_loop().create_task(self._start(number))
            self._starting.add(task)
            task.add_done_callback(functools.partial(self._started, number))

    def _started(self, number: int, task: asyncio.Task[None]) -> None:
        self._starting.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("process %d of pools cannot be started", number, exc_info=error)
            self._numbers.discard(number)
            self._rest()
        self._fill()

    async def _start(self, number: int) -> None:
        try:
            self._registering += 1
            try:
                port = await self._starter.start(number)
            finally:
                self._registering -= 1
            pid, name = await self._introduced(number, port)
            process = self._met(number, port, pid)
        except (ConnectionError, TimeoutError, ProcessLookupError) as error:
            # the first may be one that has just died, whose name is not free yet
            level = logging.WARNING if self._failures else logging.INFO
            log.log(level, "process %d of pools does not start: %s", number, error)
            self._numbers.discard(number)
            self._rest()
            return
        if name is not None:
            log.error("process %d of pools is pool %s already, and is ended", number, name)
            process.kill()
            return
        await self._warm(process)
        if process.has_ended:
            self._rest()
            return
        self._offer(process)

    async def _introduced(self, number: int, port: PoolProcess) -> tuple[int, PoolName | None]:
        """One that says nothing for the second time hangs since before it could, and is ended."""
        try:
            answer = await port.introduce(self._incarnation)
        except TimeoutError:
            if number in self._late:
                log.error("process %d of pools does not say who it is, and is ended", number)
                await self._starter.end(number)
            self._late ^= {number}
            raise
        except ConnectionError:  # who has that number next has the full time again
            self._late.discard(number)
            raise
        self._late.discard(number)
        return answer

    async def _warm(self, process: _Process) -> None:
        try:
            await process.port.warm()
        except Exception:  # whatever it is, it comes again to whoever uses the process, and can act on it
            log.exception("process %d of pools is not prepared", process.number)

    def _rest(self) -> None:
        """A start has failed, or a spare died young: the next try after a pause that doubles."""
        if self._pause is not None:
            self._pause.cancel()
        self._failures += 1
        pause_s: float = min(LONGEST_PAUSE_S, RETRY_S * 2 ** min(self._failures - 1, 20))
        if self._wanted:
            pause_s = min(pause_s, WANTED_PAUSE_S)
        self._pause = asyncio.get_running_loop().call_later(pause_s, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        self._fill()

    def _ended(self, process: _Process) -> None:
        self._running.discard(process)
        self._numbers.discard(process.number)
        name = process.name
        if name is not None:
            if self._bound.get(name) is process:
                del self._bound[name]
            if process.on_death is not None:
                process.on_death(name)
        elif process in self._ready:
            self._ready.remove(process)
            if self._is_closed:
                return
            log.warning("a spare process of pools has died, pid %d", process.pid)
            if time.monotonic() - process.since_s < STABLE_S:
                self._rest()
            else:
                self._failures = 0
        self._fill()


def _not_watched(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        log.critical("nobody looks whether pools hang any more", exc_info=task.exception())

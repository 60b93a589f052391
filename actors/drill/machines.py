"""The machines of a fleet that is drilled: this one, or the nodes of its cluster with an actor of the drill on each.

Times come out as monotonic seconds of this process: those of another machine are converted by the difference of the
clocks, which the quickest of a few calls tells to within half of its time. The actors end with the command, whatever
way, and what one has frozen goes on then (actors/drill/freeze.py). Does not import Ray.
"""

import asyncio
import time
from typing import Any, Protocol

from actors.drill import freeze
from actors.drill.machine import DrillMachine, Settled
from engine.drill.scenarios import DrillRefused
from engine.spool.audit import AuditReport

ANOTHER = "another drill is run on this fleet: of two faults at once neither can be seen"
CLOCK_CALLS = 5
CALL_S = 10.0
START_S = 60.0  # a node starts a process and reads the code
AIM_S = freeze.START_S + CALL_S
RESUME_S = freeze.END_S + CALL_S
AUDIT_S = 600.0  # of a spool of any size


class Calls(Protocol):
    """How the methods of one DrillMachine are reached. ConnectionError, TimeoutError: it does not answer."""

    where: str  # for a target, "" on this machine

    async def call(self, method: str, *args: Any, timeout_s: float) -> Any: ...


class Here:
    """In this process, in a thread: Ray's callbacks go on meanwhile."""

    where = ""

    def __init__(self, machine: DrillMachine) -> None:
        self._machine = machine

    async def call(self, method: str, *args: Any, timeout_s: float) -> Any:
        return await asyncio.to_thread(getattr(self._machine, method), *args)


class Machine:
    """One machine, by calls; its times on this process's clock. `settled`: all that it has told of so far."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self.where = calls.where
        self.settled: list[Settled] = []
        self._answers = 0
        self._offset_s = 0.0

    async def call(self, method: str, *args: Any, timeout_s: float = CALL_S) -> Any:
        return await self._calls.call(method, *args, timeout_s=timeout_s)

    async def ready(self) -> None:
        """DrillRefused: no drill is possible there. ConnectionError, TimeoutError: it does not answer."""
        await self.call("ready", timeout_s=START_S)
        await self.compare_clocks()

    async def compare_clocks(self) -> None:
        if not self.where:
            return  # it is this process's
        quickest_s = float("inf")
        for _ in range(CLOCK_CALLS):
            sent_s = time.monotonic()
            there_s = float(await self.call("clock"))
            took_s = time.monotonic() - sent_s
            if took_s < quickest_s:
                quickest_s, self._offset_s = took_s, sent_s + took_s / 2 - there_s

    def here_s(self, there_s: float) -> float:
        """A time of that machine on this process's clock."""
        return there_s + self._offset_s

    async def at(self, method: str, *args: Any) -> float:
        """Call what returns when it did it."""
        return self.here_s(float(await self.call(method, *args)))

    async def refresh(self) -> None:
        """Read on in its events logs. An answer that is lost is asked for again, here or the next time. Clocks drift
        apart, if there was much time since the last call."""
        await self.compare_clocks()
        is_more = True
        while is_more:
            number, rows, is_more = await self.call("settled", self._answers)
            if number == self._answers + 1:
                self._answers = number
                self.settled += [Settled(self.here_s(row[0]), *row[1:]) for row in rows]


class Machines:
    """All machines of a fleet: each region's, and the one that Fleet is on. Those that do not answer and are not needed
    are left out, which is in `problems`."""

    def __init__(self, of_regions: dict[str, Machine], of_fleet: Machine) -> None:
        self._of_regions = of_regions
        self._of_fleet = of_fleet
        self.problems: list[str] = []

    def _all(self) -> list[Machine]:
        return list(dict.fromkeys([*self._of_regions.values(), self._of_fleet]))

    def of(self, region: str) -> Machine:
        """DrillRefused: it has none."""
        machine = self._of_regions.get(region)
        if machine is None:
            raise DrillRefused(f"region {region} has no node: nothing of it runs")
        return machine

    async def ready(self, region: str) -> None:
        """To be awaited first. DrillRefused: that region, which is to be hit, has no node, or no drill is possible.
        ConnectionError, TimeoutError: its machine or Fleet's does not answer."""
        needed = (self.of(region), self._of_fleet)
        machines = self._all()
        found = await asyncio.gather(*(machine.ready() for machine in machines), return_exceptions=True)
        for machine, error in zip(machines, found, strict=True):
            if isinstance(error, DrillRefused):
                raise DrillRefused(f"{error}{machine.where}")
            if isinstance(error, BaseException):
                if machine in needed or not isinstance(error, (ConnectionError, TimeoutError)):
                    raise error
                self._of_regions = {n: m for n, m in self._of_regions.items() if m is not machine}
                self.problems.append(f"what goes over a machine that does not answer is not seen: {error}")

    async def begin(self) -> None:
        """Events from now on count."""
        await asyncio.gather(*(machine.call("begin") for machine in self._all()))

    async def own_pid(self, region: str, pid: int) -> int:
        """The pid, if it is a process of this fleet on that region's machine; DrillRefused."""
        return int(await self.of(region).call("own_pid", pid))

    async def kill(self, region: str, pid: int) -> float:
        """SIGKILL; when. DrillRefused: it is none of this fleet's."""
        return await self.of(region).at("kill", pid)

    async def aim(self, region: str, pid: int, limit_s: float) -> None:
        """Make ready to freeze it, for `limit_s` at most. DrillRefused: it is none of this fleet's."""
        await self.of(region).call("aim", pid, limit_s, timeout_s=AIM_S)

    async def freeze(self, region: str) -> float:
        """SIGSTOP of what was aimed at, until `resume`; when."""
        return await self.of(region).at("freeze")

    async def resume(self, region: str) -> str:
        """What is to be told of it, "" if there is nothing. May be called again if the answer is lost."""
        return str(await self.of(region).call("resume", timeout_s=RESUME_S))

    async def head(self) -> int | None:
        """The process id of Ray's head; None if it does not run."""
        pid: int | None = await self._of_fleet.call("head")
        return pid

    async def kill_head(self, pid: int) -> float:
        return await self._of_fleet.at("kill", pid)

    def of_fleet_s(self, at_s: float) -> float:
        """A time by Fleet's clock."""
        return self._of_fleet.here_s(at_s)

    async def refresh(self) -> list[str]:
        """Read on in the events logs of all of them; of which that failed."""
        found = await asyncio.gather(*(m.refresh() for m in self._all()), return_exceptions=True)
        for error in found:
            if isinstance(error, BaseException) and not isinstance(error, (ConnectionError, TimeoutError)):
                raise error
        return [str(error) for error in found if error is not None]

    def settled(self) -> list[Settled]:
        """All that was read of the events logs."""
        return [row for machine in self._all() for row in machine.settled]

    async def audits(self) -> tuple[list[AuditReport], list[str]]:
        """Of the spools, and why of which there is none."""
        calls = [machine.call("audits", timeout_s=AUDIT_S) for machine in self._all()]
        reports: list[AuditReport] = []
        problems = []
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(answer, (ConnectionError, TimeoutError)):
                problems.append(str(answer))
            elif isinstance(answer, BaseException):
                raise answer
            else:
                reports += answer
        return reports, problems

    async def clock_step_s(self) -> float:
        """By how much a unix clock of theirs was set during the drill."""
        return max([float(await machine.call("clock_step_s")) for machine in self._all()])

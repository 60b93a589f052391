"""The machines of a fleet that is drilled: this one, or the nodes of its cluster with an actor of the drill on each.

Times come out as monotonic seconds of this process: those of another machine are converted by the difference of the
clocks, which the quickest of a few calls tells to within half of its time. The actors end with the command, whatever
way, and what one has frozen goes on then (actors/drill/freeze.py). Does not import Ray.
"""

import asyncio
import time
from typing import Any, Protocol

from actors.drill.machine import DrillMachine, Settled
from engine.drill.scenarios import DrillRefused
from engine.spool.audit import AuditReport

CLOCK_CALLS = 5
CALL_S = 10.0
START_S = 60.0  # a node starts a process and reads the code
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
    """One machine, by calls; its times on this process's clock."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self.where = calls.where
        self._offset_s: float | None = 0.0 if not calls.where else None

    async def here_s(self, there_s: float) -> float:
        """A time of that machine on this process's clock."""
        if self._offset_s is None:
            await self.call("clock", timeout_s=START_S)
            await self.compare_clocks()
        assert self._offset_s is not None
        return there_s + self._offset_s

    async def compare_clocks(self) -> None:
        if not self.where:
            return
        quickest_s = float("inf")
        for _ in range(CLOCK_CALLS):
            sent_s = time.monotonic()
            there_s = float(await self.call("clock"))
            took_s = time.monotonic() - sent_s
            if took_s < quickest_s:
                quickest_s, self._offset_s = took_s, sent_s + took_s / 2 - there_s

    async def call(self, method: str, *args: Any, timeout_s: float = CALL_S) -> Any:
        return await self._calls.call(method, *args, timeout_s=timeout_s)

    async def at(self, method: str, *args: Any) -> float:
        """Call what returns when it did it."""
        return await self.here_s(float(await self.call(method, *args)))

    async def settled(self) -> list[Settled]:
        """What is new in its events logs."""
        await self.compare_clocks()
        found: list[Settled] = []
        is_more = True
        while is_more:
            rows, is_more = await self.call("settled")
            found += [Settled(await self.here_s(row[0]), *row[1:]) for row in rows]
        return found


class Machines:
    """All machines of a fleet: each region's, and the one that Fleet is on."""

    def __init__(self, of_regions: dict[str, Machine], of_fleet: Machine) -> None:
        self._of_regions = of_regions
        self._of_fleet = of_fleet

    def _all(self) -> list[Machine]:
        return list(dict.fromkeys([*self._of_regions.values(), self._of_fleet]))

    def _of(self, region: str) -> Machine:
        machine = self._of_regions.get(region)
        if machine is None:
            raise DrillRefused(f"region {region} has no node: nothing of it runs")
        return machine

    def where(self, region: str) -> str:
        """What a target says after a process id."""
        return self._of(region).where

    async def own_pid(self, region: str, pid: int) -> int:
        """The pid, if it is a process of this fleet on that region's machine; DrillRefused."""
        return int(await self._of(region).call("own_pid", pid, timeout_s=START_S))

    async def kill(self, region: str, pid: int) -> float:
        """SIGKILL; when. DrillRefused: it is none of this fleet's."""
        return await self._of(region).at("kill", pid)

    async def freeze(self, region: str, pid: int, limit_s: float) -> float:
        """SIGSTOP until `resume`; when. DrillRefused: it is none of this fleet's."""
        return await self._of(region).at("freeze", pid, limit_s)

    async def resume(self, region: str) -> str:
        """What is to be told of it, "" if there is nothing."""
        return str(await self._of(region).call("resume"))

    async def head(self) -> int | None:
        """The process id of Ray's head; None if it does not run."""
        pid: int | None = await self._of_fleet.call("head")
        return pid

    async def kill_head(self, pid: int) -> float:
        return await self._of_fleet.at("kill", pid)

    async def of_fleet_s(self, at_s: float) -> float:
        """A time by Fleet's clock."""
        return await self._of_fleet.here_s(at_s)

    async def begin(self) -> None:
        """Events from now on count."""
        await asyncio.gather(*(machine.call("begin", timeout_s=START_S) for machine in self._all()))

    async def settled(self) -> list[Settled]:
        """What is new in the events logs of all of them."""
        found = await asyncio.gather(*(machine.settled() for machine in self._all()))
        return [row for rows in found for row in rows]

    async def audits(self) -> list[AuditReport]:
        calls = [machine.call("audits", timeout_s=AUDIT_S) for machine in self._all()]
        return [report for reports in await asyncio.gather(*calls) for report in reports]

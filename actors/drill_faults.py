"""The faults of drills, one class each: made, noticed by the fleet, healed. Only processes of the fleet itself are hit.

`made_s` and every time are monotonic seconds. What a fault adds to a drill's assertions is in `extra`.
"""

import asyncio
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from actors.drill_fleet import MIN_FREE_BYTES, LiveFleet, TemporaryFleet
from actors.partition import BOTH, IN, OUT
from engine.drill.events import EventLogs
from engine.drill.load import Load, until
from engine.drill.scenarios import DrillRefused, Scenario
from engine.failover.dns_plan import Records, why_it_stays
from engine.failover.dns_zone import DnsZone
from engine.routing.resolver import build_resolver

BALLAST_PIECE = 1 << 20
RETURN_S = 60.0
LATE_S = 10.0  # after the end that was meant, a freeze ends by itself
ON_THE_WIRE_S = 1.0  # what was begun before the lease ended


class Fault(ABC):
    """What is common: the fleet, the load, and marks on the timeline. `region`: None is the last one."""

    has_share = False  # mail of one region waits, or is sent by another

    def __init__(
        self, fleet: TemporaryFleet | LiveFleet, scenario: Scenario, region: str | None = None
    ) -> None:
        self.fleet = fleet
        self.running = fleet.running
        self.load: Load | None = None
        self.scenario = scenario
        self.made_s = 0.0
        self.marks: list[tuple[float, str]] = []
        self.extra: dict[str, bool | None] = {}
        self.notes: list[str] = []
        self.region = region or fleet.config.regions[-1].name  # not on the head node, where there are several
        self.target = f"region {self.region}"

    def affected(self) -> list[str]:
        """Names of the sources whose deliveries are hit."""
        return [source.name for source in self.fleet.config.sources if source.region == self.region]

    async def find(self) -> None:  # noqa: B027 - what is blocked or filled is known from the start
        """Look up what will be hit, for `target`; breaks nothing. DrillRefused: it is not there.

        ConnectionError, TimeoutError: the fleet does not say.
        """

    @abstractmethod
    async def make(self) -> None:
        """Do it now, to what was found; sets `made_s`. DrillRefused if it cannot be done to this fleet."""

    @abstractmethod
    async def is_detected(self) -> bool:
        """Whether the fleet has noticed."""

    def noticed_s(self, seen_s: float) -> float:
        """When the fleet noticed, at most `seen_s`, when the drill saw that."""
        return seen_s

    async def heal(self) -> None:  # noqa: B027 - many faults need none
        """Undo it, if it does not pass by itself."""

    async def _is_live(self) -> bool:
        try:
            snapshot = await self.running.snapshot()
        except (ConnectionError, TimeoutError):
            return False
        cover = snapshot["regions"].get(self.region, {}).get("failover", {})
        is_live = snapshot["standing"][self.region]["standing"] == "live"
        return is_live and bool(cover.get("standby_complete"))

    async def _dead_s(self) -> float | None:
        """When Fleet called it dead after the fault, or has it return from a death."""
        for fleet_s, region, standing in await self.running.transitions():
            if region == self.region and standing in ("dead", "returning"):
                at_s = await self.fleet.machines.of_fleet_s(fleet_s)
                if at_s >= self.made_s:
                    return at_s
        return None

    def has_copies(self) -> bool:
        return bool(self.fleet.config.fleet.replicas)

    async def until_covered(self) -> None:
        """DrillRefused: it is not live, with its copies complete, to begin with."""
        if self.has_copies() and await until(self._is_live, deadline_s=RETURN_S) is None:
            raise DrillRefused(f"{self.scenario.name}: region {self.region} is not covered to begin with")

    async def find_whether_it_goes_on(self) -> None:
        """Whether the fleet sees the region again, with copies live and covered, and it accepts a batch after that."""

        async def is_up() -> bool:
            if self.has_copies() and not await self._is_live():
                return False
            try:
                return (await self.running.health()).get(self.region, "down") != "down"
            except (ConnectionError, TimeoutError):
                return False

        up_s = await until(is_up, deadline_s=RETURN_S)
        self.extra["the fleet sees it again"] = up_s is not None
        await self.find_whether_it_accepts(up_s or time.monotonic())

    async def find_whether_it_accepts(self, since_s: float) -> None:
        """Whether a batch that was submitted to the region since then has its receipt; the load has to run.

        Not measured without a load of the drill's own.
        """

        async def accepts() -> bool:
            return True in self.answers(since_s)

        found = None if self.load is None else await until(accepts, deadline_s=RETURN_S) is not None
        self.extra["it accepts again"] = found

    def answers(self, since_s: float) -> list[bool]:
        """Whether the region itself took anything, by batch of those that were submitted to it since then."""
        assert self.load is not None
        return [
            bool(submission.recipients) and submission.taken_by in ("", self.region)
            for submission in self.load.submissions
            if submission.region == self.region and submission.sent_s > since_s - self.load.began_s
        ]

    def mark(self, text: str) -> None:
        self.marks.append((time.monotonic(), text))

    async def region_pid(self) -> int:
        """The process of the region that is hit; sets `target`."""
        pid = int((await self.running.region(self.region))["pid"])
        return await self._aim_at(f"region {self.region}", pid)

    async def _aim_at(self, what: str, pid: int) -> int:
        """The pid, if it is one of the fleet's there; sets `target`. DrillRefused."""
        machines = self.fleet.machines
        await machines.own_pid(self.region, pid)
        self.target = f"{what}, process {pid}{machines.where(self.region)}"
        return pid

    async def kill(self, pid: int) -> None:
        """Of the region that is hit; sets `made_s`."""
        with self.making():
            self.made_s = await self.fleet.machines.kill(self.region, pid)

    @contextmanager
    def making(self) -> Iterator[None]:
        """`made_s` is set, and so the fault is healed, also if the answer is lost; not if it was refused."""
        self.made_s = time.monotonic()
        try:
            yield
        except DrillRefused:
            self.made_s = 0.0
            raise


class PoolKill(Fault):
    """Noticed when another pool process of that name answers."""

    has_share = True

    async def find(self) -> None:
        pools = await self.running.pools(self.region)
        if not pools:
            raise DrillRefused(f"pool-kill: region {self.region} has no pool: it sends nothing")
        self._name = min(pools)
        self._pid = await self._aim_at(f"pool {self._name} of region {self.region}", pools[self._name])

    async def make(self) -> None:
        await self.kill(self._pid)

    async def is_detected(self) -> bool:
        pid = (await self.running.pools(self.region)).get(self._name)
        return pid is not None and pid != self._pid


class SourceBlock(Fault):
    """The sink blocks the source after a number of messages; noticed when an event says that it left the rotation."""

    async def make(self) -> None:
        source = self.fleet.config.sources[0]
        self.region, self.target = source.region, f"source {source.name}"
        self._source, self._ip = source.name, source.ip

        async def refused() -> bool:
            return bool(self.fleet.refusals_of(self._ip))

        if await until(refused, deadline_s=60.0, every_s=0.1) is None:
            raise DrillRefused(
                f"source-block: {self._source} sent too little to be blocked; give a higher --rate"
            )
        self.made_s = self.fleet.refusals_of(self._ip)[0]

    def affected(self) -> list[str]:
        return []

    async def is_detected(self) -> bool:
        return self._left_s() is not None

    def _left_s(self) -> float | None:
        """When an event says that it left the rotation somewhere."""
        logs = EventLogs(Path(self.fleet.config.events.directory))
        at_ms = logs.left_rotation_ms(self._source)
        return None if at_ms is None else at_ms / 1e3 + time.monotonic() - time.time()

    def noticed_s(self, seen_s: float) -> float:
        at_s = self._left_s()
        return seen_s if at_s is None else max(self.made_s, min(at_s, seen_s))

    async def heal(self) -> None:
        last_s = max(self.fleet.refusals_of(self._ip))
        self.notes.append(
            f"{len(self.fleet.refusals_of(self._ip))} attempts were refused, the last {last_s - self.made_s:.2f} s "
            "after the first"
        )


class RegionKill(Fault):
    """Noticed when Fleet calls the region dead; without copies when the watch calls it down, or a new process
    answers."""

    has_share = True
    _seen_s: float | None = None

    async def find(self) -> None:
        self._pid = await self.region_pid()

    async def make(self) -> None:
        await self.until_covered()
        await self.kill(self._pid)

    async def is_detected(self) -> bool:
        if self.has_copies():
            self._seen_s = await self._dead_s()
            return self._seen_s is not None
        if (await self.running.health()).get(self.region) == "down":
            return True
        return int((await self.running.region(self.region))["pid"]) != self._pid

    def noticed_s(self, seen_s: float) -> float:
        return seen_s if self._seen_s is None else self._seen_s

    async def heal(self) -> None:
        await self.find_whether_it_goes_on()


class RegionFreeze(Fault):
    """Noticed when Fleet calls the region dead; without copies when the watch calls it down. It ends with this command,
    and by itself (actors/freeze.py)."""

    has_share = True
    _seen_s: float | None = None

    async def find(self) -> None:
        self._pid = await self.region_pid()

    async def make(self) -> None:
        await self.until_covered()
        longest_s = max(self.scenario.hold_s, self.scenario.bounds.detection_s or 0.0) + LATE_S
        with self.making():
            self.made_s = await self.fleet.machines.freeze(self.region, self._pid, longest_s)

    async def is_detected(self) -> bool:
        if self.has_copies():
            self._seen_s = await self._dead_s()
            return self._seen_s is not None
        return (await self.running.health()).get(self.region) == "down"

    def noticed_s(self, seen_s: float) -> float:
        return seen_s if self._seen_s is None else self._seen_s

    async def heal(self) -> None:
        await asyncio.sleep(max(0.0, self.made_s + self.scenario.hold_s - time.monotonic()))
        await self.resume()
        await self.find_whether_it_goes_on()

    async def resume(self) -> None:
        told = await self.fleet.machines.resume(self.region)
        if told:
            self.notes.append(told)
        self.mark("continued")


class Dns(RegionFreeze):
    """Noticed when the server that takes updates does not give the region's addresses any more."""

    async def make(self) -> None:
        section = self.fleet.config.dns_failover
        assert section is not None
        reason = why_it_stays(section, self.region)
        if reason:
            raise DrillRefused(f"dns: the region would not leave {section.name}: {reason}")
        self._zone = DnsZone(section, build_resolver(self.fleet.config.resolver))
        self._own = set(section.addresses[self.region])
        if await until(self._has_all, deadline_s=RETURN_S) is None:
            raise DrillRefused(f"dns: {section.name} does not lead to region {self.region} to begin with")
        await super().make()

    async def _has_all(self) -> bool:
        return await self._everywhere(lambda records: self._own <= records.addresses)

    async def _has_none(self) -> bool:
        return await self._everywhere(lambda records: not self._own & records.addresses)

    async def _everywhere(self, holds: Callable[[Records], bool]) -> bool:
        primary, authorities = await self._zone.look()
        answers = [primary, *authorities.values()]
        return all(
            not isinstance(answer, str) and bool(answer.addresses) and holds(answer) for answer in answers
        )

    async def is_detected(self) -> bool:
        return await self._has_none()

    async def heal(self) -> None:
        held_s = time.monotonic() - self.made_s
        left_s = await until(self._has_none, deadline_s=max(0.0, self.scenario.hold_s - held_s))
        self.extra["the region's addresses leave every authoritative server"] = left_s is not None
        await self.resume()
        section = self.fleet.config.dns_failover
        assert section is not None
        back_s = await until(self._has_all, deadline_s=RETURN_S + section.up_after)
        self.extra["they come back"] = back_s is not None
        if back_s is not None:
            self.mark("back in the DNS")
        await self.find_whether_it_goes_on()


class DiskFull(Fault):
    """Noticed when the region refuses a batch. Load is needed, and a disk of its own."""

    def __init__(
        self, fleet: TemporaryFleet | LiveFleet, scenario: Scenario, region: str | None = None
    ) -> None:
        super().__init__(fleet, scenario, region)
        self.region = "eu"
        self.target = f"disk of region {self.region}"

    def affected(self) -> list[str]:
        return []

    async def make(self) -> None:
        assert isinstance(self.fleet, TemporaryFleet)
        self.made_s = time.monotonic()
        with self.fleet.ballast().open("wb") as file:
            while True:
                stat = os.fstatvfs(file.fileno())
                room = stat.f_bavail * stat.f_frsize - MIN_FREE_BYTES // 2
                if room <= 0:
                    return
                file.write(bytes(min(room, BALLAST_PIECE)))
                file.flush()

    async def is_detected(self) -> bool:
        return False in self.answers(self.made_s)

    async def heal(self) -> None:
        assert isinstance(self.fleet, TemporaryFleet)
        await asyncio.sleep(max(0.0, self.made_s + self.scenario.hold_s - time.monotonic()))
        self.extra["the region refuses what it cannot keep"] = await self.is_detected()
        self.fleet.ballast().unlink()
        self.mark("room again")
        await self.find_whether_it_accepts(time.monotonic())


class Cut(Fault):
    """Noticed when Fleet calls the region dead. It lasts as long as the region itself lets it (actors/partition.py)."""

    has_share = True
    way = BOTH
    _seen_s: float | None = None

    async def find(self) -> None:
        await self.region_pid()

    async def make(self) -> None:
        await self.until_covered()
        self.made_s = time.monotonic()
        await self.running.cut(self.region, self.scenario.hold_s, self.way)

    async def is_detected(self) -> bool:
        self._seen_s = await self._dead_s()
        return self._seen_s is not None

    def noticed_s(self, seen_s: float) -> float:
        return seen_s if self._seen_s is None else self._seen_s

    async def heal(self) -> None:
        end_s = self.made_s + self.scenario.hold_s
        await asyncio.sleep(max(0.0, end_s - time.monotonic()))
        self.marks.append((end_s, "joined again"))
        silent = "a region that is called dead sends nothing"
        await self.fleet.refresh()
        try:
            self.extra[silent] = self._is_silent(await self._dead_s(), end_s)
        except (ConnectionError, TimeoutError) as error:
            self.extra[silent] = None
            self.notes.append(f"Fleet did not say when it called the region dead: {error}")
        self.extra["it returns"] = await until(self._is_live, deadline_s=RETURN_S) is not None
        self.mark("live again")
        await self.find_whether_it_accepts(time.monotonic())

    def _is_silent(self, dead_s: float | None, end_s: float) -> bool | None:
        """Whether it sent nothing between; None if it had sent nothing before either."""
        sources = {source.name for source in self.fleet.config.sources if source.region == self.region}
        times = [arrival.at_s for arrival in self.fleet.arrivals() if arrival.source in sources]
        if not any(at_s <= self.made_s for at_s in times):
            return None
        return dead_s is not None and not any(dead_s + ON_THE_WIRE_S < at_s < end_s for at_s in times)


class CutIn(Cut):
    way = IN


class CutOut(Cut):
    way = OUT


class HeadKill(Fault):
    """Noticed when the head, as another process, answers."""

    async def find(self) -> None:
        head = await self.fleet.machines.head()
        if head is None:
            raise DrillRefused("head-kill: the process of Ray's head is not on this machine")
        self._head = head
        self.target = f"the head of Ray, process {head}"

    async def make(self) -> None:
        self._before = await self._pids()
        with self.making():
            self.made_s = await self.fleet.machines.kill_head(self._head)

    async def _pids(self) -> dict[str, object]:
        snapshot = await self.running.snapshot()
        return {"": snapshot["pid"], **{name: r.get("pid") for name, r in snapshot["regions"].items()}}

    def affected(self) -> list[str]:
        return []

    async def is_detected(self) -> bool:
        head = await self.fleet.machines.head()
        return head not in (None, self._head) and await self.running.head_answers()

    async def heal(self) -> None:
        async def are_the_same() -> bool:
            try:
                return await self._pids() == self._before
            except (ConnectionError, TimeoutError):
                return False

        same_s = await until(are_the_same, deadline_s=RETURN_S)
        self.extra["Fleet and the regions are the processes of before"] = same_s is not None


FAULTS: dict[str, Any] = {
    "pool-kill": PoolKill,
    "source-block": SourceBlock,
    "region-kill": RegionKill,
    "region-freeze": RegionFreeze,
    "dns": Dns,
    "disk-full": DiskFull,
    "partition": Cut,
    "partition-in": CutIn,
    "partition-out": CutOut,
    "head-kill": HeadKill,
}

"""What the faults of drills have in common: found, made, noticed by the fleet, healed. Only the fleet itself is hit.

`made_s` and every time are monotonic seconds. What a fault adds to a drill's assertions is in `extra`.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from actors.drill.fleets import LiveFleet, TemporaryFleet
from engine.drill.load import Load, until
from engine.drill.scenarios import DrillRefused, Scenario

RETURN_S = 60.0


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
                at_s = self.fleet.machines.of_fleet_s(fleet_s)
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
        self.target = f"{what}, process {pid}{machines.of(self.region).where}"
        return pid

    async def kill(self, pid: int) -> None:
        """Of the region that is hit; sets `made_s`."""
        with self.making():
            self.made_s = await self.fleet.machines.kill(self.region, pid)

    @contextmanager
    def making(self) -> Iterator[None]:
        """`made_s` is set, and so the fault is healed, also if the answer is lost; not if nothing was hit."""
        self.made_s = time.monotonic()
        try:
            yield
        except (DrillRefused, ProcessLookupError):
            self.made_s = 0.0
            raise

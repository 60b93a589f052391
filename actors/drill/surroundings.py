"""What a fleet depends on fails: a provider, a disk. Of temporary fleets only."""

import asyncio
import os
import time
from pathlib import Path

from actors.drill.fault import Fault
from actors.drill.fleets import MIN_FREE_BYTES, LiveFleet, TemporaryFleet
from engine.drill.events import EventLogs
from engine.drill.load import until
from engine.drill.scenarios import DrillRefused, Scenario

BALLAST_PIECE = 1 << 20


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

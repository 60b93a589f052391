"""A region and its fleet do not hear each other for a while."""

import asyncio
import time

from actors.drill.fault import RETURN_S, Fault
from actors.partition import BOTH, IN, OUT
from engine.drill.load import until

ON_THE_WIRE_S = 1.0  # what was begun before the lease ended


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
        unread = await self.fleet.refresh()
        self.notes += unread
        try:
            dead_s = await self._dead_s()
        except (ConnectionError, TimeoutError) as error:
            self.extra[silent] = None
            self.notes.append(f"Fleet did not say when it called the region dead: {error}")
        else:
            self.extra[silent] = None if unread else self._is_silent(dead_s, end_s)
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

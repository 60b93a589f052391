"""The figures of one region, from its actor, its pools and its sources' owners, bounded and merged.

Who does not answer in time is left out; if that is the region itself, `sendfleet.region.up` is 0. Readers that come
close behind each other get the same figures: reading cannot load a fleet.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Iterable
from typing import Protocol

from engine.config.schema import FleetConfig
from engine.metrics.bounding import Bounds
from engine.metrics.catalogue import Point
from engine.providers.profiles import load_profiles
from engine.spool.errors import SpoolError

log = logging.getLogger(__name__)

FRESH_S = 1.0
AT_ONCE = 50  # sources that are asked at the same time
ASKING_S = 4.0  # for so long sources are asked; a reader waits for ten seconds, and each has two
SOURCES = "sources"
SHARED = frozenset(
    {"process.cpu.time", "sendfleet.sessions.refused"}
)  # counters of which several have a part


class FigurePort(Protocol):
    """Asks actors for their figures, within a deadline. ConnectionError, TimeoutError: no answer."""

    async def region_figures(self, region: str) -> list[Point]: ...
    async def pool_figures(self, region: str) -> dict[str, list[Point]]:
        """Of each pool of the region that answers, by its name."""

    async def source_figures(self, source: str) -> list[Point]: ...


class Rises:
    """Counters that several processes have under one name, together: what they have risen by since this was made. One
    that does not answer, or begins anew, makes none of them fall: a reader would take that for a new beginning of all.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[str, str, tuple[str, ...]], float] = {}
        self._sums: dict[tuple[str, tuple[str, ...]], float] = {}

    def note(self, who: str, points: Iterable[Point]) -> list[Point]:
        """What is not such a counter."""
        others = []
        for point in points:
            if point.metric not in SHARED or point.labels == (f"pool:{who}",):
                others.append(point)
                continue
            key = who, point.metric, point.labels
            before = self._last.get(key, point.value)
            self._last[key] = point.value
            risen = point.value - before if point.value >= before else point.value
            self._sums[key[1:]] = self._sums.get(key[1:], 0.0) + risen
        return others

    def points(self) -> list[Point]:
        return [Point(metric, labels, value) for (metric, labels), value in self._sums.items()]


class Gatherer:
    """See the module docstring."""

    def __init__(self, config: FleetConfig, region: str, port: FigurePort) -> None:
        self._region = region
        self._port = port
        self._sources = [source.name for source in config.sources if source.region == region]
        named = [source.name for source in config.sources[: config.metrics.max_sources]]
        self._bounds = Bounds(load_profiles(config.providers), named)
        self._rises = Rises()
        self._lock = asyncio.Lock()
        self._at_s = 0.0
        self._points: list[Point] = []

    async def gather(self) -> list[Point]:
        """Each combination of labels once."""
        async with self._lock:
            if time.monotonic() - self._at_s >= FRESH_S or not self._points:
                self._points = await self._ask_all()
                self._at_s = time.monotonic()
            return self._points

    async def _ask_all(self) -> list[Point]:
        narrow = asyncio.Semaphore(AT_ONCE)
        until_s = time.monotonic() + ASKING_S

        async def ask_source(source: str) -> list[Point]:
            async with narrow:
                if time.monotonic() >= until_s:
                    log.info("metrics of %s: no time to ask %s", self._region, source)
                    return []
                return await self._ask(source, self._port.source_figures(source))

        region_points = self._ask(self._region, self._port.region_figures(self._region))
        (region, pools), sources = await asyncio.gather(
            asyncio.gather(region_points, self._ask_pools()),
            asyncio.gather(*(ask_source(source) for source in self._sources)),
        )
        if not region:
            region = [Point("sendfleet.region.up", (), 0)]
        of_pools = [point for name, points in pools.items() for point in self._rises.note(name, points)]
        of_sources = [
            point
            for name, points in zip(self._sources, sources, strict=True)
            for point in self._rises.note(name, points)
        ]
        return self._bounds.apply([*region, *of_pools, *of_sources, *self._rises.points()])

    async def _ask_pools(self) -> dict[str, list[Point]]:
        found: dict[str, list[Point]] = {}

        async def ask() -> list[Point]:
            found.update(await self._port.pool_figures(self._region))
            return []

        await self._ask("the pools", ask())
        return found

    async def _ask(self, who: str, answer: Awaitable[list[Point]]) -> list[Point]:
        try:
            return await answer
        except (OSError, RuntimeError, SpoolError) as error:  # ConnectionError and TimeoutError are OSErrors
            log.info("metrics of %s: no answer from %s: %s", self._region, who, error)
            return []
        except Exception:  # one that answers with an error must not hide the others
            log.exception("metrics of %s: %s has failed", self._region, who)
            return []

"""How much mail waits for what, by stream and provider: counted in the index on disk, piece by piece, now and then.

Counting on the mail's way would cost every message something, and could not be right after a restart; a walk over the
due index costs a microsecond per message, in pieces of a millisecond with pauses. So the figures are as old as the last
walk (`age_s`): some seconds, or minutes over millions of messages.

What a pool has is still in the due index; it is subtracted from what is due. So is what waits by plan (held.py).
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from engine.metrics.bounding import UNKNOWN
from engine.metrics.catalogue import Point
from engine.values.clock import Clock
from engine.values.stream import Stream

log = logging.getLogger(__name__)

PIECE = 1000
PAUSE_S = 0.025
REST_S = 5.0
CHECKS = 500  # sources that are looked at, for what waits by plan, before a pause
REST_SHARE = 2  # and so many times as long as the walk took

Place = tuple[int, int]  # stream, pool


class DueCounts(Protocol):
    """The part of the spool that is read here."""

    def count_due(
        self, after: bytes, limit: int, now_ms: int
    ) -> tuple[bytes, list[tuple[int, int, int, int]]]:
        """(where to go on, b"" at the end; rows of queue, due, not due yet, first due time) of `limit` messages."""


class Held(Protocol):
    """What waits by plan: engine/region/held.py."""

    def begin(self) -> None: ...
    def holds(self, number: int) -> bool: ...
    def take_cost(self) -> int: ...


@dataclass(slots=True)
class Counted:
    """One walk: its beginning (monotonic ns), messages by place, and the first due time there (unix ms)."""

    at_ns: int
    due: Counter[Place] = field(default_factory=Counter)
    held: Counter[Place] = field(default_factory=Counter)
    scheduled: Counter[Place] = field(default_factory=Counter)
    in_flight: Counter[Place] = field(default_factory=Counter)
    first_ms: dict[Place, int] = field(default_factory=dict)


class Depth:
    """See the module docstring. `place_of`: stream and pool (-1: no route yet) of a queue; `in_flight`: the due keys
    of the messages that pools have; `provider`: the name of a pool."""

    def __init__(
        self,
        *,
        spool: DueCounts,
        clock: Clock,
        place_of: Callable[[bytes], Place],
        in_flight: Callable[[], Iterable[bytes]],
        provider: Callable[[int], str],
        held: Held,
    ) -> None:
        self._spool = spool
        self._clock = clock
        self._place_of = place_of
        self._in_flight = in_flight
        self._provider = provider
        self._held = held
        self._last: Counted | None = None

    async def run(self) -> None:
        """Walk for ever. A walk that fails is in the log, and the figures stay what they were: they must not end what
        sends the mail."""
        while True:
            began_ns = self._clock.monotonic_ns()
            try:
                await self.walk()
            except Exception:  # of the index, which tells those whose mail depends on it
                log.exception("what waits could not be counted")
            took_s = (self._clock.monotonic_ns() - began_ns) / 1e9
            await asyncio.sleep(max(REST_S, REST_SHARE * took_s))

    async def walk(self) -> None:
        """Count once."""
        counted = Counted(self._clock.monotonic_ns())
        after = b""
        cost = 0
        self._held.begin()
        while True:
            now_ms = self._clock.wall_ms()
            after, rows = self._spool.count_due(after, PIECE, now_ms)
            for number, due, scheduled, first_ms in rows:
                place = self._place_of(number.to_bytes(4, "big"))
                counted.due[place] += due
                counted.scheduled[place] += scheduled
                if due:
                    if self._held.holds(number):
                        counted.held[place] += due
                    counted.first_ms[place] = min(first_ms, counted.first_ms.get(place, first_ms))
                cost += self._held.take_cost()
                if cost >= CHECKS:
                    cost = 0
                    await asyncio.sleep(PAUSE_S)
            if not after:
                break
            await asyncio.sleep(PAUSE_S)
        counted.in_flight.update(self._place_of(key[:4]) for key in self._in_flight())
        self._last = counted

    def points(self) -> list[Point]:
        """Nothing before the first walk has ended."""
        counted = self._last
        if counted is None:
            return []
        now_ms = self._clock.wall_ms()
        age_s = (self._clock.monotonic_ns() - counted.at_ns) / 1e9
        found = [Point("sendfleet.messages.waiting.age", (), age_s)]
        for place in sorted({*counted.due, *counted.scheduled, *counted.in_flight}):
            labels = str(Stream(place[0])), self._provider(place[1]) if place[1] >= 0 else UNKNOWN
            in_flight = counted.in_flight[place]
            waits = max(0, counted.due[place] - in_flight)
            held = min(waits, counted.held[place])
            states = {
                "scheduled": counted.scheduled[place],
                "held": held,
                "ready": waits - held,
                "in_flight": in_flight,
            }
            found += [Point("sendfleet.messages.waiting", (*labels, state), n) for state, n in states.items()]
            if place in counted.first_ms:
                late_s = max(0, now_ms - counted.first_ms[place]) / 1000
                found.append(Point("sendfleet.messages.ready.age", labels, late_s))
        return found

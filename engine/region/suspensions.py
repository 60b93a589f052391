"""Suspensions in force in a region: put there by replies at once, and by the sources' owners with their reasons.

A reply that speaks about the source or its netblock suspends that source at that site provisionally, so that the
message goes out over another source within the same millisecond. The owner's answer to the report of that reply
replaces it: longer, shorter, or none. If the owner is down, a provisional suspension runs out by itself. What is in
force is on disk, so a restart does not forget it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import msgpack

from engine.region.sites import Site, Sites
from engine.values.clock import Clock
from native.scheduler import Scheduler

PROVISIONAL_MS = 60_000
STATE_KEY = "suspensions"
ALL_SOURCES = ""


class StateStore(Protocol):
    def get_state(self, key: str) -> bytes | None: ...

    def put_state(self, key: str, value: bytes) -> object: ...


@dataclass(frozen=True, slots=True)
class Suspension:
    """No message of `source` ("": any) to `site` until `until_ms` (unix milliseconds), because of `reason`."""

    source: str
    site: str
    until_ms: int
    reason: str


class Suspensions:
    """See the module docstring. `longest_ms`: no rule suspends for longer."""

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        sites: Sites,
        spool: StateStore,
        clock: Clock,
        longest_ms: int = PROVISIONAL_MS,
    ) -> None:
        self._scheduler = scheduler
        self._sites = sites
        self._spool = spool
        self._clock = clock
        self._longest_ms = longest_ms
        self._active: dict[tuple[str, str], Suspension] = {}
        self._provisional: dict[tuple[str, str], int] = {}  # when it was put, unix milliseconds
        self._news: dict[tuple[str, str], Suspension] = {}
        self._is_dirty = False

    def restore(self) -> None:
        """Load what was in force before the restart; it is applied as its sites come up. What would last longer than
        any rule says was written before the clock was set back."""
        state = self._spool.get_state(STATE_KEY)
        if state is None:
            return
        now_ms = self._clock.wall_ms()
        for source, site, until_ms, reason in msgpack.unpackb(state):
            if until_ms > now_ms:
                until_ms = min(until_ms, now_ms + self._longest_ms)
                self._active[source, site] = Suspension(source, site, until_ms, reason)

    def apply_to(self, site: Site) -> None:
        """A site has come up: put what is in force for it into the scheduler."""
        for key in [(ALL_SOURCES, site.name), *((s.name, site.name) for s in self._sites.sources.values())]:
            if key in self._active:
                self._enforce(self._active[key], site.number)

    def _enforce(self, suspension: Suspension, site: int) -> None:
        remaining_ms = max(0, suspension.until_ms - self._clock.wall_ms())
        until_ns = self._clock.monotonic_ns() + remaining_ms * 1_000_000
        if suspension.source == ALL_SOURCES:
            self._scheduler.suspend_site(site, until_ns)
            return
        for number, source in self._sites.sources.items():
            if source.name == suspension.source:
                self._scheduler.suspend(number, site, until_ns)

    def suspend_provisionally(self, sources: Iterable[str], site: str, reason: str) -> None:
        """A reply has spoken about these sources; nobody has judged it yet."""
        now_ms = self._clock.wall_ms()
        for source in sources:
            self._extend(Suspension(source, site, now_ms + PROVISIONAL_MS, reason[:256]))
            self._provisional[source, site] = now_ms

    def order(self, source: str, site: str, until_ms: int, reason: str) -> None:
        """An owner's word: nothing before `until_ms`."""
        if until_ms > self._clock.wall_ms():
            if self._provisional.get((source, site), until_ms) + PROVISIONAL_MS <= until_ms:
                del self._provisional[source, site]  # the order covers it
            self._extend(Suspension(source, site, until_ms, reason[:256]))

    def _extend(self, suspension: Suspension) -> None:
        key = suspension.source, suspension.site
        current = self._active.get(key)
        if current is None or current.until_ms < suspension.until_ms:
            # each reply of a storm puts the end off a little: that is no news
            is_news = current is None or key not in self._provisional
            self._put(suspension, is_news=is_news)

    def _put(self, suspension: Suspension, *, is_news: bool = True) -> None:
        key = suspension.source, suspension.site
        self._active[key] = suspension
        if is_news:
            self._news[key] = suspension
        if self._sites.known(suspension.site):
            self._enforce(suspension, self._sites.number(suspension.site))
        self._is_dirty = True

    def judged(self, source: str, site: str, *, reported_ms: int, until_ms: int, reason: str) -> None:
        """The owner has answered a report of `reported_ms` about a blocking reply: what it says now holds.

        A provisional suspension that was put after the report stands until the next answer.
        """
        put_ms = self._provisional.get((source, site))
        if put_ms is not None and put_ms > reported_ms:
            self.order(source, site, until_ms, reason)
            return
        self._provisional.pop((source, site), None)
        current = self._active.get((source, site))
        if current is not None and current.until_ms != until_ms:
            self._put(Suspension(source, site, until_ms, reason[:256]))
        elif current is None:
            self.order(source, site, until_ms, reason)

    def relax(self, source: str, site: str, until_ms: int) -> None:
        """An operator has cancelled an order: what is in force ends when the orders that are left say so.

        What a reply has put provisionally stands: its owner has not judged it yet.
        """
        current = self._active.get((source, site))
        if current is not None and current.until_ms > until_ms and (source, site) not in self._provisional:
            until_ms = max(until_ms, self._clock.wall_ms())
            self._put(Suspension(source, site, until_ms, "cancelled by an operator"))

    def save(self) -> None:
        """Forget what has run out, write what has changed."""
        now_ms = self._clock.wall_ms()
        ended = [key for key, suspension in self._active.items() if suspension.until_ms <= now_ms]
        for key in ended:
            del self._active[key]
            self._provisional.pop(key, None)
        if self._is_dirty or ended:
            self._is_dirty = False
            rows = [(s.source, s.site, s.until_ms, s.reason) for s in self._active.values()]
            self._spool.put_state(STATE_KEY, msgpack.packb(rows))

    def of(self, source: str, site: str) -> Suspension | None:
        return self._active.get((source, site))

    def take_news(self) -> list[Suspension]:
        """What has come into force or changed since the last call, for the events."""
        news, self._news = self._news, {}
        return list(news.values())

    def in_force(self) -> list[Suspension]:
        """Those that hold, and those that ran out since the last `save`."""
        return list(self._active.values())

    def listing(self) -> list[dict[str, object]]:
        """What is in force, why, until when."""
        return [
            {"source": s.source, "site": s.site, "until_ms": s.until_ms, "reason": s.reason}
            for s in self._active.values()
        ]

"""What a region enforces on its sources: suspensions and weights, asked for by replies and by the sources' owners.

A reply whose scope is the source or its netblock suspends that source at that site at once, provisionally, so that
the message goes out over another source within the same millisecond. What happened is reported to the source's owner
every quarter of a second; its allowances then take over. If the owner is down, the region goes on with the last
allowances; a suspension runs out by itself. Suspensions are on disk, so a restart does not forget them.
"""

import logging
from dataclasses import dataclass
from typing import Protocol

import msgpack

from engine.region.ports import SourcePort
from engine.region.sites import Site, Sites
from engine.reputation.allowance import decode_allowances, encode_summary
from engine.values.clock import Clock
from engine.values.outcome import Outcome, OutcomeKind, Scope
from native.scheduler import Scheduler

log = logging.getLogger(__name__)

PROVISIONAL_MS = 60_000
STATE_KEY = "suspensions"
FIELDS = {OutcomeKind.DELIVERED: 0, OutcomeKind.DEFERRED: 1, OutcomeKind.BOUNCED: 2}
BLOCKED = 3


class StateStore(Protocol):
    def get_state(self, key: str) -> bytes | None: ...

    def put_state(self, key: str, value: bytes) -> object: ...


@dataclass(frozen=True, slots=True)
class Suspension:
    """No message of `source` to `site` until `until_ms` (unix milliseconds), because of `reason`."""

    source: str
    site: str
    until_ms: int
    reason: str


class Suspensions:
    """Suspensions in force, and the counts to report to the sources' owners."""

    def __init__(
        self, *, scheduler: Scheduler, sites: Sites, spool: StateStore, clock: Clock, sources: SourcePort
    ) -> None:
        self._scheduler = scheduler
        self._sites = sites
        self._spool = spool
        self._clock = clock
        self._sources = sources
        self._active: dict[tuple[str, str], Suspension] = {}
        self._counts: dict[tuple[int, int], list[int]] = {}
        self._replies: dict[tuple[int, int], str] = {}
        self._dirty = False

    async def restore(self) -> None:
        """Load what was in force before the restart; it is applied as its sites come up."""
        state = self._spool.get_state(STATE_KEY)
        if state is None:
            return
        now_ms = self._clock.wall_ms()
        for source, site, until_ms, reason in msgpack.unpackb(state):
            if until_ms > now_ms:
                self._active[source, site] = Suspension(source, site, until_ms, reason)

    def apply_to(self, site: Site) -> None:
        """A site has come up: put what is in force for it into the scheduler."""
        for number, source in self._sites.sources.items():
            suspension = self._active.get((source.name, site.name))
            if suspension is not None:
                self._enforce(number, site.number, suspension.until_ms)

    def _enforce(self, source: int, site: int, until_ms: int) -> None:
        remaining_ms = max(0, until_ms - self._clock.wall_ms())
        self._scheduler.suspend(source, site, self._clock.monotonic_ns() + remaining_ms * 1_000_000)

    def note(self, outcome: Outcome, site: int) -> None:
        """Count one attempt's outcome; suspend at once if it speaks about the source."""
        if site < 0 or outcome.source not in self._sites.sources:
            return
        cell = outcome.source, site
        counts = self._counts.get(cell)
        if counts is None:
            counts = self._counts[cell] = [0, 0, 0, 0]
        field = FIELDS.get(outcome.kind)
        if field is not None:
            counts[field] += 1
        if outcome.scope in (Scope.SOURCE, Scope.NETBLOCK) and outcome.kind is not OutcomeKind.DELIVERED:
            counts[BLOCKED] += 1
            self._replies[cell] = str(outcome.reply)
            self._suspend_provisionally(outcome, site)

    def _suspend_provisionally(self, outcome: Outcome, site: int) -> None:
        named = self._sites.sources[outcome.source]
        affected = [outcome.source]
        if outcome.scope is Scope.NETBLOCK:
            affected = [n for n, s in self._sites.sources.items() if s.netblock == named.netblock]
        until_ms = self._clock.wall_ms() + PROVISIONAL_MS
        for number in affected:
            self._set(number, site, until_ms, str(outcome.reply))

    def _set(self, source: int, site: int, until_ms: int, reason: str) -> None:
        key = self._sites.sources[source].name, self._sites.site(site).name
        current = self._active.get(key)
        if current is not None and current.until_ms >= until_ms:
            return
        self._active[key] = Suspension(*key, until_ms, reason[:256])
        self._enforce(source, site, until_ms)
        self._dirty = True

    async def exchange(self) -> None:
        """Report the counts to the sources' owners, take their allowances over, write what changed to disk."""
        counts, self._counts = self._counts, {}
        replies, self._replies = self._replies, {}
        by_source: dict[int, dict[str, list[object]]] = {}
        for (source, site), row in counts.items():
            name = self._sites.site(site).name
            by_source.setdefault(source, {})[name] = [*row, replies.get((source, site), "")]
        for source, summary in by_source.items():
            await self._report(source, summary)
        now_ms = self._clock.wall_ms()
        ended = [key for key, suspension in self._active.items() if suspension.until_ms <= now_ms]
        for key in ended:
            del self._active[key]
        if self._dirty or ended:
            self._dirty = False
            rows = [(s.source, s.site, s.until_ms, s.reason) for s in self._active.values()]
            self._spool.put_state(STATE_KEY, msgpack.packb(rows))

    async def _report(self, source: int, summary: dict[str, list[object]]) -> None:
        name = self._sites.sources[source].name
        try:
            answer = await self._sources.observe(name, encode_summary(self._clock.wall_ms(), summary))
        except (ConnectionError, TimeoutError) as error:
            # the last allowances stay in force and run out by themselves: a dead owner never stops the mail
            log.warning("source %s: its owner does not answer: %s", name, error)
            return
        for allowance in decode_allowances(answer):
            if not self._sites.known(allowance.site):
                continue
            site = self._sites.number(allowance.site)
            self._scheduler.set_weight(source, site, allowance.weight)
            if allowance.suspended_until_ms > self._clock.wall_ms():
                self._set(source, site, allowance.suspended_until_ms, allowance.reason)

    def listing(self) -> list[dict[str, object]]:
        """What is in force, why, until when."""
        return [
            {"source": s.source, "site": s.site, "until_ms": s.until_ms, "reason": s.reason}
            for s in self._active.values()
        ]

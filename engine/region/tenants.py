"""What the outcomes say about the tenants: counted here, judged, enforced in the scheduler, kept on disk.

Each region judges what it has sent itself. Counted is what the tenant's own mail causes (engine/reputation/tenant.py).
A tenant that becomes poor shares no source with the others from the next decision of the scheduler on, if there is a
pool apart or the tenant has sources of its own (engine/reputation/serving.py); every change is an event, and a fall
is an alert. At most `MAX_TENANTS` are remembered: the least recently seen of those in good standing go first.
"""

import logging
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import msgpack

from engine.config.schema import FleetConfig
from engine.region.sites import Sites
from engine.region.suspensions import StateStore
from engine.reputation.tenant import BOUNCED as HARD
from engine.reputation.tenant import COMPLAINTS, DELIVERED, KINDS, REFUSED, Change, TenantStanding
from engine.values.clock import Clock
from engine.values.outcome import Outcome, OutcomeKind, Scope
from engine.values.quality import Quality

log = logging.getLogger(__name__)

VERSION = 1
MAX_TENANTS = 10_000
SAVE_MS = 10_000
STATE_KEY = "tenants"
REMOVED = "removed"


class EventStore(Protocol):
    def note_events(self, events: list[tuple[int, str, dict[str, Any]]]) -> object:
        """Put events that are not about a message into the outbox: (unix ms, kind, fields)."""


class Tenants:
    """See the module docstring."""

    def __init__(
        self, *, config: FleetConfig, sites: Sites, spool: StateStore, events: EventStore, clock: Clock
    ) -> None:
        self._config = config.quality
        self._pinned = {
            name: Quality.parse(tenant.quality)
            for name, tenant in config.tenants.items()
            if tenant.quality != "auto"
        }
        self._sites = sites
        self._spool = spool
        self._events = events
        self._clock = clock
        self._standings: dict[str, TenantStanding] = {}
        self._counts: dict[str, list[int]] = {}  # since the last advance
        self._changes: list[Change] = []
        self._dedicated = {
            number: source.tenancy.tenant
            for number, source in sites.sources.items()
            if source.tenancy.kind == "dedicated"
        }
        self._saved_ms = 0
        self._is_dirty = False

    def restore(self) -> None:
        """Load what was known; a state of another version begins anew."""
        data = self._spool.get_state(STATE_KEY)
        state = msgpack.unpackb(data) if data is not None else {}
        if state.get("version") == VERSION:
            for tenant, row in state["tenants"].items():
                self._standings[tenant] = TenantStanding.from_state(self._config, tenant, row)
        for tenant in {*self._standings, *self._pinned}:
            self._apply(tenant)

    def quality_of(self, tenant: str) -> Quality:
        """The class that is enforced."""
        pinned = self._pinned.get(tenant)
        if pinned is not None:
            return pinned
        standing = self._standings.get(tenant)
        return standing.quality if standing is not None else Quality.NEW

    # -- what happens

    def note(self, tenant: str, outcome: Outcome, count: int = 1) -> None:
        """Count an attempt of a tenant's message, or so many alike."""
        kind = self._kind_of(tenant, outcome)
        if kind >= 0:
            self._count(tenant, kind, count)

    def note_late(self, tenant: str, what: Literal["complaints", "bounced"]) -> None:
        """A complaint, or the bounce of an address that does not exist, came after the delivery."""
        self._count(tenant, COMPLAINTS if what == "complaints" else HARD, 1)

    def _count(self, tenant: str, kind: int, count: int) -> None:
        row = self._counts.get(tenant)
        if row is None:
            row = self._counts[tenant] = [0] * len(KINDS)
        row[kind] += count

    def _kind_of(self, tenant: str, outcome: Outcome) -> int:
        """What an outcome says about the tenant, -1 if nothing."""
        if outcome.kind is OutcomeKind.DELIVERED:
            return DELIVERED
        if outcome.reply.code == 0 or outcome.kind not in (OutcomeKind.BOUNCED, OutcomeKind.DEFERRED):
            return -1
        if outcome.scope is Scope.SOURCE:
            return REFUSED if self._dedicated.get(outcome.source) == tenant else -1
        if outcome.scope is Scope.RECIPIENT:
            return HARD if outcome.kind is OutcomeKind.BOUNCED else -1
        is_policy = outcome.reply.enhanced[1:4] == ".7."
        return REFUSED if is_policy and outcome.scope in (Scope.MESSAGE, Scope.DOMAIN) else -1

    def source_removed(self, source: int, site: str, reason: str) -> None:
        """A source has left the rotation at a site. If only one tenant uses it, that says who it was."""
        tenant = self._dedicated.get(source)
        if tenant is None:
            return
        name = self._sites.sources[source].name
        change = self._standing(tenant).condemn(
            self._clock.wall_ms(), f"its source {name} was removed at {site or 'all sites'}: {reason}"
        )
        if change is not None:
            self._enforce(change)

    def order(self, tenant: str, quality: Quality) -> bool:
        """An operator moves a tenant; whether that changes anything. ValueError: the configuration pins it."""
        if tenant in self._pinned:
            raise ValueError(f"tenant {tenant}: pinned as {self._pinned[tenant]} by tenants.{tenant}.quality")
        change = self._standing(tenant).order(self._clock.wall_ms(), quality, "by an operator")
        if change is not None:
            if quality is not Quality.POOR:
                self._counts.pop(tenant, None)  # what is not judged yet is of before the order, too
            self._enforce(change)
            self.save(now=True)
        return change is not None

    def advance(self) -> None:
        """Judge those of whom there is news: without any nothing gets worse, and silence proves nothing."""
        now_ms = self._clock.wall_ms()
        counts, self._counts = self._counts, {}
        for tenant, row in counts.items():
            standing = self._standing(tenant)
            standing.observe(now_ms, row)
            self._is_dirty = True
            change = standing.advance(now_ms)
            if change is not None:
                self._enforce(change)

    def _standing(self, tenant: str) -> TenantStanding:
        """The tenant's, as the most recently seen one."""
        found = self._standings.pop(tenant, None)
        if found is None:
            found = TenantStanding(self._config, tenant, self._clock.wall_ms())
        self._standings[tenant] = found
        while len(self._standings) > MAX_TENANTS:
            self._forget_one()
        return found

    def _forget_one(self) -> None:
        for tenant, standing in self._standings.items():
            if standing.quality is not Quality.POOR:
                del self._standings[tenant]
                break
        else:
            tenant = next(iter(self._standings))
            del self._standings[tenant]
        self._apply(tenant)

    # -- what follows

    def _apply(self, tenant: str) -> None:
        self._sites.set_quality(tenant, self.quality_of(tenant))

    def _enforce(self, change: Change) -> None:
        self._apply(change.tenant)
        self._is_dirty = True
        self._saved_ms = 0
        fields: dict[str, Any] = {
            "tenant": change.tenant,
            "before": str(change.before),
            "state": str(change.after),
            "score": change.score,
            "reason": change.reason,
        }
        if change.tenant in self._pinned:
            fields["enforced"] = str(self._pinned[change.tenant])
        rows = [(change.at_ms, "tenant", fields)]
        log.info("tenant %s: %s", change.tenant, fields)
        if change.after is Quality.POOR:
            text = f"tenant {change.tenant} is poor: {change.reason}; {self._whereto(change.tenant)}"
            log.error("%s", text)
            rows.append((change.at_ms, "alert", {"tenant": change.tenant, "reason": text}))
        self._events.note_events(rows)

    def _whereto(self, tenant: str) -> str:
        if tenant in self._pinned:
            return f"it stays {self._pinned[tenant]}, as configured"
        if any("poor" in source.quality for source in self._sites.sources.values()):
            return "its mail goes over the pool apart"
        if any(source.tenancy.tenant == tenant for source in self._sites.sources.values()):
            return "there is no pool apart: its mail goes over its own sources only"
        return "there is no pool apart: its mail goes on over the others' sources"

    def save(self, *, now: bool = False) -> None:
        """Write what has changed: changes of class at once, counts now and then."""
        now_ms = self._clock.wall_ms()
        if not self._is_dirty or not (now or not 0 <= now_ms - self._saved_ms < SAVE_MS):
            return
        rows = {tenant: standing.to_state() for tenant, standing in self._standings.items()}
        self._spool.put_state(STATE_KEY, msgpack.packb({"version": VERSION, "tenants": rows}))
        self._saved_ms = now_ms
        self._is_dirty = False

    def listing(self) -> list[Mapping[str, object]]:
        """A row per tenant, for status pages and the CLI."""
        return [
            {
                "tenant": tenant,
                "quality": str(self.quality_of(tenant)),
                "pinned": tenant in self._pinned,
                "score": standing.score,
                "since_ms": standing.since_ms,
                "until_ms": standing.since_ms + standing.stay_ms if standing.quality is Quality.POOR else 0,
                "attempts": round(standing.attempts),
                "reason": standing.reason,
            }
            for tenant, standing in sorted(self._standings.items())
        ]

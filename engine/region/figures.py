"""The figures of a region for metrics and alerts, read from what it keeps anyway; nothing is counted for them here.

A look costs some microseconds per source and suspension, whatever the spool holds: what would take longer is counted in
the background (engine/region/depth.py) or by the sources' owners (engine/reputation/figures.py).
"""

from collections import Counter
from collections.abc import Callable, Iterable

from engine.metrics.bounding import ALL
from engine.metrics.catalogue import Point
from engine.region.allowances import Allowances
from engine.region.cover import Cover
from engine.region.depth import Depth
from engine.region.dispatch import Dispatcher
from engine.region.suspensions import Suspension
from engine.region.tally import FlowTally
from engine.spool.store import Spool
from engine.tls.ledger import TlsLedger
from engine.tls.policy import Fault
from engine.values.clock import Clock, SystemClock
from engine.warmup.warmup import provider_of

MS_PER_S = 1000
POLICY_TYPES = {
    "dane": "tlsa",
    "sts": "sts",
}  # RFC 8460 section 4.2; every other kind is no policy of the domain's
CERTIFICATE = frozenset({Fault.EXPIRED, Fault.HOST_MISMATCH, Fault.NOT_TRUSTED, Fault.STS_WEBPKI})
FINAL = ("accepted", "delivered", "bounced", "expired", "suppressed", "cancelled", "moved", "replaced")


class RegionFigures:
    """See the module docstring. `machine`: the wall clock that may jump."""

    def __init__(
        self,
        *,
        spool: Spool,
        tally: FlowTally,
        depth: Depth,
        dispatcher: Dispatcher,
        tls: TlsLedger,
        allowances: Allowances,
        cover: Cover | None,
        is_waiting: Callable[[], bool],
        clock: Clock,
        machine: Clock | None = None,
    ) -> None:
        self._spool = spool
        self._tally = tally
        self._depth = depth
        self._dispatcher = dispatcher
        self._tls = tls
        self._allowances = allowances
        self._cover = cover
        self._is_waiting = is_waiting
        self._clock = clock
        self._machine = machine or SystemClock()

    def points(self, suspensions: Iterable[Suspension]) -> list[Point]:
        """`suspensions`: those in force."""
        pools = Counter(name.provider for name in self._dispatcher.pool_names())
        offset_s = (self._machine.wall_ms() - self._clock.wall_ms()) / MS_PER_S
        return [
            *self._messages(),
            *self._tally.points(),
            *self._depth.points(),
            *(Point("sendfleet.pools", (name,), n) for name, n in pools.items()),
            *tls_points(self._tls.listing()),
            *self._sources(suspensions),
            *self._failover(),
            *self._disk(),
            Point("sendfleet.region.up", (), 1),
            Point("sendfleet.clock.offset", (), offset_s),
        ]

    def _messages(self) -> list[Point]:
        counts = self._spool.counts()
        return [
            Point("sendfleet.messages.queued", (), counts["queued"]),
            *(Point("sendfleet.ledger.messages", (word,), counts[word]) for word in FINAL if word in counts),
        ]

    def _sources(self, suspensions: Iterable[Suspension]) -> list[Point]:
        now_ms = self._clock.wall_ms()
        held = Counter((provider_of(s.site), s.source or ALL) for s in suspensions if s.until_ms > now_ms)
        unserved = Counter(
            (provider_of(site), "held" if breach.kept is None else "trickle")
            for site, breach in self._allowances.breaches()
        )
        return [
            *(Point("sendfleet.suspensions", place, count) for place, count in held.items()),
            *(Point("sendfleet.streams.unserved", place, count) for place, count in unserved.items()),
        ]

    def _failover(self) -> list[Point]:
        if self._cover is None:
            return [Point("sendfleet.region.waiting", (), int(self._is_waiting()))]
        status = self._cover.figures()
        return [
            Point("sendfleet.lease.held", (), status["has_lease"]),
            Point("sendfleet.replication.covered", (), status["standby_in_reach"]),
            Point("sendfleet.replication.complete", (), status["standby_complete"]),
            Point("sendfleet.replication.lag", (), status["standby_lacks"]),
            Point("sendfleet.failover.epoch", (), status["epoch"]),
            Point("sendfleet.failover.adopted", (), status["adopted"]),
            Point("sendfleet.failover.given_up", (), status["given_up"]),
            Point("sendfleet.failover.degraded", (), status["degraded_receipts"]),
        ]

    def _disk(self) -> list[Point]:
        sizes, room = self._spool.sizes(), self._spool.room()
        return [
            Point("sendfleet.spool.index.usage", (), room["index_used"]),
            Point("sendfleet.spool.index.limit", (), room["index_limit"]),
            Point("sendfleet.spool.bodies.usage", (), sizes["body_bytes"]),
            Point("sendfleet.spool.disk.free", (), room["free"]),
            Point("sendfleet.spool.disk.reserve", (), room["reserve"]),
            Point("sendfleet.spool.commits", (), sizes["groups"]),
            Point("sendfleet.spool.commit.time", (), sizes["busy_ms"] / MS_PER_S),
            Point("sendfleet.spool.operations", (), sizes["operations"]),
            Point("sendfleet.outbox.chunks", (), room["outbox_chunks"]),
        ]


def tls_points(listing: Iterable[dict[str, object]]) -> list[Point]:
    """What a TLS ledger lists (engine/tls/ledger.py), by policy type and result."""
    results: Counter[tuple[str, str]] = Counter()
    for row in listing:
        policy = POLICY_TYPES.get(str(row["policy"]), "no-policy-found")
        result = "plaintext" if row["verified"] == "plain" else str(row["fault"]) or "successful"
        if result.startswith("sts-"):
            policy = "sts"
        results[policy, result] += int(str(row["sessions"]))
    certificates: Counter[str] = Counter()
    for (_, result), count in results.items():
        if result in CERTIFICATE:
            certificates[result] += count
    plain = sum(count for (_, result), count in results.items() if result == "plaintext")
    return [
        *(Point("sendfleet.tls.sessions", place, count) for place, count in results.items()),
        *(Point("sendfleet.tls.certificate.errors", (name,), n) for name, n in certificates.items()),
        Point("sendfleet.tls.plaintext.sessions", (), plain),
    ]

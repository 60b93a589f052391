"""Every metric of a fleet: name, kind, unit, labels, meaning.

Names and units follow OpenTelemetry's semantic conventions, and are its own where it has one (process.*, system.*);
the Prometheus name is derived by its rules: dots become underscores, the unit is appended, and `_total` to a counter.
Each metric has the label `region`, and of a shard `shard`, before those that are named here.

No label is a domain, a host, a tenant, a campaign or an address: the values of every label are a fixed set, or the
providers and sources of the configuration, of which a bounded number is told apart (engine/metrics/bounding.py).

docs/monitoring.md has this table; a test compares.
"""

from enum import StrEnum
from typing import NamedTuple

REGION = "region"
SHARD = "shard"


class Kind(StrEnum):
    """A counter only rises, and begins anew at 0 when its process does, unless its text says otherwise."""

    COUNTER = "counter"
    GAUGE = "gauge"


class Merge(StrEnum):
    """What one figure is made of several that have the same labels."""

    SUM = "sum"
    MAX = "max"
    MIN = "min"


class Metric(NamedTuple):
    """`labels`: beside `region`. `unit` by UCUM: `s`, `By`, or a word in braces that says what is counted."""

    name: str
    kind: Kind
    unit: str
    labels: tuple[str, ...]
    text: str
    merge: Merge = Merge.SUM

    @property
    def prometheus(self) -> str:
        """As Prometheus names it."""
        return "_".join([self.name.replace(".", "_"), *_SUFFIX.get(self.unit, ()), *self._total()])

    def _total(self) -> tuple[str, ...]:
        return ("total",) if self.kind is Kind.COUNTER else ()


class Point(NamedTuple):
    """A figure of a metric; `labels` are the values, in the catalogue's order, without that of `region`."""

    metric: str
    labels: tuple[str, ...]
    value: float


_SUFFIX = {"s": ("seconds",), "By": ("bytes",)}

C, G = Kind.COUNTER, Kind.GAUGE
_FLOW = ("stream", "provider")
_SOURCE = ("provider", "source")

_TABLE = (
    # -- mail
    Metric(
        "sendfleet.ledger.messages",
        C,
        "{message}",
        ("word",),
        "Messages by what the spool says of them: accepted, delivered, bounced, expired, suppressed, cancelled. "
        "Counted over the life of the spool, as `sendfleet audit` does.",
    ),
    Metric("sendfleet.messages.queued", G, "{message}", (), "Messages in the spool, whatever they wait for."),
    Metric(
        "sendfleet.messages.accepted",
        C,
        "{message}",
        ("stream",),
        "Messages that receipts were given for, without those that were suppressed at once.",
    ),
    Metric(
        "sendfleet.outcomes",
        C,
        "{message}",
        (*_FLOW, "outcome"),
        "What became of messages: delivered, deferred, bounced, expired. A deferred message is counted each time.",
    ),
    Metric(
        "sendfleet.attempts",
        C,
        "{attempt}",
        ("provider",),
        "Attempts to deliver, as far as pools have reported them.",
    ),
    Metric(
        "sendfleet.messages.waiting",
        G,
        "{message}",
        (*_FLOW, "state"),
        "Messages by what they wait for: their time (scheduled), their turn (ready), an answer (in_flight), tomorrow's "
        "cap or their turn at the slow pace of a warm-up (held). Counted in the index now and then; the provider of "
        "mail that has no route yet is `unknown`.",
    ),
    Metric(
        "sendfleet.messages.ready.age",
        G,
        "s",
        _FLOW,
        "How long the message has been due that has been due for longest.",
        Merge.MAX,
    ),
    Metric(
        "sendfleet.messages.waiting.age",
        G,
        "s",
        (),
        "How old the figures of the two metrics before are. A deep spool is counted less often.",
        Merge.MAX,
    ),
    # -- sessions
    Metric("sendfleet.sessions.open", G, "{session}", _SOURCE, "Sessions open or being opened."),
    Metric(
        "sendfleet.sessions.limit",
        G,
        "{session}",
        _SOURCE,
        "Sessions allowed at the sites in use: by the provider's profile, its shaping, the source's standing.",
    ),
    Metric(
        "sendfleet.sessions.refused",
        C,
        "{session}",
        _SOURCE,
        "How often a session was wanted for mail that is due, and the limit of connections was reached.",
    ),
    Metric("sendfleet.pools", G, "{process}", ("provider",), "Processes that deliver."),
    # -- TLS
    Metric(
        "sendfleet.tls.sessions",
        C,
        "{session}",
        ("policy", "result"),
        "Sessions, and attempts at one, by the policy's type (tlsa, sts, no-policy-found) and by result, both as in "
        "RFC 8460: `successful`, or why the policy was not met. `injected-plaintext` is reported to domains as "
        "validation-failure; `plaintext` is a session without TLS by a written exception.",
    ),
    Metric(
        "sendfleet.tls.certificate.errors",
        C,
        "{session}",
        ("result",),
        "Those of them that a certificate has failed: certificate-expired, certificate-host-mismatch, "
        "certificate-not-trusted, sts-webpki-invalid.",
    ),
    Metric(
        "sendfleet.tls.plaintext.sessions",
        C,
        "{session}",
        (),
        "Sessions without TLS, by an exception in `tls.exceptions`.",
    ),
    # -- sources
    Metric(
        "sendfleet.suspensions",
        G,
        "{suspension}",
        _SOURCE,
        "Suspensions in force. The source of one that holds for all is `all`.",
    ),
    Metric(
        "sendfleet.source.score",
        G,
        "{point}",
        _SOURCE,
        "Reputation score, 0 to 100; of several sites of a provider the worst. `all` is the source as a whole.",
        Merge.MIN,
    ),
    Metric(
        "sendfleet.source.sites",
        G,
        "{site}",
        (*_SOURCE, "state"),
        "Sites by the source's standing there: active, warming, degraded, removed, probation. The provider `all` is "
        "the source as a whole.",
    ),
    Metric(
        "sendfleet.streams.unserved",
        G,
        "{stream}",
        ("provider", "floor"),
        "Streams without a source in the rotation at a site: one trickles (`trickle`), or the mail is held (`held`).",
    ),
    Metric(
        "sendfleet.warmup.cap",
        G,
        "{message}",
        _SOURCE,
        "What the warm-up's stages allow today; none: no cap.",
    ),
    Metric("sendfleet.warmup.attempts", G, "{message}", _SOURCE, "What of it has been used today."),
    Metric("sendfleet.warmup.delivered", G, "{message}", _SOURCE, "What of that was delivered."),
    Metric(
        "sendfleet.warmup.held",
        G,
        "{day}",
        _SOURCE,
        "Days for which a stage has been held: not enough was delivered, or the score is low.",
        Merge.MAX,
    ),
    # -- failover
    Metric("sendfleet.region.up", G, "{flag}", (), "1 if the region's actor answers, else 0.", Merge.MIN),
    Metric(
        "sendfleet.region.waiting",
        G,
        "{flag}",
        (),
        "1 while it sends nothing because not every region may go on without copies, else 0. Only without `replicas`.",
        Merge.MAX,
    ),
    Metric(
        "sendfleet.lease.held",
        G,
        "{flag}",
        (),
        "1 while the region has a lease and is live, else 0. Only with `fleet.replicas`.",
        Merge.MIN,
    ),
    Metric(
        "sendfleet.replication.covered",
        G,
        "{flag}",
        (),
        "1 while another region takes copies, else 0. Only with `fleet.replicas`, as the next six.",
        Merge.MIN,
    ),
    Metric(
        "sendfleet.replication.complete",
        G,
        "{flag}",
        (),
        "1 while that region has a copy of everything that is owed one, else 0.",
        Merge.MIN,
    ),
    Metric("sendfleet.replication.lag", G, "{message}", (), "Messages whose copies are still missing."),
    Metric("sendfleet.failover.epoch", G, "{epoch}", (), "Number of the lease's epoch.", Merge.MAX),
    Metric("sendfleet.failover.adopted", C, "{message}", (), "Messages adopted from other regions."),
    Metric("sendfleet.failover.given_up", C, "{message}", (), "Messages given up to a region that had them."),
    Metric(
        "sendfleet.failover.degraded",
        C,
        "{receipt}",
        (),
        "Receipts, one for a batch, that were given without a copy, or while more than one region was away.",
    ),
    # -- spool
    Metric("sendfleet.spool.index.usage", G, "By", (), "Size of the index."),
    Metric(
        "sendfleet.spool.index.limit", G, "By", (), "Size of the index at which nothing more is accepted."
    ),
    Metric("sendfleet.spool.bodies.usage", G, "By", (), "Size of the body segments."),
    Metric("sendfleet.spool.disk.free", G, "By", (), "Free space on the spool's disk.", Merge.MIN),
    Metric(
        "sendfleet.spool.disk.reserve",
        G,
        "By",
        (),
        "Free space below which nothing more is accepted.",
        Merge.MAX,
    ),
    Metric("sendfleet.spool.commits", C, "{commit}", (), "Group commits, each synced to disk."),
    Metric("sendfleet.spool.commit.time", C, "s", (), "Time spent on them: per commit, its latency."),
    Metric("sendfleet.spool.operations", C, "{operation}", (), "Operations in them."),
    Metric("sendfleet.outbox.chunks", G, "{chunk}", (), "Chunks of events that are not in the log yet."),
    # -- processes and machine
    Metric(
        "process.cpu.time",
        C,
        "s",
        ("actor",),
        "CPU time, user and system, of the region, of each pool (pool:NAME), of all sources together, of the gateway.",
    ),
    Metric(
        "process.memory.usage", G, "By", ("actor",), "Resident memory, with the mapped pages of the spool."
    ),
    Metric("sendfleet.memory.anonymous", G, "By", ("actor",), "Resident memory without pages of files."),
    Metric(
        "process.unix.file_descriptor.count", G, "{file_descriptor}", ("actor",), "Open files and sockets."
    ),
    Metric(
        "sendfleet.file_descriptor.limit",
        G,
        "{file_descriptor}",
        ("actor",),
        "How many a process may have open (RLIMIT_NOFILE).",
    ),
    Metric(
        "sendfleet.loop.lag",
        G,
        "s",
        ("actor",),
        "The longest time in the last minute for which an event loop was late. Not measured of sources.",
        Merge.MAX,
    ),
    Metric(
        "system.cpu.time", C, "s", ("cpu.mode",), "Time of all cores of the node: idle, and busy.", Merge.MAX
    ),
    Metric(
        "system.memory.usage", G, "By", (), "Memory of the node in use, without what caches hold.", Merge.MAX
    ),
    Metric(
        "system.memory.limit",
        G,
        "By",
        (),
        "Memory that there is: of the node, or what its control group allows.",
        Merge.MIN,
    ),
    Metric(
        "sendfleet.clock.offset",
        G,
        "s",
        (),
        "The machine's wall clock minus the engine's, which never jumps and follows slowly.",
        Merge.MAX,
    ),
)

CATALOGUE: dict[str, Metric] = {metric.name: metric for metric in _TABLE}


def label_names(metric: Metric) -> tuple[str, ...]:
    """All labels of its points, `region` and `shard` first."""
    return (REGION, SHARD, *metric.labels)


def place_of(name: str, shard_of: str | None) -> dict[str, str]:
    """The first labels of what a region of one node has counted, or a shard of a region of several."""
    return {REGION: name} if shard_of is None else {REGION: shard_of, SHARD: name}

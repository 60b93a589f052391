"""The alert rules: what each looks for in a region's figures. Thresholds are in fleet.yaml (engine/config/alerts.py).

A rule finds what it is about, as a value and its limit, once per provider at most: the number of alerts is bounded by
the configuration, and names of sources stand in the text. What it does not find is in order.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from engine.config.alerts import AlertsConfig
from engine.metrics.bounding import UNKNOWN
from engine.metrics.look import Look

NAMED = 5  # sources that a text names
FINE = ("successful", "plaintext")
DUE = ("ready", "in_flight")


@dataclass(frozen=True, slots=True)
class Found:
    """`value` against `limit` at `where` ("" for the region itself); bad if `is_bad`, good again if `is_good`: between
    the two an alert stays what it is."""

    where: str
    value: float
    limit: float
    text: str
    is_bad: bool
    is_good: bool


@dataclass(frozen=True, slots=True)
class Rule:
    """`name` is that of its entry in `alerts`; `metrics` are those it reads; `find(look, entry)`."""

    name: str
    summary: str
    metrics: tuple[str, ...]
    find: Callable[[Look, Any], Iterable[Found]]


BETTER = 0.9  # of the limit


def _above(where: str, value: float, limit: float, text: str) -> Found:
    return Found(where, value, limit, text, is_bad=value >= limit, is_good=value < limit * BETTER)


def _flag(where: str, is_bad: bool, text: str, value: float = 1.0) -> Found:
    return Found(where, value if is_bad else 0.0, 1.0, text, is_bad=is_bad, is_good=not is_bad)


def _names(names: Iterable[str]) -> str:
    found = sorted(set(names))
    return ", ".join(found[:NAMED]) + (f" and {len(found) - NAMED} more" if len(found) > NAMED else "")


def _due(look: Look) -> dict[str, float]:
    """Messages that are due, by provider, those on the wire with them; not what a cap or a slow pace holds."""
    due: dict[str, float] = {}
    for (_, provider, state), value in look.rows("sendfleet.messages.waiting"):
        if state in DUE:
            due[provider] = due.get(provider, 0.0) + value
    return due


def _queue_depth(look: Look, entry: Any) -> Iterator[Found]:
    rows = look.rows("sendfleet.messages.waiting")
    ready = sum(value for (_, _, state), value in rows if state in ("ready", "held"))
    yield _above("", ready, entry.above, f"{ready:.0f} messages are due and wait for their turn")


def _outcomes(look: Look, window_s: float = 0.0) -> dict[tuple[str, str], float]:
    """By provider and outcome, since the last look or within a time."""
    seen: dict[tuple[str, str], float] = {}
    for (_, provider, outcome), value in look.increases("sendfleet.outcomes", window_s):
        seen[provider, outcome] = seen.get((provider, outcome), 0.0) + value
    return seen


def _delivered(seen: dict[tuple[str, str], float], provider: str) -> float:
    if provider == UNKNOWN:
        return sum(value for (_, outcome), value in seen.items() if outcome == "delivered")
    return seen.get((provider, "delivered"), 0.0)


def _stall(look: Look, entry: Any) -> Iterator[Found]:
    """Bad as long as no look finds a delivery, so it fires `after` the last one; good if there was one in that time.

    Mail without a route is never delivered as such, and some domains' DNS always fails: it stalls with all the rest.
    """
    if not look.has_before:
        return
    now, lately = _outcomes(look), _outcomes(look, entry.after)
    due = _due(look)
    queued = look.value("sendfleet.messages.queued")
    for provider in {*due, *(name for name, _ in lately)}:
        waits, deferrals = due.get(provider, 0.0), lately.get((provider, "deferred"), 0.0)
        has_mail = queued > 0 and (waits > 0 or deferrals >= entry.deferrals)
        is_stalled = has_mail and not _delivered(now, provider)
        is_good = not has_mail or _delivered(lately, provider) > 0
        text = f"nothing is delivered to {provider}: {waits:.0f} messages are due, {deferrals:.0f} were put off lately"
        yield Found(provider, waits or deferrals, 1.0, text, is_stalled, is_good)


def _cpu(look: Look, entry: Any) -> Iterator[Found]:
    if not look.span_s:
        return
    shares = [
        (value / look.span_s, actor)
        for (actor,), value in look.increases("process.cpu.time")
        if actor == "region" or actor.startswith("pool:")
    ]
    share, actor = max(shares, default=(0.0, ""))
    node = {mode: value for (mode,), value in look.increases("system.cpu.time")}
    together = sum(node.values())
    busy = node.get("busy", 0.0) / together if together else 0.0
    text = f"{actor} uses {share:.0%} of its core" if share >= busy else f"the node is busy for {busy:.0%}"
    yield _above("", max(share, busy), entry.above, text)


def _memory(look: Look, entry: Any) -> Iterator[Found]:
    limit = look.value("system.memory.limit")
    if limit:
        share = look.value("system.memory.usage") / limit
        yield _above("", share, entry.above, f"{share:.0%} of {limit / 2**30:.1f} GiB memory is in use")


def _disk(look: Look, entry: Any) -> Iterator[Found]:
    limit = look.value("sendfleet.spool.index.limit")
    if not limit:
        return
    share = look.value("sendfleet.spool.index.usage") / limit
    yield _above("index", share, entry.above, f"{share:.0%} of the room in the index is used")
    free, reserve = look.value("sendfleet.spool.disk.free"), look.value("sendfleet.spool.disk.reserve")
    wanted = reserve * entry.reserves
    text = f"{free / 2**30:.2f} GiB are free; below {reserve / 2**30:.2f} GiB nothing is accepted"
    yield Found("disk", free, wanted, text, is_bad=free <= wanted, is_good=free > wanted / BETTER)


def _connections(look: Look, entry: Any) -> Iterator[Found]:
    limits = dict(look.rows("sendfleet.sessions.limit"))
    refused = dict(look.increases("sendfleet.sessions.refused"))
    worst: dict[str, float] = {}
    full: dict[str, list[str]] = {}
    for place, value in look.rows("sendfleet.sessions.open"):
        provider, source = place
        share = value / limits[place] if limits.get(place) and refused.get(place) else 0.0
        worst[provider] = max(share, worst.get(provider, 0.0))
        if share >= entry.above:
            full.setdefault(provider, []).append(source)
    for provider, share in worst.items():
        text = f"no more sessions to {provider} are allowed from {_names(full.get(provider, ()))}, and mail waits"
        yield _above(provider, share, entry.above, text)


def _files(look: Look, entry: Any) -> Iterator[Found]:
    limits = dict(look.rows("sendfleet.file_descriptor.limit"))
    shares = [
        (value / limits[actor], actor[0])
        for actor, value in look.rows("process.unix.file_descriptor.count")
        if limits.get(actor)
    ]
    share, actor = max(shares, default=(0.0, ""))
    yield _above("", share, entry.above, f"{actor} has {share:.0%} of its files and sockets open")


def _lag(look: Look, entry: Any) -> Iterator[Found]:
    rows = [(value, actor) for (actor,), value in look.rows("sendfleet.loop.lag")]
    lag, actor = max(rows, default=(0.0, ""))
    yield _above("", lag, entry.above, f"the event loop of {actor} was {lag:.1f} s late")


def _tls(look: Look, entry: Any) -> Iterator[Found]:
    failed: dict[str, float] = {}
    total = 0.0
    for (_, result), value in look.increases("sendfleet.tls.sessions", entry.window):
        total += value
        if result not in FINE and value:
            failed[result] = failed.get(result, 0.0) + value
    count = sum(failed.values())
    share = count / total if total else 0.0
    kinds = ", ".join(f"{name} {value:.0f}" for name, value in sorted(failed.items()))
    text = f"of {total:.0f} sessions {count:.0f} did not meet their policy: {kinds}"
    is_bad = share >= entry.above and count >= entry.at_least
    is_good = share < entry.above * BETTER or count < entry.at_least * BETTER
    yield Found("", share, entry.above, text, is_bad, is_good)


def _reputation(look: Look, entry: Any) -> Iterator[Found]:
    out: dict[str, list[str]] = {}
    for (provider, source, state), value in look.rows("sendfleet.source.sites"):
        if state == "removed" and value:
            out.setdefault(provider, []).append(source)
    for provider, sources in out.items():
        where = "everywhere" if provider == "all" else f"at {provider}"
        text = f"out of the rotation {where}: {_names(sources)}"
        yield _flag(provider, True, text, len(sources))


def _floor(look: Look, entry: Any) -> Iterator[Found]:
    lost: dict[str, dict[str, float]] = {}
    for (provider, floor), value in look.rows("sendfleet.streams.unserved"):
        if value:
            lost.setdefault(provider, {})[floor] = value
    for provider, floors in lost.items():
        held = ", ".join(f"{value:.0f} {floor}" for floor, value in sorted(floors.items()))
        text = f"streams without a source in the rotation at {provider}: {held}"
        yield _flag(provider, True, text, sum(floors.values()))


def _warmup(look: Look, entry: Any) -> Iterator[Found]:
    held: dict[str, dict[str, float]] = {}
    for (provider, source), value in look.rows("sendfleet.warmup.held"):
        held.setdefault(provider, {})[source] = value
    for provider, sources in held.items():
        days = max(sources.values())
        late = _names(source for source, value in sources.items() if value >= entry.above)
        text = f"the warm-up at {provider} has not got on for {days:.0f} days: {late}"
        yield Found(provider, days, entry.above, text, is_bad=days >= entry.above, is_good=days < entry.above)


def _region(look: Look, entry: Any) -> Iterator[Found]:
    yield _flag("", look.value("sendfleet.region.up") == 0, "the region does not answer")
    for _, value in look.rows("sendfleet.lease.held"):
        yield _flag("lease", value == 0, "the region has no lease and sends nothing")
    for _, value in look.rows("sendfleet.region.waiting"):
        text = "the region sends nothing: not every region may go on without copies"
        yield _flag("waiting", value == 1, text)


def _replication(look: Look, entry: Any) -> Iterator[Found]:
    for _, value in look.rows("sendfleet.replication.covered"):
        yield _flag("", value == 0, "no other region takes copies of what is accepted")


def _degraded(look: Look, entry: Any) -> Iterator[Found]:
    count = sum(value for _, value in look.increases("sendfleet.failover.degraded", entry.window))
    text = f"{count:.0f} receipts were given without a copy, or while more than one region was away"
    yield _above("", count, entry.above, text)


def _clock(look: Look, entry: Any) -> Iterator[Found]:
    offset = look.value("sendfleet.clock.offset")
    text = f"the machine's clock is {abs(offset):.0f} s {'ahead of' if offset > 0 else 'behind'} the engine's"
    yield _above("", abs(offset), entry.above, text)


RULES = (
    Rule("queue_depth", "Mail gathers.", ("sendfleet.messages.waiting",), _queue_depth),
    Rule(
        "stall",
        "Mail is due for a provider, and none is delivered.",
        ("sendfleet.messages.waiting", "sendfleet.outcomes", "sendfleet.messages.queued"),
        _stall,
    ),
    Rule("cpu", "A process or the node is busy.", ("process.cpu.time", "system.cpu.time"), _cpu),
    Rule("memory", "Memory runs out.", ("system.memory.usage", "system.memory.limit"), _memory),
    Rule(
        "disk",
        "The spool runs out of room: soon nothing more is accepted.",
        (
            "sendfleet.spool.index.usage",
            "sendfleet.spool.index.limit",
            "sendfleet.spool.disk.free",
            "sendfleet.spool.disk.reserve",
        ),
        _disk,
    ),
    Rule(
        "connections",
        "Limits of connections hold mail back.",
        ("sendfleet.sessions.open", "sendfleet.sessions.limit", "sendfleet.sessions.refused"),
        _connections,
    ),
    Rule(
        "files",
        "A process runs out of files and sockets.",
        ("process.unix.file_descriptor.count", "sendfleet.file_descriptor.limit"),
        _files,
    ),
    Rule("lag", "An event loop is late.", ("sendfleet.loop.lag",), _lag),
    Rule("tls", "Policies of TLS are not met.", ("sendfleet.tls.sessions",), _tls),
    Rule("reputation", "A source has left the rotation somewhere.", ("sendfleet.source.sites",), _reputation),
    Rule(
        "floor", "A stream has no source in the rotation somewhere.", ("sendfleet.streams.unserved",), _floor
    ),
    Rule("warmup", "A warm-up does not get on.", ("sendfleet.warmup.held",), _warmup),
    Rule(
        "region",
        "A region does not answer, or has no lease, or waits to go on without copies.",
        ("sendfleet.region.up", "sendfleet.lease.held", "sendfleet.region.waiting"),
        _region,
    ),
    Rule("replication", "No other region takes copies.", ("sendfleet.replication.covered",), _replication),
    Rule("degraded", "Mail was accepted without a copy.", ("sendfleet.failover.degraded",), _degraded),
    Rule("clock", "The machine's clock has jumped.", ("sendfleet.clock.offset",), _clock),
)


def entry_of(config: AlertsConfig, rule: Rule) -> Any:
    """The rule's entry in the configuration."""
    return getattr(config, rule.name)

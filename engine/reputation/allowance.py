"""The messages between a region and a source's owner: summaries of what happened, and the answers to them.

A region reports every source now and then, sooner when there is news. The owner answers with the allowances that
have changed since its last answer, with the events the region has not seen yet, and with the time by which it wants
to be asked again. When `full` is set, because the region has just started or has lost an answer, the answer has every
allowance that is not the default, and all others are the default. The allowance of site "" holds at every site that
has none of its own.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import Any

import msgpack

FULL = 1000
EVERYWHERE = ""


@dataclass(frozen=True, slots=True)
class SiteCounts:
    """Attempts of one source at one site since the last summary.

    `blocked`, `tls_failures`: how many of them were refused because of the source, or found no TLS. `replies`: those
    that an automation rule matches, (text, how many). `excused`: attempts put off for a reason that lies with the
    recipient (greylisting, a full mailbox), not among the `deferred`. `timed` transactions took
    2 ** (`log2_us` / `timed`) microseconds on average; the site `refused` so many connections while others were open,
    and `most` were open at once.
    """

    site: str
    delivered: int
    deferred: int
    bounced: int
    blocked: int
    complaints: int = 0
    tls_failures: int = 0
    replies: tuple[tuple[str, int], ...] = ()
    excused: int = 0
    timed: int = 0
    log2_us: float = 0.0
    refused: int = 0
    most: int = 0


@dataclass(frozen=True, slots=True)
class Summary:
    """`seen`: number of the last event that the region has on disk. `listed`: what block lists say of the source, ""
    for nothing, None if it is not known."""

    at_ms: int
    full: bool
    seen: int
    rows: tuple[SiteCounts, ...]
    listed: str | None = None


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a source may do at a site. Defaults: everything that the provider's profile allows.

    `weight` 0 to 1000 in the choice among sources, 0: out of the rotation. `rate` permille of the profile's rate,
    `connections` at once (0: the profile's), `interval_us` between messages at least, `daily_cap` per UTC day
    (-1: none of its own) and `daily_used` of it on the UTC day number `used_day`, as far as the owner knows.
    Suspensions are unix milliseconds. `adapted`: connections that the site bears at the moment (0: all that are
    allowed).
    """

    site: str
    state: str = "active"
    score: int = 100
    weight: int = FULL
    rate: int = FULL
    connections: int = 0
    interval_us: int = 0
    daily_cap: int = -1
    daily_used: int = 0
    suspended_until_ms: int = 0
    netblock_until_ms: int = 0
    provider_until_ms: int = 0
    reason: str = ""
    adapted: int = 0
    used_day: int = 0

    def at_once(self) -> int:
        """Connections at once by both limits, 0: the profile's."""
        limits = [limit for limit in (self.connections, self.adapted) if limit]
        return min(limits, default=0)


def both(here: Allowance, everywhere: Allowance) -> Allowance:
    """The less of what holds at a site and what holds everywhere: an owner that has forgotten a site says the latter
    only."""
    if everywhere.state == Allowance(EVERYWHERE).state:
        return here
    limits = [allowance.connections for allowance in (here, everywhere) if allowance.connections]
    return replace(
        here,
        state=everywhere.state if here.weight >= everywhere.weight else here.state,
        score=min(here.score, everywhere.score),
        weight=min(here.weight, everywhere.weight),
        rate=min(here.rate, everywhere.rate),
        connections=min(limits, default=0),
        interval_us=max(here.interval_us, everywhere.interval_us),
        reason=everywhere.reason if here.weight > everywhere.weight else here.reason,
    )


@dataclass(frozen=True, slots=True)
class SourceEvent:
    """Something that operators should see. `kind`: reputation, warmup, shaping, alert."""

    number: int
    at_ms: int
    kind: str
    site: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """`review_ms`: ask again by then, also without news; 0: no wish."""

    review_ms: int
    allowances: tuple[Allowance, ...]
    events: tuple[SourceEvent, ...]


# in the order of the constructors; dataclasses.astuple would copy each value deeply
_COUNTS = attrgetter(*(field.name for field in fields(SiteCounts)))
_ALLOWANCE = attrgetter(*(field.name for field in fields(Allowance)))


def encode_summary(summary: Summary) -> bytes:
    rows = [_COUNTS(row) for row in summary.rows]
    return bytes(msgpack.packb((summary.at_ms, summary.full, summary.seen, rows, summary.listed)))


def decode_summary(data: bytes) -> Summary:
    at_ms, full, seen, rows, listed = msgpack.unpackb(data)
    return Summary(at_ms, full, seen, tuple(_counts(row) for row in rows), listed)


def _counts(row: Sequence[Any]) -> SiteCounts:
    values = list(row)
    values[7] = tuple((text, count) for text, count in row[7])  # `replies`
    return SiteCounts(*values)


def encode_answer(answer: Answer) -> bytes:
    events = [(e.number, e.at_ms, e.kind, e.site, dict(e.fields)) for e in answer.events]
    return bytes(msgpack.packb((answer.review_ms, encode_allowances(answer.allowances), events)))


def decode_answer(data: bytes) -> Answer:
    review_ms, allowances, events = msgpack.unpackb(data)
    return Answer(review_ms, tuple(decode_allowances(allowances)), tuple(SourceEvent(*row) for row in events))


def encode_allowances(allowances: Iterable[Allowance]) -> bytes:
    return bytes(msgpack.packb([_ALLOWANCE(allowance) for allowance in allowances]))


def decode_allowances(data: bytes) -> list[Allowance]:
    return [Allowance(*row) for row in msgpack.unpackb(data)]

"""The two messages between a region and a source's owner: a summary of outcomes, and the allowances that follow."""

from collections.abc import Iterable
from dataclasses import dataclass

import msgpack


@dataclass(frozen=True, slots=True)
class SiteCounts:
    """Attempts of one source at one site since the last summary. `reply` is the last one that blocked the source."""

    site: str
    delivered: int
    deferred: int
    bounced: int
    blocked: int
    reply: str
    complaints: int = 0
    tls_failures: int = 0


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a source may do at a site: `weight` 0 to 1000 in the choice among sources, and a suspension."""

    site: str
    weight: int
    suspended_until_ms: int
    reason: str


def encode_summary(at_ms: int, counts: dict[str, list[object]]) -> bytes:
    return bytes(msgpack.packb((at_ms, counts)))


def decode_summary(data: bytes) -> tuple[int, list[SiteCounts]]:
    at_ms, counts = msgpack.unpackb(data)
    return at_ms, [SiteCounts(site, *row) for site, row in counts.items()]


def encode_allowances(allowances: Iterable[Allowance]) -> bytes:
    return bytes(msgpack.packb([(a.site, a.weight, a.suspended_until_ms, a.reason) for a in allowances]))


def decode_allowances(data: bytes) -> list[Allowance]:
    return [Allowance(*row) for row in msgpack.unpackb(data)]

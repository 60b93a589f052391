"""What goes between a region and its pools: entries out, reports back. Fixed layouts, encoded once per batch.

deliver(header, entries): header is msgpack {"batch", "epoch", "sites": {number: name}, "paces": [[source, number,
interval_ns, connections], ...]}; entries are the 40 byte records of the scheduler's take(). A report is msgpack
[sequence, epoch, outcomes, notices, findings, pulses], where a notice is [what it is about, text], for whoever operates
the fleet, findings are those of engine/tls/tally.py, and pulses of engine/delivery/pulse.py; the answer to resume is
msgpack [sequence, outcomes, ids in progress (8 bytes each, little endian), sources]. An outcome is [id, kind, scope,
code, enhanced, text, host, source, at_ms, flags, batch number], where flags are POSSIBLE_DUPLICATE and RELAYED. assign
is told msgpack [epoch, number, sources, shard, of] and answers [sources it still has, whether it has too many
connections, [[source, site, next_ns], ...]].
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgpack

from engine.delivery.pulse import Pulse
from engine.values.outcome import Outcome, OutcomeKind, Scope
from engine.values.reply import Reply

ENTRY = struct.Struct("<QqIHHIIQ")
ID = struct.Struct("<Q")
POSSIBLE_DUPLICATE = 1
RELAYED = 2

# by value: looking up costs a tenth of calling the enumeration
_KINDS = {int(kind): kind for kind in OutcomeKind}
_SCOPES = {str(scope): scope for scope in Scope}

OutcomeRow: TypeAlias = tuple[int, int, str, int, str, str, str, int, int, int, int]


@dataclass(frozen=True, slots=True)
class Header:
    """`sites`: number of a site in this region -> its name. `paces`: (source, number of the site) -> (interval_ns,
    connections) where they are not those of the profile. `term`: the lease's epoch (engine/region/lease_file.py), 0 in
    a fleet without copies."""

    batch: int
    epoch: int
    sites: dict[int, str]
    paces: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    term: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """`batch_numbers[i]` is the batch in which `outcomes[i].id` was handed over."""

    sequence: int
    epoch: int
    outcomes: tuple[Outcome, ...]
    batch_numbers: tuple[int, ...]
    notices: tuple[tuple[str, str], ...] = ()
    findings: bytes = b""
    pulses: tuple[Pulse, ...] = ()


@dataclass(frozen=True, slots=True)
class ResumeState:
    """What a pool that outlived its region knows. Acknowledging `sequence` lets it forget `outcomes`. `sources` are
    those that it was last told to carry."""

    sequence: int
    outcomes: tuple[Outcome, ...]
    batch_numbers: tuple[int, ...]
    in_progress: tuple[int, ...]
    sources: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one process of a pool may use: these sources, and part number `shard` of `of` of what all sources may use
    together at a site. Of two, the one with the greater (`epoch`, `number`) holds."""

    epoch: int
    number: int
    sources: tuple[int, ...]
    shard: int = 0
    of: int = 1


@dataclass(frozen=True, slots=True)
class Holding:
    """What a process of a pool still has of what it may use no longer.

    `left`: sources with a session or a message. `is_over`: more connections to a site than its part. `paces`: (source,
    site, monotonic nanoseconds before which no transaction may begin), of sources that it does not carry.
    """

    left: tuple[int, ...] = ()
    is_over: bool = False
    paces: tuple[tuple[int, str, int], ...] = ()


def encode_header(header: Header) -> bytes:
    paces = [[*cell, *pace] for cell, pace in header.paces.items()]
    fields: dict[str, Any] = {
        "batch": header.batch,
        "epoch": header.epoch,
        "sites": header.sites,
        "paces": paces,
    }
    if header.term:
        fields["term"] = header.term
    return bytes(msgpack.packb(fields))


def decode_header(data: bytes) -> Header:
    fields = msgpack.unpackb(data, strict_map_key=False)
    paces = {(source, site): (interval, count) for source, site, interval, count in fields["paces"]}
    return Header(fields["batch"], fields["epoch"], fields["sites"], paces, fields.get("term", 0))


def encode_report(
    sequence: int,
    epoch: int,
    rows: Sequence[OutcomeRow],
    notices: Sequence[tuple[str, str]] = (),
    findings: bytes = b"",
    pulses: Sequence[Pulse] = (),
) -> bytes:
    return bytes(msgpack.packb((sequence, epoch, rows, notices, findings, pulses)))


def decode_report(data: bytes) -> Report:
    sequence, epoch, rows, notices, findings, pulses = msgpack.unpackb(data, use_list=False)
    return Report(
        sequence,
        epoch,
        _outcomes(rows),
        tuple([row[10] for row in rows]),
        notices,
        findings,
        tuple(Pulse(*pulse) for pulse in pulses),
    )


def encode_resume(
    sequence: int, rows: Sequence[OutcomeRow], in_progress: Sequence[int], sources: Sequence[int] = ()
) -> bytes:
    return bytes(msgpack.packb((sequence, rows, b"".join(map(ID.pack, in_progress)), sources)))


def decode_resume(data: bytes) -> ResumeState:
    sequence, rows, ids, sources = msgpack.unpackb(data, use_list=False)
    return ResumeState(
        sequence,
        _outcomes(rows),
        tuple([row[10] for row in rows]),
        tuple(id_ for (id_,) in ID.iter_unpack(ids)),
        sources,
    )


def encode_assignment(told: Assignment) -> bytes:
    return bytes(msgpack.packb((told.epoch, told.number, told.sources, told.shard, told.of)))


def decode_assignment(data: bytes) -> Assignment:
    return Assignment(*msgpack.unpackb(data, use_list=False))


def encode_holding(holding: Holding) -> bytes:
    return bytes(msgpack.packb((holding.left, holding.is_over, holding.paces)))


def decode_holding(data: bytes) -> Holding:
    return Holding(*msgpack.unpackb(data, use_list=False))


def _outcomes(rows: Sequence[Sequence[Any]]) -> tuple[Outcome, ...]:
    """Made as plain tuples are, which takes a third of the time of calling their classes."""
    make = tuple.__new__
    kinds, scopes = _KINDS, _SCOPES
    found = []
    for id_, kind, scope, code, enhanced, text, host, source, at_ms, flags, _ in rows:
        reply = make(Reply, (code, enhanced, text))
        marks = (False, False) if not flags else (flags & POSSIBLE_DUPLICATE > 0, flags & RELAYED > 0)
        found.append(make(Outcome, (id_, kinds[kind], scopes[scope], reply, source, host, at_ms, *marks)))
    return tuple(found)

"""The scheduler's bytes as values: due keys and ids going in, decisions coming out."""

import struct
from collections.abc import Iterable
from typing import NamedTuple

ENTRY = struct.Struct("<QqIHHIIQ")


class Decision(NamedTuple):
    id: int
    send_at: int
    site: int
    source: int
    flags: int
    flow: int
    queue: int
    due_ms: int


def due_keys(ids: Iterable[int], *, queue: int = 1, due_ms: int = 1_000) -> bytes:
    return b"".join(queue.to_bytes(4, "big") + due_ms.to_bytes(6, "big") + n.to_bytes(8, "big") for n in ids)


def packed(ids: Iterable[int]) -> bytes:
    return b"".join(n.to_bytes(8, "little") for n in ids)


def unpacked(data: bytes) -> list[int]:
    return [n for (n,) in struct.iter_unpack("<Q", data)]


def decisions(data: bytes) -> list[Decision]:
    return [Decision(*fields) for fields in ENTRY.iter_unpack(data)]

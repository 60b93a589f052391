"""The formats on disk: keys, and versioned msgpack values.

messages  id (8, big endian) -> [1, queue, due_ms, attempts, flags, accepted_ms, expires_ms, sender, recipient,
          content, last]; content is [segment, offset, length, crc32] or [campaign number, [field values]]; last is
          None or [at_ms, code, enhanced, text, host, source]
due       queue (4) due_ms (6) id (8), big endian -> expires_ms (6)
queues    queue (4) -> [1, domain, stream, tenant, campaign]
ledger    page (8) -> 1,024 bytes, four bits per id: OutcomeKind of its last word, 0 for never accepted
"""

import struct
from dataclasses import dataclass
from typing import Any

import msgpack

VERSION = 1
DUE_KEY_SIZE = 18
MAYBE_SENT = 1  # flag: an attempt may have been accepted without our knowing

ID = struct.Struct(">Q")
pack = msgpack.Packer(use_bin_type=True).pack


class UnknownVersion(ValueError):
    """A record of a version that this release cannot read."""


@dataclass(frozen=True, slots=True)
class Record:
    """One queued message."""

    id: int
    queue: int
    due_ms: int
    attempts: int
    flags: int
    accepted_ms: int
    expires_ms: int
    sender: str
    recipient: str
    content: list[Any]
    last: list[Any] | None

    def encode(self) -> bytes:
        return encode_record(
            self.queue,
            self.due_ms,
            self.attempts,
            self.flags,
            self.accepted_ms,
            self.expires_ms,
            self.sender,
            self.recipient,
            self.content,
            self.last,
        )


def encode_record(*fields: Any) -> bytes:
    """The fields of Record after `id`, in order."""
    return bytes(pack((VERSION, *fields)))


def decode_record(id_: int, data: bytes) -> Record:
    fields = msgpack.unpackb(data)
    if fields[0] != VERSION:
        raise UnknownVersion(f"message record of version {fields[0]}: this release reads {VERSION}")
    return Record(id_, *fields[1:])


def due_key(queue: int, due_ms: int, id_: int) -> bytes:
    return queue.to_bytes(4, "big") + due_ms.to_bytes(6, "big") + id_.to_bytes(8, "big")


def u48(value: int) -> bytes:
    return value.to_bytes(6, "big")

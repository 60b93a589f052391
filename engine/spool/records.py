"""The formats on disk: keys, and versioned msgpack values.

messages  id (8, big endian) -> [2, queue, due_ms, attempts, flags, accepted_ms, expires_ms, sender, recipient,
          content, last, options]; content is [segment, offset, length, crc32] or [campaign number, [field values]];
          last is None or [at_ms, code, enhanced, text, host, source]; options is None or as engine/values/options.py
          packs them. Version 1 ended with last.
due       blocks of messages in the order of their due keys, queue (4) due_ms (6) id (8), big endian: due_blocks.py
queues    queue (4) -> [1, domain, stream, tenant, campaign]
ledger    page (8) -> 1,024 bytes, four bits per id: OutcomeKind of its last word, 0 for never accepted
"""

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack

from engine.values.options import Options, unpack_options

VERSION = 1
RECORD_VERSION = 2
DUE_KEY_SIZE = 18
MAYBE_SENT = 1  # flag: an attempt may have been accepted without our knowing

ID = struct.Struct(">Q")
pack = msgpack.Packer(use_bin_type=True).pack


class DamagedRecord(ValueError):
    """The bytes of a record are not a record. One such message is put off, and holds up no other."""


class UnknownVersion(DamagedRecord):
    """A record of a version that this release cannot read."""


class Record(NamedTuple):
    """One queued message. A tuple, because one is made per message and step."""

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
    options: Options | None = None

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
            self.options,
        )


def encode_record(
    queue: int,
    due_ms: int,
    attempts: int,
    flags: int,
    accepted_ms: int,
    expires_ms: int,
    sender: str,
    recipient: str,
    content: Sequence[Any],
    last: Sequence[Any] | None,
    options: Options | None = None,
) -> bytes:
    """The fields of Record after `id`, in order."""
    return bytes(
        pack(
            (
                RECORD_VERSION,
                queue,
                due_ms,
                attempts,
                flags,
                accepted_ms,
                expires_ms,
                sender,
                recipient,
                content,
                last,
                None if options is None else options.pack(),
            )
        )
    )


def decode_record(id_: int, data: bytes) -> Record:
    """Raises DamagedRecord."""
    try:
        fields = msgpack.unpackb(data)
        if fields[0] == RECORD_VERSION:
            if fields[11] is not None:
                fields[11] = unpack_options(fields[11])
            fields[0] = id_
            return Record._make(fields)
        if fields[0] == 1:
            return Record(id_, *fields[1:11])
    except Exception as error:  # whatever unpacking makes of arbitrary bytes
        raise DamagedRecord(f"the record of message {id_:016x} is damaged: {error!r}") from error
    raise UnknownVersion(f"message record of version {fields[0]}: this release reads 1 and {RECORD_VERSION}")


def due_key(queue: int, due_ms: int, id_: int) -> bytes:
    return queue.to_bytes(4, "big") + due_ms.to_bytes(6, "big") + id_.to_bytes(8, "big")


def u48(value: int) -> bytes:
    return value.to_bytes(6, "big")

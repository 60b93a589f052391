"""How a batch of messages travels from a client to a region: one small header and one blob with all bodies.

The header is msgpack `[version, batch_key, items]`, an item `[sender, recipients, stream, tenant, campaign,
send_at_ms, key, size, options]`, where options is a list of packed engine.values.options (version 1 had none). The
bodies stand in the blob in the order of the items, so the region can write the blob to its body segment with one call,
whatever the number of messages.

`batch_key` (16 bytes) makes the batch idempotent: a client that lost the answer sends the same bytes again.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import msgpack

from engine.values.message import ItemError, Message, Receipt
from engine.values.stream import Stream

STREAMS = frozenset(Stream)
VERSION = 2
READABLE = (1, 2)


class MalformedBatch(ValueError):
    """The bytes are not a batch of this version. Nothing of it was accepted."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A decoded header. `items` are the raw lists in the order of the module docstring; `offsets[i]` is in the blob."""

    batch_key: bytes
    items: list[list[object]]
    offsets: list[int]


def check_messages(messages: Sequence[Message]) -> None:
    """TypeError, ValueError: one of them is none, or cannot travel."""
    for index, message in enumerate(messages):
        if not isinstance(message, Message):
            raise TypeError(f"batch[{index}]: {type(message).__name__}: allowed is a Message")
        if not isinstance(message.body, bytes):
            raise TypeError(f"batch[{index}].body: {type(message.body).__name__}: allowed are bytes")
        if message.stream not in STREAMS:
            raise ValueError(
                f"batch[{index}].stream: {message.stream!r}: allowed are {', '.join(map(repr, Stream))}"
            )


def encode_submission(messages: Sequence[Message], batch_key: bytes) -> tuple[bytes, bytes]:
    """Return (header, blob). TypeError, ValueError: as `check_messages`."""
    check_messages(messages)
    items = [
        (
            m.sender,
            m.recipients,
            int(m.stream),
            m.tenant,
            m.campaign,
            m.send_at_ms,
            m.key,
            len(m.body),
            [options.pack() for options in m.options],
        )
        for m in messages
    ]
    return msgpack.packb((VERSION, batch_key, items)), b"".join([m.body for m in messages])


def decode_submission(header: bytes, blob_size: int) -> Submission:
    """Check the shape of a header against the size of its blob; raises MalformedBatch."""
    try:
        version, batch_key, items = msgpack.unpackb(header)
        if version not in READABLE:
            raise MalformedBatch(f"batch version {version!r}: this region reads versions 1 and 2")
        if not isinstance(batch_key, bytes) or len(batch_key) != 16:
            raise MalformedBatch("batch key: expected 16 bytes")
        offsets: list[int] = []
        position = 0
        for item in items:
            size = item[7]
            if type(size) is not int or size < 0:
                raise MalformedBatch(f"size of item {len(offsets)}: {size!r}: expected bytes, 0 or more")
            offsets.append(position)
            position += size
            if len(item) == 8:
                item.append([])
    except MalformedBatch:
        raise
    except Exception as error:
        raise MalformedBatch(f"batch header: {error}") from error
    if position != blob_size:
        raise MalformedBatch(f"bodies: header says {position} bytes, blob has {blob_size}")
    return Submission(batch_key=batch_key, items=items, offsets=offsets)


def encode_receipt(receipt: Receipt) -> bytes:
    errors = [(e.index, e.field, e.value, e.message) for e in receipt.errors]
    fields = (
        receipt.region,
        receipt.ids,
        errors,
        receipt.repeated,
        receipt.suppressed,
        receipt.degraded,
    )
    return bytes(msgpack.packb(fields))


def decode_receipt(data: bytes) -> Receipt:
    region, ids, errors, repeated, *later = msgpack.unpackb(data, use_list=False)
    return Receipt(
        region=region,
        ids=ids,
        errors=tuple(ItemError(*error) for error in errors),
        repeated=repeated,
        suppressed=later[0] if later else (),
        degraded=len(later) > 1 and bool(later[1]),
    )


def batch_key_of(*parts: str | bytes) -> bytes:
    """A batch key derived from names, for work that is idempotent by content (campaign chunks)."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()[:16]


def chunk_key_of(tenant: str, campaign: str, number: int, digest: bytes) -> bytes:
    """The batch key of a campaign's chunk, the same in all regions."""
    return batch_key_of("chunk", tenant, campaign, str(number), digest)

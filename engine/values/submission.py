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
from engine.values.options import OptionError, Options
from engine.values.stream import Stream

STREAMS = frozenset(Stream)
VERSION = 2
READABLE = (1, 2)
KEY_BYTES = 16
MIN_INT, MAX_INT = -(1 << 63), (1 << 63) - 1
SEND_AT = "allowed are unix milliseconds (int), 0 for now"
SHOWN = 80  # characters of a value in an error


class MalformedBatch(ValueError):
    """The bytes are not a batch of this version. Nothing of it was accepted."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A decoded header. `items` are the raw lists in the order of the module docstring; `offsets[i]` is in the blob."""

    batch_key: bytes
    items: list[list[object]]
    offsets: list[int]


def check_messages(messages: Sequence[Message]) -> None:
    """TypeError, ValueError: one of them is none, or cannot travel: index, field, value, and what is allowed. Whether
    what travels is accepted, its region says (`Receipt.errors`)."""
    for index, message in enumerate(messages):
        if not isinstance(message, Message):
            raise TypeError(f"batch[{index}]: {type(message).__name__}: allowed is a Message")
        try:
            _check_message(message)
        except (TypeError, ValueError) as error:
            raise type(error)(f"batch[{index}].{error}") from None


def check_key(key: bytes | None) -> None:
    """TypeError, ValueError: it is no key of a batch, nor None."""
    if key is None:
        return
    if not isinstance(key, bytes):
        raise TypeError(f"key: {_shown(key)}: allowed are {KEY_BYTES} bytes, or None")
    if len(key) != KEY_BYTES:
        raise ValueError(f"key: {_shown(key)}: {len(key)} bytes: allowed are {KEY_BYTES}, or None")


def _check_message(message: Message) -> None:
    _check_text("sender", message.sender)
    recipients = message.recipients
    if not isinstance(recipients, tuple | list):
        raise TypeError(f"recipients: {_shown(recipients)}: allowed is a tuple of addresses")
    for place, recipient in enumerate(recipients):
        if not (isinstance(recipient, str) and recipient.isascii()):
            _check_text(f"recipients[{place}]", recipient)
    if not isinstance(message.body, bytes):
        raise TypeError(f"body: {type(message.body).__name__}: allowed are bytes")
    if not isinstance(message.stream, int) or message.stream not in STREAMS:
        raise ValueError(f"stream: {message.stream!r}: allowed are {', '.join(map(repr, Stream))}")
    _check_text("tenant", message.tenant)
    _check_text("campaign", message.campaign)
    if not isinstance(message.send_at_ms, int):
        raise TypeError(f"send_at_ms: {_shown(message.send_at_ms)}: {SEND_AT}")
    if not MIN_INT <= message.send_at_ms <= MAX_INT:
        raise ValueError(f"send_at_ms: {message.send_at_ms}: {SEND_AT}")
    _check_text("key", message.key)
    _check_options(message.options)


def _check_text(field: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{field}: {_shown(value)}: allowed is text (str)")
    if value.isascii():
        return
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{field}: {_shown(value)}: allowed is text without lone surrogates") from None


def _check_options(options: object) -> None:
    if not isinstance(options, tuple | list):
        raise TypeError(f"options: {_shown(options)}: allowed is a tuple of Options")
    for place, one in enumerate(options):
        if not isinstance(one, Options):
            raise TypeError(f"options[{place}]: {_shown(one)}: allowed are Options")
        try:
            msgpack.packb(one.pack())
            one.check()
        except OptionError:  # it can travel, and is refused by itself
            pass
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"options[{place}]: {_shown(one)}: {error}") from None


def _shown(value: object) -> str:
    """The value, shortened, as it is written in Python."""
    text = ascii(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def encode_submission(messages: Sequence[Message], batch_key: bytes) -> tuple[bytes, bytes]:
    """Return (header, blob). TypeError, ValueError: as `check_messages`."""
    check_messages(messages)
    return encode_checked(messages, batch_key)


def encode_checked(messages: Sequence[Message], batch_key: bytes) -> tuple[bytes, bytes]:
    """The same of messages that `check_messages` has let pass."""
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
        if not isinstance(batch_key, bytes) or len(batch_key) != KEY_BYTES:
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

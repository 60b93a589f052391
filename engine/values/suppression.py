"""Suppression: an address that is not sent to, on whose list, and why.

A list is named by a tenant and a stream: ("", -1) is the global list, (tenant, -1) that of a tenant, (tenant,
stream) that of one of its streams. An address is looked for in its compared form: the normal form of
engine/values/address.py with the local part in lower case, although its case belongs to the receiving host (RFC
5321 section 2.4): nearly no host tells two mailboxes apart by it, and mail to somebody who complained is worse
than a letter kept back.

An entry that was taken off stays as a row of reason REMOVED, so that an older entry that comes late from another region
does not bring it back: of two rows for one address and list the later one holds.
"""

import hashlib
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import msgpack

from engine.values.address import Address, parse_address
from engine.values.stream import Stream

ANY_STREAM = -1
MAX_NOTE = 200
_VERSION = 1


class Reason(IntEnum):
    """Why. The numbers are stored: never renumber. Of two rows of the same millisecond the higher one holds."""

    REMOVED = 0
    MANUAL = 1
    HARD_BOUNCE = 2
    UNSUBSCRIBE = 3
    COMPLAINT = 4

    def __str__(self) -> str:
        return self.name.lower().replace("_", "-")

    @classmethod
    def parse(cls, text: str) -> "Reason":
        for reason in cls:
            if str(reason) == text.strip().lower().replace("_", "-"):
                return reason
        allowed = ", ".join(str(reason) for reason in cls if reason is not cls.REMOVED)
        raise ValueError(f"reason {text!r}: allowed are {allowed}")


class Level(IntEnum):
    """Which list an automatic entry goes to."""

    STREAM = 1
    TENANT = 2
    GLOBAL = 3


class Suppression(NamedTuple):
    """One row. `at_ms` unix milliseconds; `message_id` of the message that led to it, 0 for none; `note` free text."""

    address: str
    tenant: str
    stream: int
    reason: Reason
    at_ms: int
    message_id: int = 0
    note: str = ""

    @property
    def is_live(self) -> bool:
        return self.reason is not Reason.REMOVED

    def wins_over(self, other: "Suppression") -> bool:
        """Whether this row holds where both are known; a total order, so every region comes to the same end."""
        return self._rank() > other._rank()

    def _rank(self) -> tuple[int, int, int, str, str]:
        return self.at_ms, self.reason, self.message_id, self.note, self.address


def compared(address: Address) -> str:
    """The form in which addresses are compared."""
    return f"{address.local.lower()}@{address.domain}"


def compared_text(text: str) -> str:
    """The same for an address that is in its normal form already, as the spool has it."""
    return text if text.islower() else text.lower()


def address_digest(text: str) -> bytes:
    """16 bytes that stand for an address in keys."""
    return hashlib.blake2b(compared_text(text).encode(), digest_size=16).digest()


def list_digest(tenant: str, stream: int) -> bytes:
    """8 bytes that stand for a list behind an address in keys; those of the global list are zero."""
    if not tenant and stream == ANY_STREAM:
        return bytes(8)
    return hashlib.blake2b(msgpack.packb((tenant, stream)), digest_size=8).digest()


def list_of(level: Level, tenant: str, stream: int) -> tuple[str, int]:
    """Tenant and stream that name the list of that level."""
    if level is Level.GLOBAL:
        return "", ANY_STREAM
    return tenant, stream if level is Level.STREAM else ANY_STREAM


def make(
    address: str,
    *,
    reason: Reason,
    at_ms: int,
    tenant: str = "",
    stream: Stream | None = None,
    message_id: int = 0,
    note: str = "",
) -> Suppression:
    """A row from what a user gives. AddressError, or ValueError that names the field."""
    parsed = parse_address(address)
    if stream is not None and not tenant:
        raise ValueError("stream: allowed only together with a tenant, whose stream it is")
    if len(tenant) > 128 or not tenant.isprintable():
        raise ValueError(f"tenant {tenant[:40]!r}: allowed are up to 128 printable characters")
    if len(note) > MAX_NOTE or not note.isprintable():
        raise ValueError(f"note {note[:40]!r}: allowed are up to {MAX_NOTE} printable characters")
    number = ANY_STREAM if stream is None else int(stream)
    return Suppression(compared(parsed), tenant, number, reason, at_ms, message_id, note)


def checked(row: Suppression, now_ms: int) -> Suppression:
    """A row that somebody else made, in its normal form. ValueError names the row.

    One of the future, by a clock that is ahead or by mistake, counts as of now: of two rows the later one holds.
    """
    try:
        stream = None if row.stream == ANY_STREAM else Stream(row.stream)
        reason = Reason(row.reason)
        if not 0 <= row.at_ms < 1 << 47:
            raise ValueError(f"at_ms {row.at_ms}: allowed are unix milliseconds")
        return make(
            row.address,
            reason=reason,
            at_ms=min(row.at_ms, now_ms),
            tenant=row.tenant,
            stream=stream,
            message_id=row.message_id,
            note=row.note,
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"suppression of {row.address!r}: {error}") from None


def encode_rows(rows: Sequence[Suppression]) -> bytes:
    """Rows on their way between processes."""
    return bytes(msgpack.packb((_VERSION, [tuple(row) for row in rows])))


def decode_rows(data: bytes) -> list[Suppression]:
    """Raises ValueError for what is not rows of this version."""
    version, rows = msgpack.unpackb(data)
    if version != _VERSION:
        raise ValueError(f"suppression rows of version {version!r}: allowed is {_VERSION}")
    return [row_of(row) for row in rows]


def row_of(fields: Sequence[Any]) -> Suppression:
    """A row from its fields in order, and perhaps later ones."""
    address, tenant, stream, reason, at_ms, message_id, note = fields[:7]
    return Suppression(address, tenant, stream, Reason(reason), at_ms, message_id, note)

"""Delivery status notifications that are owed: written with the outcome they tell of, gone when accepted as mail.

notices   id (8) action (1) -> [action, sender, recipient, content, accepted_ms, expires_ms, options, code, enhanced,
          text, host, at_ms, stream, tenant]

A row keeps its message's body segment alive; that of a bounce that came later has no content any more. Whoever turns it
into mail does that under a batch key made from the row's key, so a crash between the two leaves one notification, not
two.
"""

import hashlib
from enum import IntEnum
from typing import Any, NamedTuple

import msgpack

from engine.spool.draft import Draft
from engine.spool.environment import Environment
from engine.spool.records import Record, pack
from engine.values.options import Notify, Options, unpack_options
from engine.values.outcome import OutcomeKind
from engine.values.reply import Reply

DELAY_TOLD = 2  # flag of a message record
DELAY_MS = 4 * 3_600_000  # RFC 5321 leaves the time open; four hours are the custom
STORED = 4
_FAILURES = (OutcomeKind.BOUNCED, OutcomeKind.EXPIRED, OutcomeKind.SUPPRESSED)


class Action(IntEnum):
    """RFC 3464 section 2.3.3. The numbers are stored: never renumber."""

    FAILED = 1
    DELAYED = 2
    RELAYED = 3

    def __str__(self) -> str:
        return self.name.lower()


class Notice(NamedTuple):
    """One owed notification. `content` is the place of the message's body; times are unix milliseconds."""

    key: bytes
    action: Action
    sender: str
    recipient: str
    content: list[Any]
    accepted_ms: int
    expires_ms: int
    options: Options
    reply: Reply
    host: str
    at_ms: int
    stream: int
    tenant: str

    @property
    def message_id(self) -> int:
        return int.from_bytes(self.key[:8], "big")

    @property
    def batch_key(self) -> bytes:
        return hashlib.blake2b(self.key, digest_size=16, person=b"dsn").digest()


def owed(record: Record, kind: OutcomeKind, at_ms: int, *, is_relayed: bool = False) -> Action | None:
    """The notification that an outcome owes to the sender: what its options ask for, and never to the null sender.

    A delivery owes none if the host reports it itself (RFC 3461 section 5.2.1).
    """
    options = record.options
    if options is None or not options.notify or not record.sender or len(record.content) != STORED:
        return None
    if kind in _FAILURES and options.notify & Notify.FAILURE:
        return Action.FAILED
    if kind is OutcomeKind.DELIVERED:
        return Action.RELAYED if is_relayed and options.notify & Notify.SUCCESS else None
    is_late = at_ms - record.accepted_ms >= DELAY_MS and not record.flags & DELAY_TOLD
    if kind is OutcomeKind.DEFERRED and options.notify & Notify.DELAY and is_late:
        return Action.DELAYED
    return None


def put(
    draft: Draft,
    action: Action,
    record: Record,
    reply: Reply,
    host: str,
    at_ms: int,
    *,
    stream: int,
    tenant: str,
) -> None:
    assert record.options is not None
    row = (
        int(action),
        record.sender,
        record.recipient,
        record.content,
        record.accepted_ms,
        record.expires_ms,
        record.options.pack(),
        reply.code,
        reply.enhanced,
        reply.text,
        host,
        at_ms,
        stream,
        tenant,
    )
    key = record.id.to_bytes(8, "big") + bytes((action,))
    draft.txn.put(key, pack(row), db=draft.env.db["notices"])
    draft.live(record.content[0], 1)


def put_late(
    draft: Draft,
    message_id: int,
    *,
    sender: str,
    recipient: str,
    options: Any,
    accepted_ms: int,
    reply: Reply,
    at_ms: int,
    stream: int,
    tenant: str,
) -> None:
    """A failure that is known only after the delivery; `options` are packed."""
    row: tuple[Any, ...] = (
        int(Action.FAILED),
        sender,
        recipient,
        [],
        accepted_ms,
        at_ms,
        options,
        *reply,
        "",
        at_ms,
        stream,
        tenant,
    )
    key = message_id.to_bytes(8, "big") + bytes((Action.FAILED,))
    draft.txn.put(key, pack(row), db=draft.env.db["notices"])


def pending(env: Environment, txn: Any, limit: int) -> list[Notice]:
    found: list[Notice] = []
    for key, value in txn.cursor(db=env.db["notices"]):
        if len(found) == limit:
            break
        action, sender, recipient, content, accepted_ms, expires_ms, packed, *later = msgpack.unpackb(value)
        code, enhanced, text, host, at_ms, stream, tenant = later[:7]
        options = unpack_options(packed) or Options()
        reply = Reply(code, enhanced, text)
        found.append(
            Notice(
                bytes(key),
                Action(action),
                sender,
                recipient,
                content,
                accepted_ms,
                expires_ms,
                options,
                reply,
                host,
                at_ms,
                stream,
                tenant,
            )
        )
    return found


def done(draft: Draft, key: bytes) -> None:
    """The notification is accepted as mail."""
    stored = draft.txn.pop(key, db=draft.env.db["notices"])
    content = [] if stored is None else msgpack.unpackb(stored)[3]
    if content:
        draft.live(content[0], -1)

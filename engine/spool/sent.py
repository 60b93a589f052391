"""To whom a message went that has a return path of its own: kept for the bounce or complaint that may come later.

sent   id (8) -> [expires_ms, flags, recipient, stream, tenant, campaign, source, site, delivered_ms] and, where the
       sender wants to hear of a failure, [sender, options, accepted_ms]

A row is written with the settlement of a delivery. The bounce of a message whose sender asked owes a notification
(engine/spool/notices.py), without the message: its body is gone. A report acts once per row and kind: the flag is set
in the same transaction as its effect, so a report that is repeated, or replayed, changes nothing. Expired rows go a few
at a time, by a hand that moves round the table with every commit.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack

from engine.spool import notices, suppressions
from engine.spool.draft import Draft
from engine.spool.environment import Environment
from engine.spool.records import Record, pack
from engine.values.options import Notify
from engine.values.reply import Reply
from engine.values.suppression import Suppression

BOUNCED = 1
COMPLAINED = 2
ELSEWHERE = 4  # what the recipient's host passed on has failed


class Sent(NamedTuple):
    """One row. `source` is the source's number, `site` the name of the destination site. Unix milliseconds."""

    expires_ms: int
    flags: int
    recipient: str
    stream: int
    tenant: str
    campaign: str
    source: int
    site: str
    delivered_ms: int
    asked: list[Any] | None = None

    def fields(self) -> tuple[Any, ...]:
        return tuple(self) if self.asked is not None else tuple(self)[:-1]


def asked_of(record: Record) -> list[Any] | None:
    """What a row keeps of a message whose sender wants to hear of a failure."""
    options = record.options
    if options is None or not record.sender or not options.notify & Notify.FAILURE:
        return None
    return [record.sender, options.pack(), record.accepted_ms]


def put(draft: Draft, id_key: bytes, row: Sent) -> None:
    draft.txn.put(id_key, pack(row.fields()), db=draft.env.db["sent"])
    draft.sent += 1


def get(env: Environment, txn: Any, message_id: int) -> Sent | None:
    stored = txn.get(message_id.to_bytes(8, "big"), db=env.db["sent"])
    return None if stored is None else Sent(*msgpack.unpackb(stored)[:10])


def report(
    draft: Draft,
    message_id: int,
    flag: int,
    event: tuple[int, str, dict[str, Any]],
    rows: Sequence[Suppression],
    reply: Reply | None = None,
) -> bool:
    """A bounce or complaint about a message that was sent: its event, the addresses it lists, and the flag.

    `reply`: why it was bounced; a sender who asked is told, once.

    False if there is no row any more or the flag was set before: then nothing is done.
    """
    known = get(draft.env, draft.txn, message_id)
    if known is None or known.flags & flag:
        return False
    row = known._replace(flags=known.flags | flag)
    draft.txn.put(message_id.to_bytes(8, "big"), pack(row.fields()), db=draft.env.db["sent"])
    is_told = known.flags & (BOUNCED | ELSEWHERE)
    if reply is not None and known.asked is not None and not is_told:
        sender, options, accepted_ms = known.asked
        notices.put_late(
            draft,
            message_id,
            sender=sender,
            recipient=known.recipient,
            options=options,
            accepted_ms=accepted_ms,
            reply=reply,
            at_ms=event[0],
            stream=known.stream,
            tenant=known.tenant,
        )
    suppressions.put(draft, rows, log=True)
    draft.event(event)
    return True


def sweep(draft: Draft, after: bytes, limit: int, now_ms: int) -> bytes:
    """Look at so many rows behind `after` and drop those that have expired; where to go on."""
    old: list[bytes] = []
    with draft.txn.cursor(db=draft.env.db["sent"]) as cursor:
        found = cursor.set_range(after) if after else cursor.first()
        while found and limit:
            after = bytes(cursor.key())
            if msgpack.unpackb(cursor.value())[0] <= now_ms:
                old.append(after)
            limit -= 1
            found = cursor.next()
        after = bytes(cursor.key()) if found else b""
    for key in old:
        draft.txn.delete(key, db=draft.env.db["sent"])
    return after

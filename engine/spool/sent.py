"""To whom a message went that has a return path of its own: kept for the bounce or complaint that may come later.

sent   id (8) -> [expires_ms, flags, recipient, stream, tenant, campaign, source, site, delivered_ms]

A row is written with the settlement of a delivery. A report acts once per row and kind: the flag is set in the same
transaction as its effect, so a report that is repeated, or replayed, changes nothing. Expired rows go a few at a time,
by a hand that moves round the table with every commit.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack

from engine.spool import suppressions
from engine.spool.draft import Draft
from engine.spool.environment import Environment
from engine.spool.records import pack
from engine.values.suppression import Suppression

BOUNCED = 1
COMPLAINED = 2


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


def put(draft: Draft, id_key: bytes, row: Sent) -> None:
    draft.txn.put(id_key, pack(tuple(row)), db=draft.env.db["sent"])
    draft.sent += 1


def get(env: Environment, txn: Any, message_id: int) -> Sent | None:
    stored = txn.get(message_id.to_bytes(8, "big"), db=env.db["sent"])
    return None if stored is None else Sent(*msgpack.unpackb(stored)[:9])


def report(
    draft: Draft,
    message_id: int,
    flag: int,
    event: tuple[int, str, dict[str, Any]],
    rows: Sequence[Suppression],
) -> bool:
    """A bounce or complaint about a message that was sent: its event, the addresses it lists, and the flag.

    False if there is no row any more or the flag was set before: then nothing is done.
    """
    known = get(draft.env, draft.txn, message_id)
    if known is None or known.flags & flag:
        return False
    row = known._replace(flags=known.flags | flag)
    draft.txn.put(message_id.to_bytes(8, "big"), pack(tuple(row)), db=draft.env.db["sent"])
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

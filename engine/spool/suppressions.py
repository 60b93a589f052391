"""The suppression list in the spool's index: looked up, changed and listed inside a transaction.

suppressed       address digest (16) list digest (8) -> [address, tenant, stream, reason, at_ms, message_id, note]
suppression_log  number (8) -> key of a row that this region changed itself and that its peers have yet to hear of

All rows of an address stand together, so one look-up answers for the global, the tenant's and the stream's list.
"""

from collections.abc import Iterable
from typing import Any

import msgpack

from engine.spool.draft import Draft
from engine.spool.environment import Environment
from engine.spool.records import pack
from engine.values.suppression import ANY_STREAM, Suppression, address_digest, list_digest, row_of

DIGEST = 16


def count(env: Environment, txn: Any) -> int:
    return int(txn.stat(env.db["suppressed"])["entries"])


class Lists:
    """The rows as one transaction sees them; `is_empty` is asked once, so a fleet without a list pays nothing."""

    def __init__(self, env: Environment, txn: Any) -> None:
        self._cursor = None if count(env, txn) == 0 else txn.cursor(db=env.db["suppressed"])

    @property
    def is_empty(self) -> bool:
        return self._cursor is None

    def find(self, address: str, tenant: str, stream: int) -> Suppression | None:
        """The row that keeps mail of this tenant and stream from the address."""
        cursor = self._cursor
        if cursor is None:
            return None
        digest = address_digest(address)
        if not cursor.set_range(digest):
            return None
        while cursor.key()[:DIGEST] == digest:
            row = row_of(msgpack.unpackb(cursor.value()))
            if row.is_live and row.tenant in ("", tenant) and row.stream in (ANY_STREAM, stream):
                return row
            if not cursor.next():
                return None
        return None


def key_of(row: Suppression) -> bytes:
    return address_digest(row.address) + list_digest(row.tenant, row.stream)


def put(draft: Draft, rows: Iterable[Suppression], *, log: bool) -> int:
    """Take rows in, those that win over what is there; returns how many did.

    `log`: they began here, so the other regions have to hear of them. What says nothing new is not logged again.
    """
    txn, db = draft.txn, draft.env.db
    changed = 0
    for row in rows:
        key = key_of(row)
        stored = txn.get(key, db=db["suppressed"])
        known = None if stored is None else row_of(msgpack.unpackb(stored))
        if log:
            if row.is_live == (known is not None and known.is_live):
                continue  # it is on the list for the reason that it came for, or not on it anyway
            if known is not None and not row.wins_over(known):  # a clock that runs behind has no say in it
                row = row._replace(at_ms=known.at_ms + 1)
        elif known is not None and not row.wins_over(known):
            continue
        txn.put(key, pack(tuple(row)), db=db["suppressed"])
        changed += 1
        if log:
            number = _last_number(txn, db["suppression_log"]) + 1
            txn.put(number.to_bytes(8, "big"), key, db=db["suppression_log"], append=True)
    if changed:
        draft.suppressed_before = draft.totals.next_seq
    return changed


def _last_number(txn: Any, db: Any) -> int:
    """Of the log; it never becomes empty, so that no number is given twice."""
    with txn.cursor(db=db) as cursor:
        return int.from_bytes(cursor.key(), "big") if cursor.last() else 0


def last_number(env: Environment, txn: Any) -> int:
    return _last_number(txn, env.db["suppression_log"])


def logged(env: Environment, txn: Any, after: int, limit: int) -> tuple[int, list[Suppression]]:
    """Rows changed here since the log's number `after`, and the number that they reach to."""
    rows: list[Suppression] = []
    with txn.cursor(db=env.db["suppression_log"]) as cursor:
        found = cursor.set_range((after + 1).to_bytes(8, "big"))
        while found and len(rows) < limit:
            after = int.from_bytes(cursor.key(), "big")
            stored = txn.get(bytes(cursor.value()), db=env.db["suppressed"])
            if stored is not None:
                rows.append(row_of(msgpack.unpackb(stored)))
            found = cursor.next()
    return after, rows


def trim_log(draft: Draft, upto: int) -> None:
    """Forget the log up to that number, except its last entry."""
    with draft.txn.cursor(db=draft.env.db["suppression_log"]) as cursor:
        if not cursor.last():
            return
        upto = min(upto, int.from_bytes(cursor.key(), "big") - 1)
        while cursor.first() and int.from_bytes(cursor.key(), "big") <= upto:
            cursor.delete()


def page(env: Environment, txn: Any, after: bytes, limit: int) -> tuple[bytes, list[Suppression]]:
    """Rows behind a key, removed ones too, and the key of the last; b"" when there is nothing behind."""
    rows: list[Suppression] = []
    with txn.cursor(db=env.db["suppressed"]) as cursor:
        found = cursor.set_range(after + b"\0" if after else b"")
        while found and len(rows) < limit:
            after = bytes(cursor.key())
            rows.append(row_of(msgpack.unpackb(cursor.value())))
            found = cursor.next()
    return (after if rows else b""), rows


def of_address(env: Environment, txn: Any, address: str) -> list[Suppression]:
    """Every row of an address, removed ones too."""
    digest = address_digest(address)
    rows: list[Suppression] = []
    with txn.cursor(db=env.db["suppressed"]) as cursor:
        found = cursor.set_range(digest)
        while found and cursor.key()[:DIGEST] == digest:
            rows.append(row_of(msgpack.unpackb(cursor.value())))
            found = cursor.next()
    return rows

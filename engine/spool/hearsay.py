"""Batch keys that came with a copy whose owner waits for its receipt still: what a standby says of them is hearsay.

The copy may be dropped without the owner ever having given a receipt, and then nobody has the messages but the owner.
So such a key is not known here until the owner has heard that its copy is safe, or dies and is adopted from. The keys
of single messages are known at once, as they must be when they are used again; they are forgotten with the batch's.

hearsay  batch key (16) owner's number (2) -> [value as in keys, [the messages' keys that came with it]]
"""

import msgpack

from engine.failover.spans import Spans
from engine.spool.draft import Draft
from engine.spool.records import pack

KEY_BYTES = 16
EXPIRES_BYTES = 6


class Hearsay:
    """The table within one draft. Few rows: what is in one session's window, or was in that of one that has ended."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._txn = draft.txn
        self._db = draft.env.db

    def is_empty(self) -> bool:
        return not self._txn.stat(self._db["hearsay"])["entries"]

    def of(self, key: bytes, owner: int) -> Spans | None:
        """What the owner says that it has under this key."""
        stored = self._txn.get(_row_key(key, owner), db=self._db["hearsay"])
        return None if stored is None else _spans(msgpack.unpackb(stored)[0])

    def has(self, key: bytes, now_ms: int) -> bool:
        """Whether anyone has a batch of this key in hand."""
        return any(_expires_ms(value) > now_ms for _, value in self._rows_of(key))

    def owned_by(self, owner: int) -> list[bytes]:
        """The batch keys of this owner."""
        with self._txn.cursor(db=self._db["hearsay"]) as cursor:
            keys = [bytes(key) for key in cursor.iternext(keys=True, values=False)]
        return [key[:-2] for key in keys if int.from_bytes(key[-2:], "big") == owner]

    def _rows_of(self, key: bytes) -> list[tuple[bytes, bytes]]:
        rows = []
        with self._txn.cursor(db=self._db["hearsay"]) as cursor:
            going = cursor.set_range(key)
            while going and bytes(cursor.key())[:-2] == key:
                rows.append((bytes(cursor.key()), bytes(cursor.value())))
                going = cursor.next()
        return rows

    def put(self, key: bytes, owner: int, value: bytes, others: list[tuple[bytes, bytes]]) -> None:
        """A batch key, and the keys of its messages. What is known already is no hearsay."""
        new = [other for other, row in others if self.know(other, row)]
        if self._txn.get(key, db=self._db["keys"]) is None:
            earlier = self._txn.get(_row_key(key, owner), db=self._db["hearsay"])
            if earlier is not None:
                new += [other for other in msgpack.unpackb(earlier)[1] if other not in new]
            self._txn.put(_row_key(key, owner), pack((value, new)), db=self._db["hearsay"])

    def know(self, key: bytes, value: bytes) -> bool:
        """Whether it is new."""
        is_new = bool(self._txn.put(key, value, db=self._db["keys"], overwrite=False))
        if is_new:
            self._txn.put(value[:EXPIRES_BYTES] + key, b"", db=self._db["keys_expiry"])
            self._draft.remembered += 1
        return is_new

    def confirm(self, key: bytes, owner: int) -> None:
        """The owner has given the receipt, or may have."""
        stored = self._txn.pop(_row_key(key, owner), db=self._db["hearsay"])
        if stored is not None:
            self.know(key, msgpack.unpackb(stored)[0])

    def told(self, key: bytes, value: bytes, owner: int | None = None) -> None:
        """Its owner says what it stands for, which may be another region's batch by now; None: who has it now."""
        if not self.is_empty():
            for row_key, _ in self._rows_of(key):
                if owner is None or row_key == _row_key(key, owner):
                    self._txn.delete(row_key, db=self._db["hearsay"])
        self.know(key, value)

    def forget(self, key: bytes, owner: int) -> None:
        """Its messages are not here any more, and the owner has given no receipt as far as is known here."""
        stored = self._txn.pop(_row_key(key, owner), db=self._db["hearsay"])
        if stored is None:
            return
        for other in msgpack.unpackb(stored)[1]:
            value = self._txn.pop(other, db=self._db["keys"])
            if value is not None:
                self._txn.delete(bytes(value[:EXPIRES_BYTES]) + other, db=self._db["keys_expiry"])


def _row_key(key: bytes, owner: int) -> bytes:
    return key + owner.to_bytes(2, "big")


def _expires_ms(row: bytes) -> int:
    return int.from_bytes(msgpack.unpackb(row)[0][:EXPIRES_BYTES], "big")


def _spans(value: bytes) -> Spans:
    """The spans of a batch key, one per item."""
    return tuple((first, count) for first, count in msgpack.unpackb(value[EXPIRES_BYTES:]) if count)

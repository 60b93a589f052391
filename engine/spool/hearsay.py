"""Batch keys that came with a copy whose owner waits for its receipt still: what a standby says of them is hearsay.

The copy may be dropped without the owner ever having given a receipt, and then nobody has the messages but the owner.
So such a key is not known here until the owner has heard that its copy is safe, or dies and is adopted from. The keys
of single messages are known at once, as they must be when they are used again; they are forgotten with the batch's.

What was adopted may have to be given up again. If that is to the owner who had sent the copy, or to the region whose
ids it has, which may have given no receipt, it is forgotten then; so its row stays, as an adopted one. Anybody else has
adopted it, and may not know the key. As long as one of its messages is queued, an adopted key goes to the standby here
with these messages only, and is hearsay there, too.

hearsay   batch key (16) owner's number (2) -> [value as in keys, [the messages' keys that came with it], is adopted]
failover  `adopted` -> a number that changes with the rows that are adopted; none if there has never been one
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgpack

from engine.failover.spans import Spans, ids_of, intersect, union
from engine.spool.draft import Draft
from engine.spool.environment import Environment
from engine.spool.records import pack
from engine.values.ids import region_of

EXPIRES_BYTES = 6
ADOPTED = b"adopted"


class AdoptedKey(NamedTuple):
    """A batch key that was adopted as hearsay; `others`: the keys of its messages. `owner`: who had sent the copy."""

    key: bytes
    owner: int
    value: bytes
    others: list[bytes]
    spans: Spans


def is_waiting(txn: Any, db: Mapping[str, Any], owner: int, spans: Spans) -> bool:
    """Whether a message of an adopted batch is queued here, or, in the middle of the adoption, a copy still."""
    prefix = owner.to_bytes(2, "big")
    with txn.cursor(db=db["messages"]) as messages, txn.cursor(db=db["copies"]) as copies:
        return any(
            _has_any(messages, b"", first, count) or _has_any(copies, prefix, first, count)
            for first, count in spans
        )


def _has_any(cursor: Any, prefix: bytes, first: int, count: int) -> bool:
    if not cursor.set_range(prefix + first.to_bytes(8, "big")):
        return False
    return bytes(cursor.key()) < prefix + (first + count).to_bytes(8, "big")


class AdoptedKeys:
    """Those of a spool, for readers: in memory as long as they do not change."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._version = b""
        self._by_region: dict[int, list[AdoptedKey]] = {}

    def all(self, txn: Any) -> list[AdoptedKey]:
        self._refresh(txn)
        return [one for rows in self._by_region.values() for one in rows]

    def touching(self, txn: Any, spans: Spans) -> list[AdoptedKey]:
        """Those of which a message is among these. Messages of own batches have ids of a region of which nothing was
        adopted: that costs one look."""
        self._refresh(txn)
        regions = {region_of(first) for first, _ in spans} if self._by_region else ()
        return [
            one
            for region in regions
            for one in self._by_region.get(region, ())
            if intersect(one.spans, spans)
        ]

    def _refresh(self, txn: Any) -> None:
        version = bytes(txn.get(ADOPTED, db=self._env.db["failover"]) or b"")
        if version != self._version:
            found: dict[int, list[AdoptedKey]] = {}
            with txn.cursor(db=self._env.db["hearsay"]) as cursor:
                for key, stored in cursor:
                    value, others, is_adopted = msgpack.unpackb(stored)
                    spans = _spans(value)
                    if is_adopted and spans:
                        owner = int.from_bytes(key[-2:], "big")
                        one = AdoptedKey(bytes(key[:-2]), owner, value, others, spans)
                        found.setdefault(region_of(spans[0][0]), []).append(one)
            self._by_region, self._version = found, version


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

    def sweep(self, now_ms: int) -> None:
        """Forget rows as old as the keys that are forgotten."""
        with self._txn.cursor(db=self._db["hearsay"]) as cursor:
            old = [bytes(key) for key, value in cursor if _expires_ms(bytes(value)) <= now_ms]
        for key in old:
            self._txn.delete(key, db=self._db["hearsay"])
        if old:
            self._changed()

    def forget_sent(self) -> None:
        """Adopted keys of which no message is queued are known like all others."""
        with self._txn.cursor(db=self._db["hearsay"]) as cursor:
            rows = [(bytes(key), msgpack.unpackb(stored)) for key, stored in cursor]
        sent = [
            key
            for key, (value, _, is_adopted) in rows
            if is_adopted
            and not is_waiting(self._txn, self._db, int.from_bytes(key[-2:], "big"), _spans(value))
        ]
        for key in sent:
            self._txn.delete(key, db=self._db["hearsay"])
        if sent:
            self._changed()

    def adopted(self) -> Spans:
        """The messages of batches whose keys were adopted."""
        with self._txn.cursor(db=self._db["hearsay"]) as cursor:
            rows = [msgpack.unpackb(stored) for stored in cursor.iternext(keys=False, values=True)]
        return union(*(_spans(value) for value, _, is_adopted in rows if is_adopted))

    def _changed(self) -> None:
        """Rows that are adopted have, or may have."""
        stored = self._txn.get(ADOPTED, db=self._db["failover"])
        number = 1 + (int.from_bytes(stored, "big") if stored else 0)
        self._txn.put(ADOPTED, number.to_bytes(8, "big"), db=self._db["failover"])

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
                _, others_before, was_adopted = msgpack.unpackb(earlier)
                new += [other for other in others_before if other not in new]
                if was_adopted:
                    self._changed()
            self._txn.put(_row_key(key, owner), pack((value, new, False)), db=self._db["hearsay"])

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
            value, _, is_adopted = msgpack.unpackb(stored)
            self.know(key, value)
            if is_adopted:
                self._changed()

    def adopt(self, key: bytes, owner: int) -> None:
        """Its messages are here, or have been sent by the owner."""
        value, others, _ = msgpack.unpackb(self._txn.get(_row_key(key, owner), db=self._db["hearsay"]))
        self._txn.put(_row_key(key, owner), pack((value, others, True)), db=self._db["hearsay"])
        self._changed()
        self.know(key, value)

    def given_up(self, spans: Spans, to: int, is_here: Callable[[int], bool]) -> None:
        """These have another owner now. `is_here`: whether a message is queued here, or got its outcome here."""
        if self.is_empty():
            return
        with self._txn.cursor(db=self._db["hearsay"]) as cursor:
            rows = [(bytes(key), msgpack.unpackb(value)) for key, value in cursor]
        for row_key, (value, others, is_adopted) in rows:
            batch = _spans(value)
            if int.from_bytes(row_key[-2:], "big") != to and region_of(batch[0][0]) != to:
                continue
            if not is_adopted or not intersect(batch, spans) or any(is_here(id_) for id_ in ids_of(batch)):
                continue
            self._txn.delete(row_key, db=self._db["hearsay"])
            self._changed()
            known = self._txn.get(row_key[:-2], db=self._db["keys"])
            own = [row_key[:-2]] if known == value else []  # else it stands for another batch
            for key in (*own, *others):
                self._forget_key(key)

    def _forget_key(self, key: bytes) -> None:
        value = self._txn.pop(key, db=self._db["keys"])
        if value is not None:
            self._txn.delete(bytes(value[:EXPIRES_BYTES]) + key, db=self._db["keys_expiry"])

    def told(self, key: bytes, value: bytes, owner: int | None = None) -> None:
        """Its owner says what it stands for, which may be another region's batch by now; None: who has it now."""
        if not self.is_empty():
            for row_key, stored in self._rows_of(key):
                if owner is None or row_key == _row_key(key, owner):
                    self._txn.delete(row_key, db=self._db["hearsay"])
                    if msgpack.unpackb(stored)[2]:
                        self._changed()
        self.know(key, value)

    def forget(self, key: bytes, owner: int) -> None:
        """The copies are not here any more, and the owner has given no receipt as far as is known here."""
        stored = self._txn.get(_row_key(key, owner), db=self._db["hearsay"])
        if stored is None:
            return
        _, others, is_adopted = msgpack.unpackb(stored)
        if is_adopted:
            return
        self._txn.delete(_row_key(key, owner), db=self._db["hearsay"])
        for other in others:
            self._forget_key(other)


def _row_key(key: bytes, owner: int) -> bytes:
    return key + owner.to_bytes(2, "big")


def _expires_ms(row: bytes) -> int:
    return int.from_bytes(msgpack.unpackb(row)[0][:EXPIRES_BYTES], "big")


def _spans(value: bytes) -> Spans:
    """The spans of a batch key, one per item."""
    return tuple((first, count) for first, count in msgpack.unpackb(value[EXPIRES_BYTES:]) if count)

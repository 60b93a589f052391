"""The copies of other regions' messages that a spool keeps: what a standby is told, row by row.

copies    owner's number (2, big endian) id (8) -> record as in messages; queue and content are this spool's own

A copy's body stands in the body segments like any other and counts as live there, so an adoption moves rows only.
What travels between regions (the payload of a Copy) is msgpack [keys, campaigns, rows, blob], and where there are such,
as a fifth, the keys of batches that are adopted hearsay (hearsay.py): [key, value, [[message's key, value]]]. A
campaign's template that came before in the same session is its digest (16), which stands in campaign_names for its
number here.
"""

import hashlib
import logging
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import msgpack

from engine.failover.messages import Copy, Drop, Entry, Update
from engine.failover.spans import Spans, ids_of, of_sorted
from engine.spool import accepting
from engine.spool.batches import CampaignRecord
from engine.spool.draft import Draft
from engine.spool.environment import Environment
from engine.spool.errors import CampaignConflict, CampaignUnknown
from engine.spool.hearsay import Hearsay
from engine.spool.records import DamagedRecord, Record, decode_record, pack
from engine.values.ids import region_of
from engine.values.options import unpack_options

log = logging.getLogger(__name__)

Append = Callable[[Draft, bytes], tuple[int, int]]


def template_digest(fields: list[Any]) -> bytes:
    """Of what a template travels as. It stands among the digests of names, none of which begins like its content."""
    return hashlib.blake2b(pack(("template", fields)), digest_size=16).digest()


def has_copies(env: Environment, txn: Any, number: int) -> bool:
    with txn.cursor(db=env.db["copies"]) as cursor:
        prefix = number.to_bytes(2, "big")
        return bool(cursor.set_range(prefix)) and bytes(cursor.key())[:2] == prefix


def count_copies(env: Environment, txn: Any) -> dict[int, int]:
    """How many there are, by the owner's number; about a second for a million."""
    with txn.cursor(db=env.db["copies"]) as cursor:
        return Counter(int.from_bytes(key[:2], "big") for key in cursor.iternext(keys=True, values=False))


class Copies:
    """The table within one draft."""

    def __init__(self, draft: Draft, numbers: Mapping[str, int], append: Append, hearsay: Hearsay) -> None:
        self._draft = draft
        self._numbers = numbers
        self._append = append
        self._hearsay = hearsay
        self._db = draft.env.db
        self._txn = draft.txn

    def _key(self, owner: str, id_: int) -> bytes:
        return self._numbers[owner].to_bytes(2, "big") + id_.to_bytes(8, "big")

    def of(self, owner: str) -> Spans:
        prefix = self._numbers[owner].to_bytes(2, "big")
        with self._txn.cursor(db=self._db["copies"]) as cursor:
            if not cursor.set_range(prefix):
                return ()
            return of_sorted(_ids_with(cursor, prefix))

    def take(self, owner: str, entry: Entry) -> int:
        """Returns the highest of the owner's own ids in it."""
        match entry:
            case Copy():
                return self.store(owner, entry.payload, entry.key)
            case Drop():
                self._drop(owner, entry.spans)
            case Update():
                for id_, due_ms, attempts, flags, last in msgpack.unpackb(entry.payload):
                    key = self._key(owner, id_)
                    stored = self._txn.get(key, db=self._db["copies"])
                    record = None if stored is None else self.decoded(id_, stored)
                    if record is not None:
                        changed = record._replace(due_ms=due_ms, attempts=attempts, flags=flags, last=last)
                        self._txn.put(key, changed.encode(), db=self._db["copies"])
        return 0

    def store(self, owner: str, payload: bytes, batch: bytes = b"") -> int:
        keys, campaigns, rows, blob, *adopted = msgpack.unpackb(payload)
        for fields in campaigns:
            if isinstance(fields, bytes):
                self._number_of(fields)
        segment, base = self._append(self._draft, blob) if blob else (0, 0)
        # nothing was written yet: so nothing is left here of a copy that was refused
        self._learn(owner, batch, keys)
        for key, value, others in adopted[0] if adopted else ():
            self._hearsay.put(key, self._numbers[owner], value, others)
        numbers = [self._campaign(fields) for fields in campaigns]
        highest = 0
        for id_, domain, stream, tenant, campaign, *fields in rows:
            due_ms, attempts, flags, accepted_ms, expires_ms, sender, recipient, content, last, options = (
                fields
            )
            queue = self._draft.queue(domain, stream, tenant, campaign)
            if len(content) == 3:
                stored_content = [segment, base + content[0], content[1], content[2]]
                self._draft.live(segment, 1)
            else:
                stored_content = [numbers[content[0]], content[1]]
            record = Record(
                id_,
                queue,
                due_ms,
                attempts,
                flags,
                accepted_ms,
                expires_ms,
                sender,
                recipient,
                stored_content,
                last,
                None if options is None else unpack_options(options),
            )
            key = self._key(owner, id_)
            earlier = self._txn.replace(key, record.encode(), db=self._db["copies"])
            if earlier is not None:
                self._gone(id_, earlier)
            if region_of(id_) == self._numbers[owner]:
                highest = max(highest, id_)
        return highest

    def _learn(self, owner: str, batch: bytes, keys: list[tuple[bytes, bytes]]) -> None:
        """`batch`: whose copy it is that they come with; without one they are of batches that have their receipt."""
        number = self._numbers[owner]
        if batch:
            others = [(key, value) for key, value in keys if key != batch]
            for key, value in keys:
                if key == batch:
                    self._hearsay.put(batch, number, value, others)
            return
        for key, value in keys:
            self._hearsay.told(key, value, number)

    def _campaign(self, fields: list[Any] | bytes) -> int:
        """The number of a campaign here; if the name stands for another template, one of its own."""
        if isinstance(fields, bytes):
            return self._number_of(fields)
        record = CampaignRecord(*fields)
        try:
            number = accepting.put_campaign(self._draft, record)
        except CampaignConflict:
            digest = zlib.crc32(pack((record.sender, list(record.field_names), record.template)))
            number = accepting.put_campaign(self._draft, record, alias=f"{record.campaign}\0{digest:08x}")
        self._txn.put(template_digest(fields), number.to_bytes(4, "big"), db=self._db["campaign_names"])
        return number

    def _number_of(self, digest: bytes) -> int:
        """The number of a campaign whose template came before. CampaignUnknown: it did not, and has to come again."""
        stored = self._txn.get(digest, db=self._db["campaign_names"])
        if stored is None:
            raise CampaignUnknown(f"no template of digest {digest.hex()} has come")
        return int.from_bytes(stored, "big")

    def body_gone(self, record: Record) -> None:
        if len(record.content) == 4:
            self._draft.live(record.content[0], -1)

    def _gone(self, id_: int, stored: bytes) -> None:
        record = self.decoded(id_, stored)
        if record is not None:  # else its segment stays: where its body is cannot be known
            self.body_gone(record)

    def _drop(self, owner: str, spans: Spans) -> None:
        for id_ in ids_of(spans):
            stored = self._txn.pop(self._key(owner, id_), db=self._db["copies"])
            if stored is not None:
                self._gone(id_, stored)

    def drop_some(self, owner: str, at_most: int) -> int:
        """How many of the owner's there were, of so many."""
        prefix = self._numbers[owner].to_bytes(2, "big")
        with self._txn.cursor(db=self._db["copies"]) as cursor:
            found = cursor.set_range(prefix)
            ids = list(islice(_ids_with(cursor, prefix), at_most)) if found else []
        self._drop(owner, of_sorted(ids))
        return len(ids)

    def pop_some(self, owner: str, at_most: int) -> list[Record]:
        """Take out the owner's first copies; a damaged one stays, which is never sent."""
        prefix = self._numbers[owner].to_bytes(2, "big")
        records: list[Record] = []
        with self._txn.cursor(db=self._db["copies"]) as cursor:
            found = cursor.set_range(prefix)
            while found and bytes(cursor.key())[:2] == prefix and len(records) < at_most:
                record = self.decoded(int.from_bytes(cursor.key()[2:], "big"), bytes(cursor.value()))
                if record is None:
                    found = cursor.next()
                    continue
                records.append(record)
                found = cursor.delete()
        return records

    def pop(self, owner: str, id_: int) -> bytes:
        """Take out one that is there, as it is stored."""
        return bytes(self._txn.pop(self._key(owner, id_), db=self._db["copies"]))

    def keep(self, owner: str, id_: int, stored: bytes) -> bool:
        """Keep a message of ours as a copy of another owner's; False: there is one already."""
        return bool(self._txn.put(self._key(owner, id_), stored, db=self._db["copies"], overwrite=False))

    def decoded(self, id_: int, stored: bytes) -> Record | None:
        """A record of ours or a copy; None if it is damaged, which holds up no other."""
        try:
            return decode_record(id_, stored)
        except DamagedRecord as error:
            log.error("spool %s: %s", self._draft.env.path, error)
            return None


def _ids_with(cursor: Any, prefix: bytes) -> Iterator[int]:
    for key in cursor.iternext(keys=True, values=False):
        if bytes(key[:2]) != prefix:
            return
        yield int.from_bytes(key[2:], "big")

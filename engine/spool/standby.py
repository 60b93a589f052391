"""The spool's side of failover: copies for other regions, adoption, and what of our own is not safe yet.

copies    owner's number (2, big endian) id (8) -> record as in messages; queue and content are this spool's own
unsafe    batch key -> spans of ids that are queued and not due: their copy is not on the standby's disk yet
failover  `self` -> [epoch, first, clean, standby]; `o` number (2) -> [fence, by adoption, held, highest id]
          `unasked` -> [[region, epoch]]: see SaveClean in engine/failover/store.py; `lived` -> epoch: see Durable there

A copy's body stands in the body segments like any other and counts as live there, so an adoption moves rows only.
What travels between regions (the payload of a Copy) is msgpack [keys, campaigns, rows, blob].
"""

import logging
import zlib
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import msgpack

from engine.failover.messages import Copy, Drop, Entry, Update
from engine.failover.spans import Span, Spans, ids_of, intersect, normal, of_ids, subtract
from engine.failover.store import (
    Abandon,
    Accept,
    Accepted,
    Adopt,
    Adopted,
    Apply,
    DropCopies,
    Durable,
    GiveUp,
    Inspect,
    Inspected,
    IsEmpty,
    LookUp,
    Mark,
    OpenSession,
    Operation,
    Queued,
    Release,
    SaveClean,
    SaveEpoch,
    SaveStandby,
    SaveUnasked,
    TakeQueued,
)
from engine.spool import accepting
from engine.spool.batches import AcceptBatch, AcceptResult, CampaignRecord, ChunkBatch
from engine.spool.draft import NOT_HERE, PAGE_IDS, SKIPPED, Draft, page_of, skipped_sequences, word_of
from engine.spool.environment import Environment
from engine.spool.errors import CampaignConflict
from engine.spool.hearsay import Hearsay
from engine.spool.records import MAYBE_SENT, DamagedRecord, Record, decode_record, due_key, pack, u48
from engine.values.ids import SEQ_MASK, region_of
from engine.values.options import unpack_options
from engine.values.outcome import OutcomeKind

log = logging.getLogger(__name__)

SELF = b"self"
UNASKED = b"unasked"
LIVED = b"lived"
FENCED = "superseded"
ADOPTED_AT_ONCE = 2000
LISTED_AT_ONCE = 20_000  # some 20 ms
# A new disk's ids begin at the time, if nobody can say where the old one's ended: more than 131,000 per second, from
# 2025 on, is more than a region gives out. Good until 2093.
IDS_PER_SECOND_BITS = 17
TIME_BEGINS_S = 1_735_689_600
NEITHER = bytes(low | high << 4 for low in NOT_HERE for high in NOT_HERE)  # two words that are both of these
BOTH = bytes(byte for byte in range(256) if byte & 15 not in NOT_HERE and byte >> 4 not in NOT_HERE)
# what is due so soon after an adoption may have been sent already, by a region whose clock was ahead
CLOCKS_DIFFER_MS = 600_000

IN_HAND = Accepted((), hearsay=True)

Row = list[Any]
Append = Callable[[Draft, bytes], tuple[int, int]]


def read_durable(env: Environment, txn: Any, numbers: Mapping[str, int]) -> Durable:
    stored = txn.get(SELF, db=env.db["failover"])
    epoch, first, clean, standby = msgpack.unpackb(stored) if stored else (0, 0, False, "")
    fences, held, asked, unfinished = [], [], [], []
    for name, number in numbers.items():
        row = txn.get(_owner_key(number), db=env.db["failover"])
        if row is not None:
            fence, adopted, epoch_held, _ = msgpack.unpackb(row)
            fences.append((name, fence))
            held.append((name, epoch_held))
            if fence and not adopted:
                asked.append((name, fence))
            if adopted and _has_copies(env, txn, number):
                unfinished.append(name)
    stored = txn.get(UNASKED, db=env.db["failover"])
    unasked = tuple((name, since) for name, since in msgpack.unpackb(stored)) if stored else ()
    stored = txn.get(LIVED, db=env.db["failover"])
    lived = msgpack.unpackb(stored) if stored else first
    unsafe = [(bytes(key), _spans(value)) for key, value in txn.cursor(db=env.db["unsafe"])]
    return Durable(
        epoch,
        first,
        clean,
        standby,
        fences=tuple(fences),
        held=tuple(held),
        asked=tuple(asked),
        unasked=unasked,
        unsafe=tuple(unsafe),
        lived=lived,
        unfinished=tuple(unfinished),
    )


def _has_copies(env: Environment, txn: Any, number: int) -> bool:
    with txn.cursor(db=env.db["copies"]) as cursor:
        prefix = number.to_bytes(2, "big")
        return bool(cursor.set_range(prefix)) and bytes(cursor.key())[:2] == prefix


def _owner_key(number: int) -> bytes:
    return b"o" + number.to_bytes(2, "big")


def _spans(value: bytes) -> Spans:
    return tuple((first, count) for first, count in msgpack.unpackb(value))


def recalled_spans(stored: Any) -> Spans:
    """The spans of a batch key, one per item."""
    return tuple((first, count) for first, count in stored)


class Keeper:
    """One operation's work in one draft."""

    def __init__(self, draft: Draft, numbers: Mapping[str, int], now_ms: int, append: Append) -> None:
        self._draft = draft
        self._numbers = numbers
        self._now_ms = now_ms
        self._append = append
        self._db = draft.env.db
        self._txn = draft.txn
        self._hearsay = Hearsay(draft)

    # -- accepting

    def accept(
        self, op: Accept, batch: AcceptBatch, segment: int, base: int
    ) -> tuple[Accepted, AcceptResult]:
        if accepting.recall(self._draft, op.key) is None and self._hearsay.has(op.key, self._now_ms):
            return IN_HAND, AcceptResult([], [], repeated=True)
        result = accepting.accept(self._draft, batch, segment, base, self._now_ms, hold=True)
        return self._accepted(op, result)

    def accept_chunk(
        self, op: Accept, chunk: ChunkBatch, campaign: CampaignRecord
    ) -> tuple[Accepted, AcceptResult]:
        known = accepting.recall(self._draft, op.key)
        if known is not None:  # accepted here, or by another region that had us as its standby
            ids = [(id_,) for id_ in ids_of(recalled_spans(known))]
            return Accepted(recalled_spans(known), known=True), AcceptResult(ids, [], repeated=True)
        if self._hearsay.has(op.key, self._now_ms):
            return IN_HAND, AcceptResult([], [], repeated=True)
        result = accepting.accept_chunk(
            self._draft, chunk, campaign.sender, campaign.campaign, self._now_ms, hold=True
        )
        if not result.repeated:
            spans = of_ids(item[0] for item in result.ids)
            accepting.remember(self._draft, op.key, pack(spans), self._now_ms)
        return self._accepted(op, result)

    def _accepted(self, op: Accept, result: AcceptResult) -> tuple[Accepted, AcceptResult]:
        spans = of_ids(int.from_bytes(key[10:], "big") for key in result.due_keys)
        if spans:
            self._txn.put(op.key, pack(spans), db=self._db["unsafe"])
        if not spans:  # seen before, or all of it suppressed: nothing is to be copied
            return Accepted(normal((i[0], len(i)) for i in result.ids if len(i)), known=True), result
        return Accepted(spans), result

    def _release(self, spans: Spans) -> list[bytes]:
        due_keys = []
        for id_ in ids_of(spans):
            record = self._message(id_)
            if record is not None:
                key = due_key(record.queue, record.due_ms, id_)
                due_keys.append(key)
                self._draft.due.add(key, u48(record.expires_ms))
        return due_keys

    # -- everything else

    def apply(self, op: Operation) -> Any:
        match op:
            case SaveEpoch():
                epoch, first, _, standby = self._self()
                self._save(max(epoch, op.epoch), first, False, standby)
            case SaveClean():
                self._clean(op)
            case SaveUnasked():
                self._txn.put(UNASKED, pack(op.unasked), db=self._db["failover"])
            case SaveStandby():
                if op.only_if_empty and not self._is_empty():
                    return False
                self._save(*self._self()[:3], op.name)
                return True
            case IsEmpty():
                return self._is_empty()
            case Release():
                self._txn.delete(op.key, db=self._db["unsafe"])
                return self._release(op.spans)
            case Abandon():
                self._give_up(op.spans, "", OutcomeKind.REPLACED)
                accepting.remember(self._draft, op.key, pack(op.instead), self._now_ms)
            case TakeQueued():
                return self._queued(op)
            case OpenSession():
                fence, adopted, _, highest = self._owner(op.owner)
                if op.epoch < fence:
                    return None
                self._save_owner(op.owner, fence, adopted, op.epoch, highest)
                return self._copies_of(op.owner)
            case Apply():
                return self._apply(op)
            case Adopt():
                return self._adopt(op)
            case Inspect():
                return self._inspect(op)
            case GiveUp():
                self._give_up(op.spans, op.keeper, OutcomeKind.MOVED)
            case Mark():
                self._mark(op.spans)
            case DropCopies():
                return self._drop_copies(op.owner)
            case LookUp():
                known = accepting.recall(self._draft, op.key)
                if known is not None:
                    return Accepted(recalled_spans(known), known=True)
                own = self._hearsay.of(op.key, self._numbers[op.asker]) if op.asker else None
                return None if own is None else Accepted(own, known=True)
        return None

    def _self(self) -> tuple[int, int, bool, str]:
        stored = self._txn.get(SELF, db=self._db["failover"])
        return tuple(msgpack.unpackb(stored)) if stored else (0, 0, False, "")

    def _save(self, epoch: int, first: int, clean: bool, standby: str) -> None:
        self._txn.put(SELF, pack((epoch, first, clean, standby)), db=self._db["failover"])

    def _owner(self, owner: str) -> tuple[int, bool, int, int]:
        """Lowest epoch that may write, whether that came by adoption, epoch of its session, highest id seen."""
        stored = self._txn.get(_owner_key(self._numbers[owner]), db=self._db["failover"])
        return tuple(msgpack.unpackb(stored)) if stored else (0, False, 0, 0)

    def _save_owner(self, owner: str, fence: int, adopted: bool, held: int, highest: int) -> None:
        key = _owner_key(self._numbers[owner])
        self._txn.put(key, pack((fence, adopted, held, highest)), db=self._db["failover"])

    def _clean(self, op: SaveClean) -> None:
        epoch, first, _, standby = self._self()
        self._save(epoch, first or op.epoch, epoch == op.epoch, standby)
        totals = self._draft.totals
        wanted = (op.highest & SEQ_MASK) + 1 if op.highest else 0
        if epoch == op.epoch:
            self._txn.put(LIVED, pack(epoch), db=self._db["failover"])
        self._txn.put(UNASKED, pack(op.unasked), db=self._db["failover"])
        if op.unasked and not first:
            wanted = max(wanted, (self._now_ms // 1000 - TIME_BEGINS_S) << IDS_PER_SECOND_BITS)
        if wanted > totals.next_seq:
            skipped = skipped_sequences(self._txn.get(SKIPPED, db=self._db["failover"]))
            skipped.append((totals.next_seq, wanted))
            self._txn.put(SKIPPED, pack(skipped), db=self._db["failover"])
            totals.next_seq = wanted

    def _is_empty(self) -> bool:
        with self._txn.cursor(db=self._db["messages"]) as cursor:
            return not cursor.first()

    def _queued(self, op: TakeQueued) -> Queued:
        unsafe: set[int] = set()
        if not op.unsafe:
            for _, value in self._txn.cursor(db=self._db["unsafe"]):
                unsafe.update(ids_of(_spans(value)))
        with self._txn.cursor(db=self._db["messages"]) as cursor:
            if not cursor.set_range((op.after + 1).to_bytes(8, "big")):
                return Queued(())
            keys = islice(cursor.iternext(keys=True, values=False), LISTED_AT_ONCE)
            ids = [int.from_bytes(key, "big") for key in keys]
            last = ids[-1] if len(ids) == LISTED_AT_ONCE else -1
        return Queued(of_sorted(id_ for id_ in ids if id_ not in unsafe), last)

    def _message(self, id_: int) -> Record | None:
        stored = self._txn.get(id_.to_bytes(8, "big"), db=self._db["messages"])
        return None if stored is None else self._decoded(id_, stored)

    def _decoded(self, id_: int, stored: bytes) -> Record | None:
        """A record of ours or a copy; None if it is damaged, which holds up no other."""
        try:
            return decode_record(id_, stored)
        except DamagedRecord as error:
            log.error("spool %s: %s", self._draft.env.path, error)
            return None

    # -- copies

    def _copy_key(self, owner: str, id_: int) -> bytes:
        return self._numbers[owner].to_bytes(2, "big") + id_.to_bytes(8, "big")

    def _copies_of(self, owner: str) -> Spans:
        prefix = self._numbers[owner].to_bytes(2, "big")
        with self._txn.cursor(db=self._db["copies"]) as cursor:
            if not cursor.set_range(prefix):
                return ()
            return of_sorted(_ids_with(cursor, prefix))

    def _apply(self, op: Apply) -> str:
        fence, adopted, held, highest = self._owner(op.owner)
        if op.epoch < fence:
            return FENCED
        for key in op.confirmed:
            self._hearsay.confirm(key, self._numbers[op.owner])
        highest = max(highest, self._entry(op.owner, op.entry))
        self._save_owner(op.owner, fence, adopted, held, highest)
        return ""

    def _entry(self, owner: str, entry: Entry) -> int:
        """Returns the highest of the owner's own ids in it."""
        match entry:
            case Copy():
                return self._store(owner, entry.payload, entry.key)
            case Drop():
                self._drop(owner, entry.spans)
            case Update():
                for id_, due_ms, attempts, flags, last in msgpack.unpackb(entry.payload):
                    key = self._copy_key(owner, id_)
                    stored = self._txn.get(key, db=self._db["copies"])
                    record = None if stored is None else self._decoded(id_, stored)
                    if record is not None:
                        changed = record._replace(due_ms=due_ms, attempts=attempts, flags=flags, last=last)
                        self._txn.put(key, changed.encode(), db=self._db["copies"])
        return 0

    def _store(self, owner: str, payload: bytes, batch: bytes = b"") -> int:
        keys, campaigns, rows, blob = msgpack.unpackb(payload)
        self._learn(owner, batch, keys)
        numbers = [self._campaign(CampaignRecord(*fields)) for fields in campaigns]
        segment, base = self._append(self._draft, blob) if blob else (0, 0)
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
            key = self._copy_key(owner, id_)
            earlier = self._txn.replace(key, record.encode(), db=self._db["copies"])
            if earlier is not None:
                self._copy_gone(id_, earlier)
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

    def _campaign(self, record: CampaignRecord) -> int:
        """The number of a campaign here; if the name stands for another template, one of its own."""
        try:
            return accepting.put_campaign(self._draft, record)
        except CampaignConflict:
            digest = zlib.crc32(pack((record.sender, list(record.field_names), record.template)))
            return accepting.put_campaign(self._draft, record, alias=f"{record.campaign}\0{digest:08x}")

    def _body_gone(self, record: Record) -> None:
        if len(record.content) == 4:
            self._draft.live(record.content[0], -1)

    def _copy_gone(self, id_: int, stored: bytes) -> None:
        record = self._decoded(id_, stored)
        if record is not None:  # else its segment stays: where its body is cannot be known
            self._body_gone(record)

    def _drop(self, owner: str, spans: Spans) -> None:
        for id_ in ids_of(spans):
            stored = self._txn.pop(self._copy_key(owner, id_), db=self._db["copies"])
            if stored is not None:
                self._copy_gone(id_, stored)

    def _drop_copies(self, owner: str) -> bool:
        prefix = self._numbers[owner].to_bytes(2, "big")
        with self._txn.cursor(db=self._db["copies"]) as cursor:
            found = cursor.set_range(prefix)
            ids = list(islice(_ids_with(cursor, prefix), ADOPTED_AT_ONCE)) if found else []
        self._drop(owner, of_sorted(ids))
        number = self._numbers[owner]
        for key in self._hearsay.owned_by(number):
            self._hearsay.forget(key, number)
        return len(ids) == ADOPTED_AT_ONCE

    # -- adoption and return

    def _adopt(self, op: Adopt) -> Adopted:
        fence, by_adoption, held, highest = self._owner(op.owner)
        if self._self()[0] != op.epoch or op.fence < fence:
            return Adopted(())
        if op.fence == fence and (not by_adoption or held >= fence) and not op.forced:
            return Adopted(())
        self._save_owner(op.owner, op.fence, True, held, highest)
        self._hearsay.sweep(self._now_ms)
        number = self._numbers[op.owner]
        for key in self._hearsay.owned_by(number):
            self._hearsay.adopt(key, number)
        prefix = self._numbers[op.owner].to_bytes(2, "big")
        records: list[Record] = []
        with self._txn.cursor(db=self._db["copies"]) as cursor:
            found = cursor.set_range(prefix)
            while found and bytes(cursor.key())[:2] == prefix and len(records) < ADOPTED_AT_ONCE:
                record = self._decoded(int.from_bytes(cursor.key()[2:], "big"), bytes(cursor.value()))
                if record is None:  # it stays a copy, which is never sent
                    found = cursor.next()
                    continue
                records.append(record)
                found = cursor.delete()
        adopted = []
        for record in records:
            id_ = record.id
            if self._draft.word(id_) not in NOT_HERE:
                self._body_gone(record)
                continue
            if record.due_ms <= self._now_ms + CLOCKS_DIFFER_MS:
                record = record._replace(flags=record.flags | MAYBE_SENT)
            self._txn.put(id_.to_bytes(8, "big"), record.encode(), db=self._db["messages"])
            self._draft.due.add(due_key(record.queue, record.due_ms, id_), u48(record.expires_ms))
            self._draft.adopted(id_)
            adopted.append(id_)
        return Adopted(of_ids(adopted), more=len(records) == ADOPTED_AT_ONCE)

    def _inspect(self, op: Inspect) -> Inspected | None:
        fence, _, held, highest = self._owner(op.owner)
        if op.epoch < fence:
            return None
        self._save_owner(op.owner, op.epoch, False, held, highest)
        mine: list[Span] = []
        seen, page, is_whole = -1, b"", False
        for first, count in op.queued:
            for start in range(first - first % PAGE_IDS, first + count, PAGE_IDS):
                if start != seen:
                    page = self._draft.seen_page(page_of(start, self._draft.totals.region))
                    seen, page = start, page if page.translate(None, NEITHER) else b""
                    is_whole = bool(page) and not page.translate(None, BOTH)
                if not page:  # none of it is ours
                    continue
                ids = range(max(first, start), min(first + count, start + PAGE_IDS))
                if is_whole:
                    mine.append((ids.start, len(ids)))
                else:
                    mine += of_sorted(id_ for id_ in ids if word_of(page, id_ & SEQ_MASK) not in NOT_HERE)
        return Inspected(normal(mine), highest)

    def _give_up(self, spans: Spans, keeper: str, word: OutcomeKind) -> None:
        for id_ in ids_of(spans):
            stored = self._txn.pop(id_.to_bytes(8, "big"), db=self._db["messages"])
            if stored is None:
                continue
            record = self._decoded(id_, stored)
            if record is None:  # it stays queued here, and is never sent: the audit tells
                self._txn.put(id_.to_bytes(8, "big"), stored, db=self._db["messages"])
                continue
            self._draft.due.remove(due_key(record.queue, record.due_ms, id_))
            copied = bool(keeper) and self._txn.put(
                self._copy_key(keeper, id_), stored, db=self._db["copies"], overwrite=False
            )
            if not copied:
                self._body_gone(record)
            self._draft.finish(id_, word)
        held = [(bytes(k), _spans(v)) for k, v in self._txn.cursor(db=self._db["unsafe"])]
        for key, own in held:
            if not intersect(own, spans):
                continue
            left = subtract(own, spans)
            if left:
                self._txn.put(key, pack(left), db=self._db["unsafe"])
            else:
                self._txn.delete(key, db=self._db["unsafe"])
        self._hearsay.given_up(spans, lambda id_: self._draft.word(id_) not in NOT_HERE)

    def _mark(self, spans: Spans) -> None:
        for id_ in ids_of(spans):
            record = self._message(id_)
            if record is None or record.flags & MAYBE_SENT:
                continue
            if record.due_ms <= self._now_ms + CLOCKS_DIFFER_MS:
                marked = record._replace(flags=record.flags | MAYBE_SENT)
                self._txn.put(id_.to_bytes(8, "big"), marked.encode(), db=self._db["messages"])


def _ids_with(cursor: Any, prefix: bytes) -> Any:
    for key in cursor.iternext(keys=True, values=False):
        if bytes(key[:2]) != prefix:
            return
        yield int.from_bytes(key[2:], "big")


def of_sorted(ids: Any) -> Spans:
    """Runs of ids that come in order."""
    runs: list[tuple[int, int]] = []
    first = count = 0
    for id_ in ids:
        if count and id_ == first + count:
            count += 1
            continue
        if count:
            runs.append((first, count))
        first, count = id_, 1
    if count:
        runs.append((first, count))
    return tuple(runs)

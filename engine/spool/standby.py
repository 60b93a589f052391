"""The spool's side of failover: adoption and return, and what of our own is not safe yet. Copies: copies.py.

unsafe    batch key -> spans of ids that are queued and not due: their copy is not on the standby's disk yet
failover  `self` -> [epoch, first, clean, standby]; `o` number (2) -> [fence, by adoption, held, highest id]
          `unasked` -> [[region, epoch]]: see SaveClean in engine/failover/store.py; `lived` -> epoch: see Durable there
          `life` -> number of the process that has the spool: see SaveLife there
"""

from collections.abc import Mapping
from itertools import islice
from typing import Any

import msgpack

from engine.failover.spans import Span, Spans, ids_of, intersect, normal, of_ids, of_sorted, subtract
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
    SaveLife,
    SaveStandby,
    SaveUnasked,
    TakeQueued,
)
from engine.spool import accepting
from engine.spool.batches import AcceptBatch, AcceptResult, CampaignRecord, ChunkBatch
from engine.spool.copies import Append, Copies, has_copies
from engine.spool.draft import NOT_HERE, PAGE_IDS, SKIPPED, Draft, page_of, skipped_sequences, word_of
from engine.spool.environment import Environment
from engine.spool.hearsay import Hearsay
from engine.spool.records import MAYBE_SENT, Record, due_key, pack, u48
from engine.values.ids import SEQ_MASK
from engine.values.outcome import OutcomeKind

SELF = b"self"
UNASKED = b"unasked"
LIVED = b"lived"
LIFE = b"life"
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
            if adopted and has_copies(env, txn, number):
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


def begin_life(env: Environment, txn: Any, now_ms: int) -> int:
    """Another process has the spool: its number, which is greater than those before, also when the clock was set back.
    A disk that knows of none begins at the time."""
    life = max(_life(env, txn) + 1, now_ms)
    txn.put(LIFE, pack(life), db=env.db["failover"])
    return life


def _life(env: Environment, txn: Any) -> int:
    stored = txn.get(LIFE, db=env.db["failover"])
    return int(msgpack.unpackb(stored)) if stored else 0


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
        self._db = draft.env.db
        self._txn = draft.txn
        self._hearsay = Hearsay(draft)
        self._copies = Copies(draft, numbers, append, self._hearsay)

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
            ttl_ms = accepting.CHUNK_KEY_TTL_MS
            accepting.remember(self._draft, op.key, pack(spans), self._now_ms, ttl_ms=ttl_ms)
        return self._accepted(op, result)

    def _accepted(self, op: Accept, result: AcceptResult) -> tuple[Accepted, AcceptResult]:
        spans = of_ids(int.from_bytes(key[10:], "big") for key in result.due_keys)
        if spans:
            self._txn.put(op.key, pack(spans), db=self._db["unsafe"])
        if not spans:  # seen before, or all of it suppressed: nothing is to be copied
            return Accepted(normal((i[0], len(i)) for i in result.ids if len(i)), known=True), result
        return Accepted(spans), result

    def _hold(self, key: bytes, spans: Spans) -> None:
        """What is queued of these is not due any more."""
        held = []
        for id_ in ids_of(spans):
            record = self._message(id_)
            if record is not None:
                held.append(id_)
                self._draft.due.remove(due_key(record.queue, record.due_ms, id_))
        if held:
            self._txn.put(key, pack(of_ids(held)), db=self._db["unsafe"])

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
                for key, spans in op.unsafe:
                    self._hold(key, spans)
            case SaveClean():
                self._clean(op)
            case SaveUnasked():
                self._txn.put(UNASKED, pack(op.unasked), db=self._db["failover"])
            case SaveLife():
                life = max(_life(self._draft.env, self._txn), op.life)
                self._txn.put(LIFE, pack(life), db=self._db["failover"])
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
                self._give_up(op.spans, OutcomeKind.REPLACED)
                accepting.remember(self._draft, op.key, pack(op.instead), self._now_ms)
            case TakeQueued():
                return self._queued(op)
            case OpenSession():
                fence, adopted, held, highest = self._owner(op.owner)
                if op.epoch < fence:
                    return None
                self._save_owner(op.owner, fence, adopted, max(held, op.epoch), highest)
                return self._copies.of(op.owner)
            case Apply():
                return self._apply(op)
            case Adopt():
                return self._adopt(op)
            case Inspect():
                return self._inspect(op)
            case GiveUp():
                self._give_up(op.spans, OutcomeKind.MOVED, keeper=op.to if op.is_standby else "")
                self._hearsay.given_up(op.spans, self._numbers[op.to], self._is_here)
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
        if not first:  # a new disk: where the ids of one before it ended, nobody may know any more
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
        if op.after < 0:
            self._hearsay.forget_sent()
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
        listed = of_sorted(id_ for id_ in ids if id_ not in unsafe)
        return Queued(listed, last, intersect(self._hearsay.adopted(), listed))

    def _message(self, id_: int) -> Record | None:
        stored = self._txn.get(id_.to_bytes(8, "big"), db=self._db["messages"])
        return None if stored is None else self._copies.decoded(id_, stored)

    # -- copies

    def _apply(self, op: Apply) -> str:
        fence, adopted, held, highest = self._owner(op.owner)
        if op.epoch < fence:
            return FENCED
        for key in op.confirmed:
            self._hearsay.confirm(key, self._numbers[op.owner])
        highest = max(highest, self._copies.take(op.owner, op.entry))
        self._save_owner(op.owner, fence, adopted, held, highest)
        return ""

    def _drop_copies(self, owner: str) -> bool:
        number = self._numbers[owner]
        for key in self._hearsay.owned_by(number):
            self._hearsay.forget(key, number)
        return self._copies.drop_some(owner, ADOPTED_AT_ONCE) == ADOPTED_AT_ONCE

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
        records = self._copies.pop_some(op.owner, ADOPTED_AT_ONCE)
        adopted = []
        for record in records:
            id_ = record.id
            if self._is_here(id_):
                self._copies.body_gone(record)
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

    def _give_up(self, spans: Spans, word: OutcomeKind, *, keeper: str = "") -> None:
        for id_ in ids_of(spans):
            stored = self._txn.pop(id_.to_bytes(8, "big"), db=self._db["messages"])
            if stored is None:
                continue
            record = self._copies.decoded(id_, stored)
            if record is None:  # it stays queued here, and is never sent: the audit tells
                self._txn.put(id_.to_bytes(8, "big"), stored, db=self._db["messages"])
                continue
            self._draft.due.remove(due_key(record.queue, record.due_ms, id_))
            if keeper and record.last is not None:  # as in _mark
                stored = record._replace(flags=record.flags | MAYBE_SENT).encode()
            if not (keeper and self._copies.keep(keeper, id_, stored)):
                self._copies.body_gone(record)
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

    def _is_here(self, id_: int) -> bool:
        """Whether a message is queued here, or got its outcome here."""
        return self._draft.word(id_) not in NOT_HERE

    def _mark(self, spans: Spans) -> None:
        """What an adopter may have sent. It may have had a copy from before the last attempt here, due sooner; what
        was never tried is due when it always was."""
        for id_ in ids_of(spans):
            record = self._message(id_)
            if record is None or record.flags & MAYBE_SENT:
                continue
            if record.due_ms <= self._now_ms + CLOCKS_DIFFER_MS or record.last is not None:
                marked = record._replace(flags=record.flags | MAYBE_SENT)
                self._txn.put(id_.to_bytes(8, "big"), marked.encode(), db=self._db["messages"])

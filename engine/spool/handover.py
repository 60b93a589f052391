"""The spool's side of hand-over (engine/failover/handover.py): each operation is done whole, in one transaction.

offers    number (8, big endian) -> [peer, its disk, spans]: offered to that peer and not due here, until it is decided
failover  `handover` -> [disk, latest number]; `h` number of a giver (2) -> [closed, number, spans taken]

An offered message stays in `messages`, as queued. What is taken comes as a copy does (engine/spool/copies.py), with
bodies and templates, and replaces the copy that the taker may have held as the giver's standby.
"""

from dataclasses import dataclass
from typing import Any

import msgpack

from engine.failover.handover import Book, MakeOffer, Offer, Recall, SettleOffer, Verdict
from engine.failover.spans import Spans, ids_of, of_ids
from engine.failover.store import Inspect, Inspected
from engine.spool import accepting, settling
from engine.spool.draft import Draft
from engine.spool.environment import Environment
from engine.spool.records import MAYBE_SENT, decode_record, due_key, pack, u48
from engine.spool.standby import Keeper
from engine.values.outcome import OutcomeKind

HANDOVER = b"handover"


@dataclass(frozen=True, slots=True)
class Identify:
    """Read this disk's identity; if it has none, it is `fresh` from now on. Result: bytes."""

    fresh: bytes


@dataclass(frozen=True, slots=True)
class Decide:
    """A giver's offer or question. Result: Decided; None if there is no answer, or the giver is superseded."""

    request: Offer | Recall
    is_willing: bool


@dataclass(frozen=True, slots=True)
class Decided:
    """`due_keys`: of what has just been taken."""

    verdict: Verdict
    due_keys: list[bytes]


@dataclass(frozen=True, slots=True)
class KeepKeys:
    """Remember a giver's idempotency keys (Exporter.keys)."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Knows:
    """Whether a batch key, or a campaign's part (its row in `chunks`), was accepted here. Result: bool."""

    key: bytes = b""
    chunk: bytes = b""


@dataclass(frozen=True, slots=True)
class Settled:
    """`due_keys`: of what came back. `is_done` is False if the peer has returned since it was called dead."""

    is_done: bool
    due_keys: list[bytes]


HandoverOperation = Identify | MakeOffer | SettleOffer | Decide | KeepKeys | Knows


@dataclass(frozen=True, slots=True)
class Offers:
    """What is on disk: offers without a decision, and the latest number that was used."""

    offers: tuple[MakeOffer, ...]
    number: int


def read_offers(env: Environment) -> Offers:
    with env.read() as txn:
        stored = txn.get(HANDOVER, db=env.db["failover"])
        number = msgpack.unpackb(stored)[1] if stored else 0
        return Offers(tuple(_rows(env, txn)), number)


def _rows(env: Environment, txn: Any) -> list[MakeOffer]:
    return [
        MakeOffer(int.from_bytes(key, "big"), peer, disk, tuple((first, count) for first, count in spans))
        for key, value in txn.cursor(db=env.db["offers"])
        for peer, disk, spans in [msgpack.unpackb(value)]
    ]


def offered_ids(env: Environment, txn: Any, *, to: str = "") -> set[int]:
    """Messages that are offered and not decided. `to`: to this peer only."""
    if "offers" not in env.db or not txn.stat(env.db["offers"])["entries"]:
        return set()
    return {id_ for row in _rows(env, txn) if to in ("", row.peer) for id_ in ids_of(row.spans)}


class HandoverKeeper(Keeper):
    """One operation's work in one draft, of hand-over or of what it adds to failover."""

    def do(self, op: HandoverOperation) -> Any:
        match op:
            case Identify():
                return self._identify(op.fresh)
            case MakeOffer():
                return self._make_offer(op)
            case SettleOffer():
                return self._settle_offer(op)
            case Decide():
                return self._decide(op)
            case KeepKeys():
                self._store_keys(op.payload)
                return None
            case Knows():
                known = self._txn.get(op.chunk, db=self._db["chunks"]) if op.chunk else None
                return known is not None or bool(op.key and accepting.recall(self._draft, op.key) is not None)

    def _inspect(self, op: Inspect) -> Inspected | None:
        """What is offered to the asker itself is not ours to claim: it may have taken it, and then it alone has it."""
        found = super()._inspect(op)
        offered = offered_ids(self._draft.env, self._txn, to=op.owner)
        if found is None or not offered:
            return found
        return Inspected(of_ids(id_ for id_ in ids_of(found.mine) if id_ not in offered), found.highest)

    def _handover(self) -> tuple[bytes, int]:
        stored = self._txn.get(HANDOVER, db=self._db["failover"])
        return tuple(msgpack.unpackb(stored)) if stored else (b"", 0)

    def _identify(self, fresh: bytes) -> bytes:
        disk, number = self._handover()
        if not disk:
            disk = fresh
            self._txn.put(HANDOVER, pack((disk, number)), db=self._db["failover"])
        return disk

    # -- the giver

    def _make_offer(self, op: MakeOffer) -> Spans:
        offered = []
        for id_ in ids_of(op.spans):
            record = self._message(id_)
            if record is None:
                continue
            key = due_key(record.queue, record.due_ms, id_)
            if self._draft.is_due(key):
                self._draft.due.remove(key)
                offered.append(id_)
        spans = of_ids(offered)
        disk, number = self._handover()
        self._txn.put(HANDOVER, pack((disk, max(number, op.number))), db=self._db["failover"])
        if spans:
            value = pack((op.peer, op.disk, spans))
            self._txn.put(op.number.to_bytes(8, "big"), value, db=self._db["offers"])
        return spans

    def _settle_offer(self, op: SettleOffer) -> Settled:
        if op.dead is not None:
            fence, by_adoption, _, _ = self._owner(op.dead[0])
            if fence != op.dead[1] or not by_adoption:
                return Settled(False, [])
        stored = self._txn.pop(op.number.to_bytes(8, "big"), db=self._db["offers"])
        if stored is None:
            return Settled(True, [])
        peer, _, spans = msgpack.unpackb(stored)
        taken = set(ids_of(op.taken))
        due_keys = []
        count = 0
        for id_ in ids_of(spans):
            record = self._message(id_)
            if record is None:  # given up since, to a region that had adopted it
                continue
            if id_ in taken:
                self._txn.delete(id_.to_bytes(8, "big"), db=self._db["messages"])
                self._copies.body_gone(record)
                self._draft.finish(id_, OutcomeKind.MOVED)
                count += 1
                continue
            if op.marked:
                record = record._replace(flags=record.flags | MAYBE_SENT)
                self._txn.put(id_.to_bytes(8, "big"), record.encode(), db=self._db["messages"])
            due_keys.append(due_key(record.queue, record.due_ms, id_))
            self._draft.due.add(due_keys[-1], u48(record.expires_ms))
        if count:
            self._draft.event((self._now_ms, "handed_over", {"to": peer, "messages": count}))
        return Settled(True, due_keys)

    # -- the taker

    def _book_key(self, giver: str) -> bytes:
        return b"h" + self._numbers[giver].to_bytes(2, "big")

    def _book(self, giver: str) -> Book:
        stored = self._txn.get(self._book_key(giver), db=self._db["failover"])
        if stored is None:
            return Book()
        closed, number, taken = msgpack.unpackb(stored)
        return Book(closed, number, tuple((first, count) for first, count in taken))

    def _decide(self, op: Decide) -> Decided | None:
        request = op.request
        fence = self._owner(request.giver)[0]
        if request.epoch and request.epoch < fence:
            return None
        disk = self._handover()[0]
        if isinstance(request, Recall) and request.doubt:
            owned = self._owned(request.spans)
            return None if owned is None else Decided(Verdict(request.number, disk, owned), [])
        before = book = self._book(request.giver)
        due_keys: list[bytes] = []
        if not book.is_open(request.number):
            pass
        elif isinstance(request, Offer) and op.is_willing and request.disk == disk:
            due_keys = self._take(request)
            book = book.took(request.number, of_ids(int.from_bytes(key[10:], "big") for key in due_keys))
        else:
            book = book.close(request.number)
        if book != before:
            value = pack((book.closed, book.number, book.taken))
            self._txn.put(self._book_key(request.giver), value, db=self._db["failover"])
        taken = book.verdict(request.number, request.spans)
        return Decided(Verdict(request.number, disk, taken, closed=book.closed), due_keys)

    def _take(self, offer: Offer) -> list[bytes]:
        """Own what has come with the offer, except what was here already; due keys of the rest."""
        self._copies.store(offer.giver, offer.payload)
        arrived = {row[0] for row in msgpack.unpackb(offer.payload)[2]}
        due_keys = []
        for id_ in ids_of(offer.spans):
            if id_ not in arrived:  # there may be an old copy of it, which is no offer
                continue
            stored = self._copies.pop(offer.giver, id_)
            record = decode_record(id_, stored)
            if self._is_here(id_):
                self._copies.body_gone(record)
                continue
            self._txn.put(id_.to_bytes(8, "big"), stored, db=self._db["messages"])
            due_keys.append(due_key(record.queue, record.due_ms, id_))
            self._draft.due.add(due_keys[-1], u48(record.expires_ms))
            self._draft.adopted(id_)
        return due_keys

    def _owned(self, spans: Spans) -> Spans | None:
        """Those that are queued here or got their outcome here; None as long as one is offered on."""
        ids = ids_of(spans)
        if not offered_ids(self._draft.env, self._txn).isdisjoint(ids):
            return None
        return of_ids(id_ for id_ in ids if self._is_here(id_))

    def _store_keys(self, payload: bytes) -> None:
        for key, value in msgpack.unpackb(payload)[0]:
            self._hearsay.told(key, value)


def without_offered(env: Environment, draft: Draft, ids: bytes) -> tuple[bytes, list[int]]:
    """Packed ids (8 bytes each, little endian) of a dispatch, without those that are offered to a peer; and these."""
    offered = offered_ids(env, draft.txn)
    if not offered:
        return ids, []
    wanted = [id_ for (id_,) in settling.ID_LE.iter_unpack(ids)]
    held = [id_ for id_ in wanted if id_ in offered]
    return b"".join([settling.ID_LE.pack(id_) for id_ in wanted if id_ not in offered]), held

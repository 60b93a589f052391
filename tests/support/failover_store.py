"""The store of engine/failover in memory: the reference for the real one, and the disk of the simulation."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field

from engine.failover.effects import Export
from engine.failover.messages import Copy, Drop, Entry
from engine.failover.spans import Spans, ids_of, intersect, of_ids, subtract
from engine.failover.standby import FENCED
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

ADOPTED_AT_ONCE = 5
LISTED_AT_ONCE = 7
MARGIN = 7_000_000_000  # what is due within it may have been sent by a region with another clock


@dataclass(slots=True)
class Owned:
    """A queued message: when it is due, and whether it may have been sent before."""

    due: int
    maybe_sent: bool = False


@dataclass(slots=True)
class Disk:
    """Everything that survives a crash. Each operation of `apply` is whole or not there."""

    name: str
    number: int
    numbers: dict[str, int]
    keys_at_once: int = 0  # of an export of all keys; 0: all
    born: int = 0  # stands for the time at which it was new
    epoch: int = 0
    first: int = 0
    clean: bool = False
    lived: int = 0
    standby: str = ""
    unasked: tuple[tuple[str, int], ...] = ()
    life: int = 0  # of the process that has begun last
    next_seq: int = 1
    fences: dict[str, tuple[int, bool]] = field(default_factory=dict)  # owner: epoch, by adoption
    held: dict[str, int] = field(default_factory=dict)
    owned: dict[int, Owned] = field(default_factory=dict)
    unsafe: dict[bytes, Spans] = field(default_factory=dict)
    final: set[int] = field(default_factory=set)
    given_up: set[int] = field(default_factory=set)
    keys: dict[bytes, Spans] = field(default_factory=dict)
    hearsay: dict[tuple[bytes, str], Spans] = field(default_factory=dict)
    adopted_keys: dict[tuple[bytes, str], Spans] = field(default_factory=dict)
    copies: dict[str, dict[int, int]] = field(default_factory=dict)  # owner: id: due
    highest: dict[int, int] = field(default_factory=dict)

    def load(self) -> Durable:
        return Durable(
            self.epoch,
            self.first,
            self.clean,
            self.standby,
            tuple(sorted((owner, epoch) for owner, (epoch, _) in self.fences.items())),
            tuple(sorted(self.held.items())),
            tuple(sorted((owner, epoch) for owner, (epoch, adopted) in self.fences.items() if not adopted)),
            self.unasked,
            tuple(self.unsafe.items()),
            self.lived,
            tuple(owner for owner, (_, adopted) in self.fences.items() if adopted and self.copies.get(owner)),
        )

    def begin(self, now: int) -> int:
        """A process starts at this time of its clock: its number."""
        self.life = max(self.life + 1, now)
        return self.life

    def safe(self) -> list[int]:
        """Ids that are owned and due, or will be."""
        unsafe = {id_ for spans in self.unsafe.values() for id_ in ids_of(spans)}
        return [id_ for id_ in self.owned if id_ not in unsafe]

    def settle(self, ids: list[int]) -> list[int]:
        """Outcomes of our own messages; returns those that were queued."""
        done = [id_ for id_ in ids if id_ in self.owned]
        for id_ in done:
            del self.owned[id_]
            self.final.add(id_)
        return done

    def export(self, export: Export) -> tuple[Spans, bytes, bytes]:
        """Spans that are still queued, payload, next cursor."""
        if export.keys:
            page, cursor = self._page_of_keys(export.cursor)
            withheld = {key for key, ids in self._adopted() if self._is_waiting(ids)}
            keys = {key: self.keys[key] for key in page if key not in self.unsafe and key not in withheld}
            return (), pickle.dumps((keys, {}, {})), cursor
        ids = [id_ for id_ in ids_of(export.spans) if id_ in self.owned]
        keys = {export.key: self.keys[export.key]} if export.key in self.keys and ids else {}
        touched = [(k, batch) for k, batch in self._adopted() if not batch.isdisjoint(ids_of(export.spans))]
        adopted = {key: of_ids(batch) for key, batch in touched if self._is_waiting(batch)}
        keys.update({key: self.keys[key] for key, _ in touched if key not in adopted and key in self.keys})
        if not ids and not keys:
            return (), b"", b""
        dues = {id_: self.owned[id_].due for id_ in ids}
        return of_ids(ids), pickle.dumps((keys, dues, adopted)), b""

    def _is_waiting(self, ids: set[int]) -> bool:
        """Whether one of them is queued here, or, in the middle of an adoption, a copy still."""
        return not ids.isdisjoint(self.owned) or any(not ids.isdisjoint(of) for of in self.copies.values())

    def _adopted(self) -> list[tuple[bytes, set[int]]]:
        return [(key, set(ids_of(spans))) for (key, _), spans in self.adopted_keys.items()]

    def _page_of_keys(self, cursor: bytes) -> tuple[list[bytes], bytes]:
        if not self.keys_at_once:
            return list(self.keys), b""
        rest = sorted(key for key in self.keys if key > cursor)
        page = rest[: self.keys_at_once]
        return page, page[-1] if len(rest) > len(page) else b""

    def _writes(self, owner: str, epoch: int) -> bool:
        return epoch >= self.fences.get(owner, (0, False))[0]

    def apply(self, op: Operation, now: int, due: Callable[[bytes], int]) -> object:
        """`now` is this machine's wall clock, `due` the due time of a new batch by its key."""
        match op:
            case SaveEpoch():
                self.epoch, self.clean = max(self.epoch, op.epoch), False
                for key, spans in op.unsafe:
                    left = of_ids(id_ for id_ in ids_of(spans) if id_ in self.owned)
                    if left:
                        self.unsafe[key] = left
            case SaveClean():
                self.clean = self.epoch == op.epoch
                self.next_seq = max(self.next_seq, (op.highest & (1 << 48) - 1) + 1)
                if not self.first:
                    self.next_seq = max(self.next_seq, self.born << 16)
                self.unasked = op.unasked
                self.first = self.first or op.epoch
                self.lived = op.epoch if self.clean else self.lived
            case SaveUnasked():
                self.unasked = op.unasked
            case SaveLife():
                self.life = max(self.life, op.life)
            case SaveStandby():
                if op.only_if_empty and self.owned:
                    return False
                self.standby = op.name
                return True
            case IsEmpty():
                return not self.owned
            case Accept():
                return self._accept(op, due(op.key))
            case Release():
                self.unsafe.pop(op.key, None)
            case Abandon():
                for id_ in ids_of(op.spans):
                    if self.owned.pop(id_, None) is not None:
                        self.given_up.add(id_)
                self.unsafe.pop(op.key, None)
                self.keys[op.key] = op.instead
            case TakeQueued():
                return self._queued(op)
            case OpenSession():
                if not self._writes(op.owner, op.epoch):
                    return None
                self.held[op.owner] = max(self.held.get(op.owner, 0), op.epoch)
                return of_ids(self.copies.get(op.owner, ()))
            case Apply():
                if not self._writes(op.owner, op.epoch):
                    return FENCED
                for key in op.confirmed:
                    self._confirm(key, op.owner)
                self._apply(op.owner, op.entry)
                return ""
            case Adopt():
                return self._adopt(op, now)
            case Inspect():
                if not self._writes(op.owner, op.epoch):
                    return None
                self.fences[op.owner] = (op.epoch, False)
                mine = [id_ for id_ in ids_of(op.queued) if id_ in self.owned or id_ in self.final]
                return Inspected(of_ids(mine), self.highest.get(self.numbers[op.owner], 0))
            case GiveUp():
                self._give_up(op.spans, op.to, is_standby=op.is_standby)
            case Mark():
                for id_ in ids_of(op.spans):
                    if id_ in self.owned and self.owned[id_].due <= now + MARGIN:
                        self.owned[id_].maybe_sent = True
            case DropCopies():
                return self._drop_copies(op.owner)
            case LookUp():
                known = self.keys.get(op.key, self.hearsay.get((op.key, op.asker)))
                return None if known is None else Accepted(known, known=True)
        return None

    def _queued(self, op: TakeQueued) -> Queued:
        above = sorted(id_ for id_ in self.owned if id_ > op.after)
        part = above[:LISTED_AT_ONCE]
        listed = part if op.unsafe else set(part).intersection(self.safe())
        with_keys = {id_ for _, ids in self._adopted() if self._is_waiting(ids) for id_ in ids}
        last = part[-1] if len(above) > len(part) else -1
        return Queued(of_ids(listed), last, of_ids(with_keys.intersection(listed)))

    def _drop_copies(self, owner: str) -> bool:
        for key, of in list(self.hearsay):
            if of == owner:
                del self.hearsay[key, of]
        copies = self.copies.get(owner, {})
        for id_ in list(copies)[:ADOPTED_AT_ONCE]:
            del copies[id_]
        return bool(copies)

    def _accept(self, op: Accept, due: int) -> Accepted:
        known = self.keys.get(op.key)
        if known is not None:
            return Accepted(known, known=True)
        if any(key == op.key for key, _ in self.hearsay):
            return Accepted((), hearsay=True)
        assert isinstance(op.payload, int)
        first = self.number << 48 | self.next_seq
        self.next_seq += op.payload
        for id_ in range(first, first + op.payload):
            self.owned[id_] = Owned(due)
        spans = ((first, op.payload),)
        self.unsafe[op.key] = spans
        self.keys[op.key] = spans
        return Accepted(spans)

    def _confirm(self, key: bytes, owner: str) -> None:
        spans = self.hearsay.pop((key, owner), None)
        if spans is not None:
            self.adopted_keys.pop((key, owner), None)
            self.keys.setdefault(key, spans)

    def _apply(self, owner: str, entry: Entry) -> None:
        copies = self.copies.setdefault(owner, {})
        match entry:
            case Copy():
                keys, dues, adopted = pickle.loads(entry.payload)
                for key, spans in adopted.items():
                    if key not in self.keys:
                        self.hearsay[key, owner] = spans
                for key, spans in keys.items():
                    if key == entry.key and key not in self.keys:
                        self.hearsay[key, owner] = spans
                    elif key != entry.key:
                        self.hearsay.pop((key, owner), None)
                        self.adopted_keys.pop((key, owner), None)
                        self.keys.setdefault(key, spans)
                for id_, due in dues.items():
                    copies[id_] = due
                    self.highest[id_ >> 48] = max(self.highest.get(id_ >> 48, 0), id_)
            case Drop():
                for id_ in ids_of(entry.spans):
                    copies.pop(id_, None)

    def _adopt(self, op: Adopt, now: int) -> Adopted:
        fence, by_adoption = self.fences.get(op.owner, (0, False))
        if self.epoch != op.epoch:
            return Adopted(())
        has_returned = not by_adoption or self.held.get(op.owner, 0) >= fence
        if op.fence < fence or (op.fence == fence and has_returned and not op.forced):
            return Adopted(())
        self.fences[op.owner] = (op.fence, True)
        copies = self.copies.get(op.owner, {})
        for key, owner in list(self.hearsay):
            if owner == op.owner:
                spans = self.adopted_keys[key, owner] = self.hearsay.pop((key, owner))
                self.keys.setdefault(key, spans)
        ids = sorted(copies)[:ADOPTED_AT_ONCE]
        adopted = []
        for id_ in ids:
            due = copies.pop(id_)
            if id_ in self.final or id_ in self.owned:
                continue
            self.owned[id_] = Owned(due, maybe_sent=due <= now + MARGIN)
            self.given_up.discard(id_)
            adopted.append(id_)
        return Adopted(of_ids(adopted), more=bool(copies))

    def _give_up(self, spans: Spans, to: str, *, is_standby: bool) -> None:
        for id_ in ids_of(spans):
            owned = self.owned.pop(id_, None)
            if owned is not None:
                self.given_up.add(id_)
                if is_standby:
                    self.copies.setdefault(to, {}).setdefault(id_, owned.due)
        for key, own in list(self.unsafe.items()):
            left = subtract(own, spans)
            if not left:
                del self.unsafe[key]
            elif left != own:
                self.unsafe[key] = left
        for (key, of), batch in list(self.adopted_keys.items()):
            is_here = any(id_ in self.owned or id_ in self.final for id_ in ids_of(batch))
            is_its = to == of or any(id_ >> 48 == self.numbers[to] for id_ in ids_of(batch))
            if is_its and intersect(batch, spans) and not is_here and self.keys.get(key) == batch:
                del self.adopted_keys[key, of], self.keys[key]

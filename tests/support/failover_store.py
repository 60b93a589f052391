"""The store of engine/failover in memory: the reference for the real one, and the disk of the simulation."""

from dataclasses import dataclass, field

from engine.failover.messages import Verdict
from engine.failover.spans import Spans, ids_of, normal, of_ids
from engine.failover.store import (
    Accept,
    Accepted,
    Acknowledge,
    AddAsk,
    Adopt,
    DropCopies,
    Durable,
    Export,
    Exported,
    InventoryResult,
    LookUp,
    Moved,
    OpenSession,
    Operation,
    SaveEpoch,
    SaveSeen,
    StoreCopy,
    StoreCopyResult,
    TakeInventory,
    TakeOver,
    TakeOverResult,
)


@dataclass(slots=True)
class Disk:
    """Everything that survives a crash. Each operation of `apply` is whole or not there."""

    name: str
    number: int
    epoch: int = 0
    next_id: int = 1
    fences: dict[str, int] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    asks: set[str] = field(default_factory=set)
    owned: dict[int, bool] = field(default_factory=dict)  # id: maybe sent
    unacked: dict[int, int] = field(default_factory=dict)  # first id: count
    final: set[int] = field(default_factory=set)
    moved: set[int] = field(default_factory=set)
    keys: dict[bytes, tuple[str, Spans]] = field(default_factory=dict)
    key_of: dict[int, bytes] = field(default_factory=dict)
    copies: dict[str, dict[int, bytes]] = field(default_factory=dict)  # owner: id: key
    sessions: dict[str, tuple[int, int]] = field(default_factory=dict)  # owner: session, own epoch then
    adopted: dict[str, set[int]] = field(default_factory=dict)  # owner: ids to tell it of

    def load(self) -> Durable:
        return Durable(
            self.epoch,
            tuple(sorted(self.fences.items())),
            tuple(sorted(self.seen.items())),
            frozenset(self.asks),
            of_ids(self.owned),
            tuple((span, self.key_of[span[0]]) for span in sorted(self.unacked.items())),
        )

    def settle(self, ids: list[int]) -> list[int]:
        """Outcomes of our own messages; returns those that were queued."""
        done = [id_ for id_ in ids if id_ in self.owned]
        for id_ in done:
            del self.owned[id_]
            self.final.add(id_)
        return done

    def _writes(self, owner: str, epoch: int) -> bool:
        return epoch >= self.fences.get(owner, 0)

    def _valid(self, owner: str) -> bool:
        return owner in self.sessions and self.sessions[owner][1] == self.epoch

    def apply(self, op: Operation) -> object:
        match op:
            case SaveEpoch():
                self.epoch = max(self.epoch, op.epoch)
                self.asks |= op.asks
            case SaveSeen():
                for name, epoch in op.epochs:
                    self.seen[name] = max(self.seen.get(name, 0), epoch)
            case Accept():
                return self._accept(op)
            case Acknowledge():
                self.unacked.pop(op.span[0], None)
            case Export():
                left = of_ids(id_ for id_ in ids_of((op.span,)) if id_ in self.owned)
                key = self.key_of.get(op.span[0], b"")
                if key and self.keys[key][1] != (op.span,):
                    key = b""
                return Exported(key, b"copy", left)
            case StoreCopy():
                return self._copy(op)
            case DropCopies():
                if self._writes(op.owner, op.epoch):
                    for id_ in ids_of(op.ids):
                        self.copies.get(op.owner, {}).pop(id_, None)
            case TakeInventory():
                if not self._writes(op.owner, op.epoch):
                    return None
                self.fences[op.owner] = op.epoch
                return InventoryResult(
                    self._valid(op.owner),
                    of_ids(self.copies.get(op.owner, ())),
                    of_ids(self.adopted.get(op.owner, ())),
                )
            case OpenSession():
                if not self._writes(op.owner, op.epoch) or self.sessions.get(op.owner, (-1,))[0] > op.session:
                    return False
                if self.sessions.get(op.owner, (-1,))[0] == op.session:
                    return True
                for id_ in ids_of(op.drop):
                    self.copies.get(op.owner, {}).pop(id_, None)
                self.adopted.pop(op.owner, None)
                self.sessions[op.owner] = (op.session, self.epoch)
                return True
            case Adopt():
                return self._adopt(op)
            case TakeOver():
                return self._take_over(op)
            case Moved():
                for id_ in ids_of(op.ids):
                    if self.owned.pop(id_, None) is not None:
                        self.moved.add(id_)
                        self.unacked.pop(id_, None)
                if op.answered:
                    self.asks.discard(op.peer)
                if op.key:
                    self.keys[op.key] = (op.peer, op.spans)
            case AddAsk():
                self.asks.add(op.peer)
            case LookUp():
                known = self.keys.get(op.key)
                return None if known is None else Accepted(known[0], known[1], known=True)
        return None

    def _accept(self, op: Accept) -> Accepted:
        known = self.keys.get(op.key)
        if known is not None:
            return Accepted(known[0], known[1], known=True)
        count = op.payload[0]
        first = self.number << 48 | self.next_id
        self.next_id += count
        for id_ in range(first, first + count):
            self.owned[id_] = False
        if op.guarded:
            self.unacked[first] = count
        spans = ((first, count),)
        self.keys[op.key] = (self.name, spans)
        self.key_of[first] = op.key
        return Accepted(self.name, spans)

    def _copy(self, op: StoreCopy) -> StoreCopyResult:
        if not self._writes(op.owner, op.epoch):
            return StoreCopyResult(Verdict.FENCED)
        if not self._valid(op.owner) or self.sessions[op.owner][0] != op.session:
            return StoreCopyResult(Verdict.NO_SESSION)
        known = self.keys.get(op.key) if op.key else None
        yielded: Spans = ()
        if known is not None and known[0] == self.name and known[1][0][0] in self.unacked and op.yields:
            yielded = known[1]
            for id_ in ids_of(yielded):
                del self.owned[id_]
                self.moved.add(id_)
            del self.unacked[yielded[0][0]]
            del self.keys[op.key]
        elif known is not None and not _overlap(known[1], (op.span,)):
            return StoreCopyResult(Verdict.TAKEN, known[0], known[1])
        if op.key:
            self.keys.setdefault(op.key, (op.owner, (op.span,)))
        copies = self.copies.setdefault(op.owner, {})
        for id_ in ids_of((op.span,)):
            copies[id_] = op.key
        return StoreCopyResult(Verdict.STORED, yielded=yielded)

    def _own(self, id_: int, key: bytes, *, maybe_sent: bool) -> None:
        self.owned[id_] = maybe_sent
        self.moved.discard(id_)
        self.key_of[id_] = key

    def _adopt(self, op: Adopt) -> Spans:
        if op.fence <= self.fences.get(op.owner, 0):
            return ()
        self.fences[op.owner] = op.fence
        if not self._valid(op.owner):
            return ()
        copies = self.copies.pop(op.owner, {})
        for id_, key in copies.items():
            self._own(id_, key, maybe_sent=True)
        self.adopted.setdefault(op.owner, set()).update(copies)
        return of_ids(copies)

    def _take_over(self, op: TakeOver) -> TakeOverResult | None:
        if not self._writes(op.owner, op.epoch) or self.sessions.get(op.owner, (-1,))[0] != op.session:
            return None
        if not self._valid(op.owner):
            return None
        copies = self.copies.get(op.owner, {})
        fresh = [id_ for id_ in ids_of(op.ids) if id_ in copies]
        for id_ in fresh:
            self._own(id_, copies.pop(id_), maybe_sent=False)
        adopted = self.adopted.setdefault(op.owner, set())
        adopted.update(fresh)
        return TakeOverResult(of_ids(id_ for id_ in ids_of(op.ids) if id_ in adopted), of_ids(fresh))


def _overlap(left: Spans, right: Spans) -> bool:
    return bool(set(ids_of(normal(left))) & set(ids_of(normal(right))))

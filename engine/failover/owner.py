"""The owner's part: a copy of each batch at one peer, settlements told to it, sessions opened and closed.

A session with a peer is opened by Sync, Inventory, Open, Opened, and is over as soon as the view shows the peer under
another epoch: it was called dead, and can adopt nothing any more until a new session opens. Only then are its batches
copied elsewhere, so no message has two copies that could both be adopted. For the same reason a batch that was sent to
a peer stays with it until the peer answers or its session is over.

After a restart, or after being called dead itself, an owner does not know where its copies are. It opens sessions with
all its peers and learns it from them; what a peer may have adopted is held until that peer has answered. A batch whose
receipt was never given is completed, unless its key has been taken by a region that the client asked meanwhile.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum

from engine.failover.batches import Batch, Batches, Place
from engine.failover.effects import Answer, Effect, Forget, Hold, Release, Send, Write
from engine.failover.messages import (
    Copy,
    CopyReply,
    HandOver,
    HandOverReply,
    Inventory,
    Open,
    Opened,
    RegionView,
    Settle,
    SettleReply,
    Standing,
    Sync,
    Verdict,
)
from engine.failover.rendezvous import rank
from engine.failover.spans import Span, Spans, ids_of, intersect, normal, of_ids, subtract, union
from engine.failover.store import Acknowledge, AddAsk, Export, Exported, Moved
from engine.failover.timing import Timing

EXPORTS_IN_FLIGHT = 4
SETTLE_AT_MOST = 4096  # ids in one message

SUPERSEDED = "this region was called dead meanwhile: ask again"


class Stage(IntEnum):
    CLOSED = 1
    ASKED = 2  # Sync sent
    MOVING = 3  # what the peer adopted is being written
    OPENING = 4  # Open sent
    OPEN = 5


@dataclass(slots=True)
class Session:
    """An owner's session with one peer."""

    peer: str
    stage: Stage = Stage.CLOSED
    number: int = 0
    epoch: int = 0  # the peer's
    sent_at: int = -1
    inventory: Inventory | None = None
    drop: Spans = ()
    settled: list[int] = field(default_factory=list)
    telling: Settle | None = None
    told_at: int = 0
    handing: HandOver | None = None
    handed_at: int = 0
    numbers: int = 0

    def close(self) -> None:
        self.stage = Stage.CLOSED
        self.sent_at = -1
        self.inventory = None
        self.settled.clear()
        self.telling = None
        self.handing = None


class OwnerRole:
    """See the module docstring. `epoch` is the region's own, on disk."""

    def __init__(
        self, name: str, peers: Iterable[str], *, incarnation: int, timing: Timing, accept_local: bool
    ) -> None:
        self._name = name
        self._timing = timing
        self._accept_local = accept_local
        self.epoch = 0
        self.batches = Batches()
        self.sessions = {peer: Session(peer) for peer in peers}
        self.asks: set[str] = set()
        self._view: dict[str, RegionView] = {}
        self._seen: dict[str, int] = {}
        self._session_numbers = incarnation << 20
        self._unresolved = False  # there may be batches of unknown place
        self._exports = 0
        self.started = False

    # -- life

    def load(self, owned: Spans, unacked: Iterable[tuple[Span, bytes]], asks: Iterable[str]) -> None:
        """What the store had when this process started. Nothing of it is dispatched before `begin`."""
        self.batches.add_runs(owned, Place.UNKNOWN)
        for span, key in unacked:
            for batch in self.batches.cut((span,)):
                batch.guarded = True
                batch.key = key
        for batch in self.batches:
            batch.held = True
        self.asks = set(asks)
        self._unresolved = bool(len(self.batches))

    def begin(self) -> list[Effect]:
        """First lease under an epoch that nobody took: what no peer may have adopted is free."""
        self.started = True
        return self._free() if not self.asks else self._resolve()

    def _free(self) -> list[Effect]:
        free = [batch for batch in self.batches if batch.held and not batch.guarded and not batch.handing]
        return self._release(free)

    def _release(self, batches: Iterable[Batch]) -> list[Effect]:
        spans: list[tuple[int, int]] = []
        for batch in batches:
            if batch.held:
                batch.held = False
                spans.extend(batch.left())
        return [Release(normal(spans))] if spans else []

    def superseded(self, epoch: int, asks: Iterable[str]) -> list[Effect]:
        """This region was called dead and has taken its new epoch: `asks` may have adopted what they held."""
        self.epoch = epoch
        self.started = True
        self.asks |= set(asks)
        held: list[tuple[int, int]] = []
        for session in self.sessions.values():
            session.close()
        answers: list[Effect] = []
        for batch in self.batches:
            batch.handing = False
            if batch.guarded:  # its client has gone elsewhere by now
                answers += [Answer(token, "", (), refusal=SUPERSEDED) for token in batch.tokens]
                batch.tokens = []
            if batch.place is Place.NOWHERE:
                continue
            if batch.place is Place.UNKNOWN or batch.peer in self.asks:
                batch.place, batch.peer = Place.UNKNOWN, ""
                self._unresolved = True
                if not batch.held:
                    batch.held = True
                    held.extend(batch.left())
            else:
                batch.place, batch.peer = Place.NOWHERE, ""
        holds: list[Effect] = [Hold(normal(held))] if held else []
        return [*holds, *answers, *self._resolve()]

    # -- the view

    def see(self, view: tuple[RegionView, ...]) -> list[Effect]:
        """A view in which this region itself has its present epoch."""
        self._view = {region.name: region for region in view}
        return self._resolve()

    def saw(self, epochs: Iterable[tuple[str, int]]) -> list[Effect]:
        """That these peers have these epochs is on our disk: sessions under older ones are over."""
        for peer, epoch in epochs:
            self._seen[peer] = max(self._seen.get(peer, 0), epoch)
            session = self.sessions.get(peer)
            if session is not None and session.stage is not Stage.CLOSED and 0 < session.epoch < epoch:
                self._close(session)
        return self._resolve()

    def _close(self, session: Session) -> None:
        for batch in self.batches:
            if batch.peer == session.peer:
                batch.peer = ""
                batch.place = Place.UNKNOWN if batch.handing else Place.NOWHERE
                batch.payload = batch.payload if batch.guarded else b""
                if batch.handing:
                    batch.handing = False
                    self._unresolved = True
        session.close()

    def _is_dead(self, peer: str) -> bool:
        region = self._view.get(peer)
        return (
            region is not None
            and region.standing is Standing.DEAD
            and self._seen.get(peer, 0) >= region.epoch
        )

    def _resolve(self) -> list[Effect]:
        """When every peer has told what it has, or is dead and was never told to adopt, nothing is unknown."""
        if not self._unresolved or not self.started or not self._view:
            return []
        for session in self.sessions.values():
            if session.stage is Stage.OPEN:
                continue
            if session.peer in self.asks or not self._is_dead(session.peer):
                return []
        self._unresolved = False
        for batch in self.batches:
            if batch.place is Place.UNKNOWN:
                batch.place = Place.NOWHERE
        return self._free()

    # -- batches

    def candidates(self, key: bytes) -> list[str]:
        """Peers that can take a copy now, best first."""
        return rank(
            key,
            (
                session.peer
                for session in self.sessions.values()
                if session.stage is Stage.OPEN
                and (region := self._view.get(session.peer)) is not None
                and region.standing is Standing.LIVE
            ),
        )

    def own(self, batch: Batch, now: int) -> list[Effect]:
        """A batch has been accepted onto our disk, or taken from a peer."""
        self.batches.add(batch)
        return self._send(batch, now) if batch.guarded else []

    def _send(self, batch: Batch, now: int) -> list[Effect]:
        """Send a guarded batch to the best peer, or, where the policy says so, let it go without a copy."""
        candidates = self.candidates(batch.key)
        if not candidates:
            return []
        batch.place, batch.peer, batch.sent_at = Place.SENT, candidates[0], now
        return [self._copy(batch)]

    def _copy(self, batch: Batch) -> Effect:
        session = self.sessions[batch.peer]
        return Send(
            batch.peer, Copy(self.epoch, session.number, batch.span, batch.key, batch.payload, batch.orphan)
        )

    def copied(self, peer: str, reply: CopyReply) -> list[Effect]:
        """A peer's answer to a copy."""
        session = self.sessions[peer]
        if reply.session != session.number or session.stage is not Stage.OPEN:
            return []
        if reply.verdict is Verdict.NO_SESSION:
            self._close_unsafe(session)
            return []
        batch = self.batches.get(reply.span[0])
        if batch is None or batch.span != reply.span or batch.place is not Place.SENT or batch.peer != peer:
            if batch is None and reply.verdict is Verdict.STORED:
                session.settled.extend(ids_of((reply.span,)))  # all of it was settled meanwhile
            return []
        match reply.verdict:
            case Verdict.STORED:
                batch.place = Place.PLACED
                session.settled.extend(batch.gone)
                batch.payload = b""
                return [Write(Acknowledge(batch.span))] if batch.guarded else []
            case Verdict.TAKEN if batch.guarded:
                answers: list[Effect] = [
                    Answer(token, reply.owner, reply.spans, repeated=True) for token in batch.tokens
                ]
                self.batches.remove(batch)
                moved = Moved(
                    reply.owner,
                    batch.left(),
                    session=0,
                    answered=False,
                    key=batch.key,
                    spans=reply.spans,
                )
                return [Write(moved), Forget(batch.left()), *answers]
        return []

    def _close_unsafe(self, session: Session) -> None:
        """The peer has lost the session though Fleet did not call it dead: open it again, with what is there."""
        for batch in self.batches:
            if batch.peer == session.peer:
                batch.place, batch.peer = Place.UNKNOWN, ""
                self._unresolved = True
        session.close()

    def acknowledged(self, span: tuple[int, int]) -> list[Effect]:
        """The copy is on record: the receipt may go out, and the batch too."""
        effects: list[Effect] = []
        for batch in self.batches.cut((span,)):
            if not batch.guarded:
                continue
            batch.guarded = batch.busy = False
            if batch.place is Place.UNKNOWN:
                continue  # called dead meanwhile: whoever asks again will be told
            alone = batch.place is Place.NOWHERE
            effects += [Answer(token, self._name, (batch.span,), degraded=alone) for token in batch.tokens]
            batch.tokens = []
            effects += self._release((batch,))
        return effects

    def yielded(self, ids: Spans, owner: str, spans: Spans) -> list[Effect]:
        """Own batches without a receipt gave way to another region's of the same key."""
        effects: list[Effect] = []
        for batch in self.batches.cut(ids):
            self.batches.remove(batch)
            effects += [Answer(token, owner, spans, repeated=True) for token in batch.tokens]
        return [Forget(ids), *effects]

    def settled(self, ids: Iterable[int]) -> None:
        """The store has the last word on these ids."""
        for id_ in ids:
            batch = self.batches.settle(id_)
            if batch is not None and batch.place is Place.PLACED:
                self.sessions[batch.peer].settled.append(id_)

    def exported(self, span: tuple[int, int], result: Exported, now: int) -> list[Effect]:
        """A batch without a copy was read back: send it."""
        self._exports -= 1
        batch = self.batches.get(span[0])
        if batch is None or batch.span != span:
            return []
        batch.busy = False
        if batch.place is not Place.NOWHERE:
            return []
        candidates = self.candidates(batch.key or result.key or batch.first.to_bytes(8, "big"))
        if not candidates or not result.left:
            return []
        batch.key, batch.payload = batch.key or result.key, result.payload
        batch.place, batch.peer, batch.sent_at = Place.SENT, candidates[0], now
        return [self._copy(batch)]

    # -- sessions

    def inventory(self, peer: str, message: Inventory) -> list[Effect]:
        session = self.sessions[peer]
        if session.stage is not Stage.ASKED or message.session != session.number or message.fenced:
            return []
        region = self._view.get(peer)
        if region is None or region.standing is Standing.DEAD or region.epoch != message.epoch:
            return []  # asked again until both see the same
        session.stage = Stage.MOVING
        session.epoch = message.epoch
        session.inventory = message
        moved = intersect(message.adopted, self.batches.queued())
        return [Write(Moved(peer, moved, session=session.number, answered=True))]

    def moved(self, operation: Moved, now: int) -> list[Effect]:
        """What a peer owns now is off our books, on disk."""
        effects: list[Effect] = []
        if operation.ids:
            for batch in self.batches.cut(operation.ids):
                self.batches.remove(batch)
                effects += [
                    Answer(token, operation.peer, (batch.span,), repeated=True) for token in batch.tokens
                ]
            effects.append(Forget(operation.ids))
        session = self.sessions.get(operation.peer)
        if operation.answered:
            self.asks.discard(operation.peer)
        if session is None or session.stage is not Stage.MOVING or operation.session != session.number:
            return effects
        assert session.inventory is not None
        copies = session.inventory.copies
        keep: list[tuple[int, int]] = []
        for batch in self.batches.cut(copies):
            known = batch.place is Place.UNKNOWN and session.inventory.valid
            if known or (batch.place is Place.NOWHERE and not batch.guarded):
                keep.extend(batch.left())
        session.drop = subtract(copies, keep)
        session.stage = Stage.OPENING
        session.sent_at = now
        return [*effects, Send(operation.peer, Open(self.epoch, session.number, session.drop))]

    def opened(self, peer: str, message: Opened) -> list[Effect]:
        session = self.sessions[peer]
        if session.stage is not Stage.OPENING or message.session != session.number:
            return []
        assert session.inventory is not None
        session.stage = Stage.OPEN
        kept = subtract(session.inventory.copies, session.drop)
        effects: list[Effect] = []
        placed: Spans = ()
        for batch in self.batches.cut(kept):
            if batch.place in (Place.UNKNOWN, Place.NOWHERE):
                batch.place, batch.peer = Place.PLACED, peer
                placed = union(placed, batch.left())
                if batch.guarded:
                    effects.append(Write(Acknowledge(batch.span)))
                else:
                    effects += self._release((batch,))
        session.settled.extend(ids_of(subtract(kept, placed)))
        session.inventory = None
        return [*effects, *self._resolve()]

    def told(self, peer: str, reply: SettleReply) -> None:
        session = self.sessions[peer]
        if session.telling is not None and (reply.session, reply.number) == (
            session.number,
            session.telling.number,
        ):
            session.telling = None

    # -- hand-over

    def hand_over(self, peer: str, ids: Spans, now: int) -> list[Effect]:
        """Give these to the peer that has their copies. They must not be in flight."""
        session = self.sessions[peer]
        if session.stage is not Stage.OPEN or session.handing is not None:
            return []
        batches = [
            batch
            for batch in self.batches.cut(ids)
            if batch.place is Place.PLACED and batch.peer == peer and not batch.guarded and not batch.held
        ]
        spans = normal(span for batch in batches for span in batch.left())
        if not spans:
            return []
        for batch in batches:
            batch.held = batch.handing = True
        session.numbers += 1
        session.handing = HandOver(self.epoch, session.number, session.numbers, spans)
        session.handed_at = -1
        self.asks.add(peer)
        return [Hold(spans), Write(AddAsk(peer))]

    def ask_added(self, peer: str, now: int) -> list[Effect]:
        session = self.sessions[peer]
        if session.handing is None:
            return []
        session.handed_at = now
        return [Send(peer, session.handing)]

    def handed(self, peer: str, reply: HandOverReply) -> list[Effect]:
        session = self.sessions[peer]
        handing = session.handing
        if handing is None or (reply.session, reply.number) != (session.number, handing.number):
            return []
        session.handing = None
        taken = intersect(handing.ids, reply.taken)
        kept = self.batches.cut(subtract(handing.ids, taken))
        for batch in kept:
            batch.handing = False
        return [Write(Moved(peer, taken, session=0, answered=True)), *self._release(kept)]

    # -- time

    def tick(self, now: int) -> list[Effect]:
        effects: list[Effect] = []
        for session in self.sessions.values():
            effects += self._drive(session, now)
        for batch in self.batches:
            if batch.place is Place.SENT:
                if now - batch.sent_at >= self._timing.resend:
                    batch.sent_at = now
                    effects.append(self._copy(batch))
            elif batch.place is Place.NOWHERE and not batch.busy:
                effects += self._place(batch, now)
        return effects

    def _place(self, batch: Batch, now: int) -> list[Effect]:
        if batch.guarded and batch.payload:
            sent = self._send(batch, now)
            if not sent and self._accept_local and batch.tokens:
                batch.busy = True
                return [Write(Acknowledge(batch.span))]
            return sent
        if batch.handing or self._exports >= EXPORTS_IN_FLIGHT or not self.candidates(b""):
            return []
        self._exports += 1
        batch.busy = True
        return [Write(Export(batch.span))]

    def _drive(self, session: Session, now: int) -> list[Effect]:
        due = now - session.sent_at >= self._timing.resend or session.sent_at < 0
        region = self._view.get(session.peer)
        if session.stage in (Stage.CLOSED, Stage.ASKED):
            if not due or not self.epoch or region is None or region.standing is not Standing.LIVE:
                return []
            if session.stage is Stage.CLOSED:
                self._session_numbers += 1
                session.number = self._session_numbers
                session.epoch = 0
            session.stage = Stage.ASKED
            session.sent_at = now
            return [Send(session.peer, Sync(self.epoch, session.number))]
        if session.stage is Stage.OPENING and due:
            session.sent_at = now
            return [Send(session.peer, Open(self.epoch, session.number, session.drop))]
        if session.stage is not Stage.OPEN:
            return []
        return self._tell(session, now)

    def _tell(self, session: Session, now: int) -> list[Effect]:
        effects: list[Effect] = []
        if session.telling is None and session.settled:
            ids, session.settled = session.settled[:SETTLE_AT_MOST], session.settled[SETTLE_AT_MOST:]
            session.numbers += 1
            session.telling = Settle(self.epoch, session.number, session.numbers, of_ids(ids))
            session.told_at = now - self._timing.resend
        if session.telling is not None and now - session.told_at >= self._timing.resend:
            session.told_at = now
            effects.append(Send(session.peer, session.telling))
        if (
            session.handing is not None
            and session.handed_at >= 0
            and now - session.handed_at >= self._timing.resend
        ):
            session.handed_at = now
            effects.append(Send(session.peer, session.handing))
        return effects

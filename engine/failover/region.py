"""One region's side of the protocol: messages, results of the store and time in; effects out. No I/O, no clock.

It composes the lease, the owner's part, the standby's part and the enquiries. The shell sends what it is told, gives
operations to the store in order, and calls `tick` at least every beat. It dispatches a message only if it was released
and not held or forgotten since, and `lease_until` has not passed.
"""

from collections.abc import Iterable

from engine.failover.batches import Batch, Place
from engine.failover.claims import Claims
from engine.failover.effects import Answer, Effect, Forget, Hold, Release, Send, Write
from engine.failover.lease import Lease
from engine.failover.messages import (
    Beat,
    BeatReply,
    Claim,
    ClaimReply,
    Copy,
    CopyReply,
    HandOver,
    HandOverReply,
    Inventory,
    Known,
    Message,
    Open,
    Opened,
    Promise,
    PromiseAsk,
    RegionView,
    Settle,
    SettleReply,
    Standing,
    Sync,
    Unclaim,
    Verdict,
)
from engine.failover.owner import OwnerRole
from engine.failover.spans import Spans
from engine.failover.standby import StandbyRole
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
)
from engine.failover.timing import Timing


class RegionMachine:
    """See the module docstring. `incarnation` must grow with every start of the region's process."""

    def __init__(
        self,
        name: str,
        peers: Iterable[str],
        *,
        durable: Durable,
        incarnation: int,
        now: int,
        timing: Timing,
        accept_local: bool = False,
    ) -> None:
        self.name = name
        self._peers = tuple(sorted(peers))
        self._timing = timing
        self.lease = Lease(self._peers, now=now, timing=timing)
        self._fences = dict(durable.fences)
        self.owner = OwnerRole(
            name, self._peers, incarnation=incarnation, timing=timing, accept_local=accept_local
        )
        self.owner.epoch = durable.epoch
        self.owner.saw(durable.seen)
        self.owner.load(durable.owned, durable.unacked, durable.asks)
        self.standby = StandbyRole(name, self.lease, self._fences, timing)
        self._claims = Claims(timing)
        self._accept_local = accept_local
        self._life = incarnation
        self._fleet = -1
        self._view: tuple[RegionView, ...] = ()
        self._seen = dict(durable.seen)
        self._saving = 0  # epoch on its way to the disk
        self._beat_at = now
        self._asked_at = now
        self._tokens: dict[int, tuple[bytes, bytes]] = {}

    @property
    def epoch(self) -> int:
        return self.owner.epoch

    @property
    def view(self) -> tuple[RegionView, ...]:
        return self._view

    def lease_until(self) -> int:
        """Nothing may be dispatched from then on (own monotonic clock)."""
        return self.lease.until() if self.owner.started and not self._saving else -1

    def may_dispatch(self, now: int) -> bool:
        return now < self.lease_until()

    # -- messages

    def receive(self, sender: str, message: Message, now: int) -> list[Effect]:
        """Take a message from a region, or from Fleet (sender "")."""
        match message:
            case Beat():
                return self._beat(message, now)
            case PromiseAsk():
                return self._promise(sender, message, now)
            case Promise():
                self.lease.promised(sender, message.clock)
                return self._begin(now)
            case Copy() if (own := self.owner.batches.guarded(message.key)) is not None:
                return self._rival(sender, message, own, now)
            case Sync() | Open() | Copy() | Settle() | HandOver():
                return self.standby.ask(sender, message, now)
            case Inventory():
                return self.owner.inventory(sender, message)
            case Opened():
                return self.owner.opened(sender, message)
            case CopyReply():
                return self.owner.copied(sender, message)
            case SettleReply():
                self.owner.told(sender, message)
            case HandOverReply():
                return self.owner.handed(sender, message)
            case Claim():
                return [Write(LookUp(sender, message.key))]
            case ClaimReply():
                if message.known is Known.PENDING:
                    self.standby.unclaim(message.key, self.name)
                return self._claims.answered(sender, message)
            case Unclaim():
                self.standby.unclaim(message.key, sender)
        return []

    def _rival(self, sender: str, copy: Copy, own: Batch, now: int) -> list[Effect]:
        """A copy under a key of which we have a batch without a receipt: one of the two has to give way.

        A batch that a client waits for wins over one that was left over by a restart; of equals the region that is
        first by name. The one that wins is not answered here until it is safe.
        """
        if copy.orphan and not own.orphan:
            taken = CopyReply(copy.session, copy.span, Verdict.TAKEN, self.name, (own.span,))
            return [Send(sender, taken)]
        if (own.orphan and (not copy.orphan or sender < self.name)) or (
            not own.orphan and not copy.orphan and sender < self.name
        ):
            return self.standby.ask(sender, copy, now, yields=True)
        return []

    def _beat(self, beat: Beat, now: int) -> list[Effect]:
        if beat.fleet < self._fleet:
            return []
        self._fleet = beat.fleet
        self._beat_at = now
        effects: list[Effect] = []
        if beat.view:
            self._view = beat.view
            if beat.epoch == self.epoch and not self._saving:
                effects += self.owner.see(beat.view)
                effects += self._note(tuple(r for r in beat.view if r.name != self.name))
        if beat.epoch > max(self.epoch, self._saving):
            self._saving = beat.epoch
            self.lease.drop()
            effects.append(Write(SaveEpoch(beat.epoch, frozenset(beat.asks))))
        elif beat.epoch == self.epoch and not self._saving:
            if beat.life == self._life:
                self.lease.granted(beat.stamp)
            effects += self._begin(now)
            effects += self.standby.obey(beat.view, now)
        known = self._seen | {name: max(f, self._seen.get(name, 0)) for name, f in self.standby.fences()}
        reply = BeatReply(self._fleet, self._life, now, self.epoch, tuple(known.items()))
        return [*effects, Send("", reply)]

    def _note(self, view: tuple[RegionView, ...]) -> list[Effect]:
        """A peer's new epoch ends our session with it, but not before it is on disk that we know of it."""
        new = tuple((r.name, r.epoch) for r in view if self._seen.get(r.name, 0) < r.epoch)
        if not new:
            return []
        self._seen.update(new)
        return [Write(SaveSeen(new))]

    def _begin(self, now: int) -> list[Effect]:
        if self.owner.started or self._saving or not self.epoch or not self.lease.holds(now):
            return []
        return self.owner.begin()

    def _promise(self, peer: str, ask: PromiseAsk, now: int) -> list[Effect]:
        intended = dict(self.standby.fences()).get(peer, 0)
        if ask.epoch < intended:
            return []
        self.lease.give(peer, now)
        return [Send(peer, Promise(ask.clock))]

    # -- clients

    def submit(
        self, token: int, key: bytes, payload: bytes, now: int, *, again: bool = False
    ) -> list[Effect]:
        """A client's batch; `again`: it was given to another region before, which did not answer."""
        if not self.may_dispatch(now):
            return [Answer(token, "", (), refusal="this region has no lease")]
        if self.standby.claimed(key, self.name, now):
            return [Answer(token, "", (), refusal="another region is asked for this batch as well")]
        if again:
            self.standby.claim(key, self.name, now)
            return [Write(LookUp("", key)), *self._claims.begin(key, payload, token, self._others(), now)]
        return self._accept(token, key, payload)

    def _others(self) -> list[str]:
        dead = {region.name for region in self._view if region.standing is Standing.DEAD}
        return [peer for peer in self._peers if peer not in dead]

    def _accept(self, token: int, key: bytes, payload: bytes) -> list[Effect]:
        guarded = bool(self._peers)
        if guarded and not self.owner.candidates(key) and not self._accept_local:
            return [Answer(token, "", (), refusal="no other region can keep a copy now")]
        self._tokens[token] = (key, payload)
        return [Write(Accept(token, key, payload, guarded))]

    def settled(self, ids: Iterable[int]) -> None:
        """The store has the last word on these ids."""
        self.owner.settled(ids)

    def hand_over(self, peer: str, ids: Spans, now: int) -> list[Effect]:
        """Give messages that are not in flight to the peer that has their copies."""
        if not self.may_dispatch(now):
            return []
        return self.owner.hand_over(peer, ids, now)

    # -- the store has done it

    def committed(self, operation: Operation, result: object, now: int) -> list[Effect]:
        match operation:
            case SaveEpoch():
                return self._epoch_saved(operation)
            case SaveSeen():
                return self.owner.saw(operation.epochs)
            case Accept():
                assert isinstance(result, Accepted)
                return self._accepted(operation, result, now)
            case Acknowledge():
                return self.owner.acknowledged(operation.span)
            case Export():
                assert isinstance(result, Exported)
                return self.owner.exported(operation.span, result, now)
            case Moved():
                return self.owner.moved(operation, now)
            case AddAsk():
                return self.owner.ask_added(operation.peer, now)
            case LookUp():
                assert result is None or isinstance(result, Accepted)
                return self._looked_up(operation, result, now)
            case StoreCopy():
                assert isinstance(result, StoreCopyResult)
                effects = self.standby.stored(operation, result)
                if result.yielded:
                    effects += self.owner.yielded(result.yielded, operation.owner, (operation.span,))
                return effects
            case DropCopies():
                return self.standby.dropped(operation)
            case TakeInventory():
                return self.standby.inventoried(operation, result, self.epoch)  # type: ignore[arg-type]
            case OpenSession():
                return self.standby.opened(operation, done=bool(result))
            case Adopt():
                return self._own_more(self.standby.adopted_copies(operation, result))  # type: ignore[arg-type]
            case TakeOver():
                return self._own_more(self.standby.taken_over(operation, result))  # type: ignore[arg-type]
        return []

    def _epoch_saved(self, operation: SaveEpoch) -> list[Effect]:
        if operation.epoch == self._saving:
            self._saving = 0
        self.lease.drop()
        self.standby.reset()
        return self.owner.superseded(operation.epoch, operation.asks)

    def _own_more(self, effects: list[Effect]) -> list[Effect]:
        """Messages that were another region's are ours, without a copy as yet."""
        for effect in effects:
            if isinstance(effect, Release):
                self.owner.batches.add_runs(effect.spans, Place.NOWHERE)
        return effects

    def _accepted(self, operation: Accept, result: Accepted, now: int) -> list[Effect]:
        self._tokens.pop(operation.token, None)
        if result.known:
            pending = self._pending(result)
            if pending is not None:
                pending.tokens.append(operation.token)
                return []
            return [Answer(operation.token, result.owner, result.spans, repeated=True)]
        (span,) = result.spans
        batch = Batch(span[0], span[1], Place.NOWHERE, key=operation.key, guarded=operation.guarded)
        if not operation.guarded:
            self.owner.own(batch, now)
            return [Release((span,)), Answer(operation.token, self.name, (span,))]
        batch.payload = operation.payload
        batch.tokens.append(operation.token)
        batch.held = True
        return self.owner.own(batch, now)

    def _pending(self, known: Accepted) -> Batch | None:
        """The batch of a key whose receipt was not given yet."""
        if known.owner != self.name or not known.spans:
            return None
        batch = self.owner.batches.find(known.spans[0][0])
        return batch if batch is not None and batch.guarded else None

    def _looked_up(self, operation: LookUp, result: Accepted | None, now: int) -> list[Effect]:
        pending = result is not None and self._pending(result) is not None
        if not operation.asker:
            if result is None or pending:
                return []
            return self._claims.answered(
                self.name, ClaimReply(operation.key, Known.YES, result.owner, result.spans)
            )
        if result is not None and not pending:
            self.standby.unclaim(operation.key, operation.asker)
            return [Send(operation.asker, ClaimReply(operation.key, Known.YES, result.owner, result.spans))]
        busy = pending or any(key == operation.key for key, _ in self._tokens.values())
        # two regions that ask each other: the first by name goes on
        busy = busy or (self._claims.is_open(operation.key) and self.name < operation.asker)
        effects: list[Effect] = []
        if not busy and self._claims.is_open(operation.key):
            self.standby.unclaim(operation.key, self.name)
            effects = self._claims.give_up(operation.key)
        busy = busy or not self.standby.claim(operation.key, operation.asker, now)
        known = Known.PENDING if busy else Known.NO
        return [*effects, Send(operation.asker, ClaimReply(operation.key, known))]

    # -- time

    def tick(self, now: int) -> list[Effect]:
        """At least every beat."""
        effects = self.owner.tick(now) if self.lease.holds(now) else []
        dead = [region.name for region in self._view if region.standing is Standing.DEAD]
        asked, free = self._claims.tick(dead, now)
        effects += asked
        for enquiry in free:
            for token in enquiry.tokens:
                effects += self._accept(token, enquiry.key, enquiry.payload)
        if now - self._beat_at >= self._timing.suspect and now - self._asked_at >= self._timing.beat:
            self._asked_at = now
            if self.epoch and not self._saving:
                effects += [Send(peer, PromiseAsk(self.epoch, now)) for peer in self._peers]
        return effects


__all__ = ["Answer", "Forget", "Hold", "RegionMachine", "Release", "Send", "Write"]

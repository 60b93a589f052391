"""A region's part of the protocol: its lease, its receipts, its standby, and its return after it was called dead.

Invariants, with every disk and every message behaving as badly as they may:
- a receipt is given when the batch is on this disk and on the standby's, or, marked as degraded, on this disk only
  (acceptance.py);
- nothing is dispatched without a lease (lease.py), and a batch not before its copy is safe (link.py) or was given up;
- a live region's copies are adoptable at one place, its standby, which changes only when Fleet has called it dead
  (standby_choice.py; standby.py is the same seen from the other side);
- who was called dead asks every live region before it dispatches again (returning.py).

Here is what joins them: the beats of Fleet, what comes from peers, what the store has done. The machine does no I/O:
each method returns effects (effects.py) for its shell.
"""

from engine.failover.acceptance import Acceptance
from engine.failover.effects import Effect, Export, Forget, Ready, Send, Write
from engine.failover.lease import Lease
from engine.failover.link import Link
from engine.failover.messages import (
    AWAY,
    NO_ORDERS,
    Ack,
    Ask,
    Beat,
    BeatReply,
    Behind,
    Claim,
    ClaimReply,
    Closed,
    Data,
    Hello,
    Message,
    Promise,
    PromiseAsk,
    Told,
    Welcome,
)
from engine.failover.returning import Return
from engine.failover.situation import Counters, Situation
from engine.failover.spans import Spans
from engine.failover.standby import StandbyRole
from engine.failover.standby_choice import StandbyChoice
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
    TakeQueued,
)
from engine.failover.timing import Timing

FLEET = ""


class RegionMachine:
    """See the module docstring. `incarnation` is the number of this process, greater than those of the ones before it
    on this disk; `now` is its monotonic clock."""

    def __init__(
        self,
        name: str,
        peers: tuple[str, ...],
        *,
        durable: Durable,
        incarnation: int,
        now: int,
        timing: Timing,
        accept_local: bool,
        siblings: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.own = Situation(
            name,
            peers,
            durable=durable,
            incarnation=incarnation,
            now=now,
            timing=timing,
            accept_local=accept_local,
            siblings=siblings,
        )
        self.acceptance = Acceptance(self.own, durable.unsafe, incarnation=incarnation, now=now)
        self.choice = StandbyChoice(self.own, durable.asked)
        self.returning = Return(self.own, incarnation=incarnation)
        self._beat_seen = (-1, -1)
        self._unbroken = False  # see BeatReply
        self._known_before = 0  # the greatest epoch that was known before this Fleet was obeyed
        self._fleet_at = now
        self._promise_asked_at = now

    # -- what the shell asks

    @property
    def epoch(self) -> int:
        return self.own.epoch

    @property
    def clean(self) -> bool:
        """Whether it has returned since it was called dead last."""
        return self.own.clean

    @property
    def lease(self) -> Lease:
        return self.own.lease

    @property
    def link(self) -> Link:
        return self.own.link

    @property
    def standby(self) -> StandbyRole:
        return self.own.standby

    @property
    def standby_name(self) -> str:
        return self.own.standby_name

    @property
    def counters(self) -> Counters:
        return self.own.counters

    def may_dispatch(self, now: int) -> bool:
        return now < self.lease_until()

    def lease_until(self) -> int:
        """Nothing may be dispatched from then on."""
        return self.own.lease.until() if self.own.is_live() else -1

    def is_at_rest(self) -> bool:
        """Whether every region is live, as far as this one was told: each message has one owner, who knows it."""
        own = self.own
        standings = own.standings()
        return (
            own.is_live()
            and not own.standby.is_adopting()
            and all(p in standings and standings[p].standing not in AWAY for p in own.peers)
        )

    def is_covered(self, now: int) -> bool:
        """Whether a copy that is sent now may be expected to be safe soon."""
        return self.own.is_covered(now)

    # -- effects

    def _out(self, effects: list[Effect], now: int) -> list[Effect]:
        """Every effect leaves through here: what is given to the store is watched."""
        return self.own.writes.admit(effects, now)

    # -- clients

    def submit(
        self, token: int, key: bytes, payload: object, now: int, *, again: bool = False
    ) -> list[Effect]:
        """A client's batch. `again`: it may have given the same batch to another region before."""
        return self._out(self.acceptance.submit(token, key, payload, now, again=again), now)

    def refused(self, operation: Accept) -> list[int]:
        """The store could not accept a batch: the tokens of those who wait for it."""
        self.own.writes.done(operation)
        return self.acceptance.refused(operation)

    # -- outcomes

    def settled(self, ids: list[int]) -> None:
        """These are final, on disk."""
        self.own.link.settled(ids)

    def deferred(self, ids: list[int]) -> None:
        """The attempts and due times of these have changed, on disk."""
        self.own.link.changed(ids)

    def flush(self, now: int) -> list[Effect]:
        """Send on what `settled` and `deferred` have gathered."""
        return self._out(self.own.link.pump(now), now)

    # -- messages

    def receive(self, sender: str, message: Message, now: int) -> list[Effect]:
        return self._out(self._receive(sender, message, now), now)

    def _receive(self, sender: str, message: Message, now: int) -> list[Effect]:
        own = self.own
        match message:
            case Beat():
                return self._beat(message, now)
            case PromiseAsk():
                return self._promise(sender, message, now)
            case Promise():
                if own.is_live():
                    own.lease.promised(sender, message.clock)
            case Hello():
                return [] if own.is_over(sender, message.epoch) else own.standby.hello(sender, message)
            case Data():
                if own.is_over(sender, own.standby.held.get(sender, 0)):
                    return []
                return own.standby.data(sender, message)
            case Welcome():
                return own.link.welcomed(sender, message, now)
            case Ack():
                keys = own.link.acknowledged(sender, message, now)
                effects = [effect for key in keys for effect in self.acceptance.safe(key)]
                return [*effects, *own.link.tick(now)]
            case Closed():
                return own.link.closed(sender, message, now)
            case Ask():
                return self._asked_by(sender, message, now)
            case Told():
                return self.returning.told(sender, message, now)
            case Claim():
                return self.acceptance.claimed(sender, message, now)
            case ClaimReply():
                return self.acceptance.answered(sender, message, now)
        return []

    # -- Fleet

    def _beat(self, beat: Beat, now: int) -> list[Effect]:
        own = self.own
        if own.writes.is_stalled(own.timing.stall, now):
            return []
        if beat.fleet < self._beat_seen[0]:
            return [Send(FLEET, Behind(beat.fleet, self._beat_seen[0], own.known_epoch()))]
        if (beat.fleet, beat.number) <= self._beat_seen:
            return []
        if own.writes.is_returning():
            return []  # what is answered now must still be true when it is on disk
        if beat.fleet != self._beat_seen[0]:
            self.returning.slot_until = -1  # it may give the slot to another as soon as it has our answer
            self._unbroken = own.is_live() and own.lease.is_granted(now)
            self._known_before = own.known_epoch() if self._beat_seen[0] >= 0 else 0
        self._beat_seen = (beat.fleet, beat.number)
        self._fleet_at = now
        effects: list[Effect] = []
        own.fleet, own.orders_from = beat.fleet, max(beat.first, self._known_before)
        if beat.first < NO_ORDERS:
            own.heard(beat.first, beat.epoch)
        if beat.view:
            own.heard(*(view.epoch for view in beat.view))
            effects += own.see(beat.view, beat.fleet)
        if beat.life != own.life:  # what it says of leases and epochs is for an earlier process
            effects += self._outnumber(beat.life)
        elif beat.epoch > max(own.epoch, own.new_epoch):
            effects += self._superseded(beat.epoch)
        elif beat.stamp >= 0 and beat.epoch == own.epoch and not own.new_epoch:
            own.lease.granted(beat.stamp)
            self.returning.slot_until = beat.stamp + own.timing.lease if beat.slot else -1
        if own.is_live():
            effects += self._obey(now)
            effects += self.choice.choose(now, now)
        effects += self.returning.step(now)
        if own.new_epoch:
            return effects  # nor is what is said before that is on disk: a restart would take it back
        fences = tuple(sorted(own.standby.fences.items()))
        reply = BeatReply(
            beat.fleet,
            own.life,
            now,
            own.epoch,
            own.is_live(),
            fences,
            self._unbroken,
            fresh=not own.first,
            covered=own.has_told_all(),
            known=own.known_epoch(),
        )
        return [*effects, Send(FLEET, reply)]

    def _outnumber(self, life: int) -> list[Effect]:
        """Fleet has heard an earlier process. If that had a greater number, before its disk was lost and the clock was
        set back, this one is not heard until it has a greater one still, on disk."""
        own = self.own
        if life < max(own.life, own.new_life):
            return []
        own.new_life = life + 1
        return [Write(SaveLife(own.new_life))]

    def _life_saved(self, operation: SaveLife) -> list[Effect]:
        life = self.own.life = operation.life
        for part in (self.acceptance, self.returning, self.own.link):
            part.renumber(life)
        return []

    def _superseded(self, epoch: int) -> list[Effect]:
        """This region was called dead."""
        self.own.new_epoch = epoch
        self.own.lease.drop()
        self.returning.abort()
        releasing = self.acceptance.releasing()
        return [*self.acceptance.superseded(), Write(SaveEpoch(epoch, releasing))]

    def _epoch_saved(self, operation: SaveEpoch) -> list[Effect]:
        own = self.own
        own.epoch = max(own.epoch, operation.epoch)
        own.clean = False
        self.choice.superseded()
        if own.new_epoch <= own.epoch:
            own.new_epoch = 0
        own.standby.reset()
        own.link.connect("", own.epoch, 0)
        return []

    def _obey(self, now: int) -> list[Effect]:
        """Adopt what the view calls dead, once no promise to it holds."""
        own = self.own
        if not own.has_orders():
            return []
        view = tuple(v for v in own.view if v.name != own.name and own.lease.may_adopt(v.name, now))
        return own.standby.obey(view, own.name, own.epoch)

    def _promise(self, peer: str, ask: PromiseAsk, now: int) -> list[Effect]:
        own = self.own
        view = own.standings().get(peer)
        if (
            not own.is_live()
            or own.standby.fences.get(peer, 0) > ask.epoch
            or (view is not None and view.standing in AWAY)
        ):
            return []
        own.lease.give(peer, now)
        return [Send(peer, Promise(ask.clock))]

    # -- a peer returns

    def _asked_by(self, peer: str, ask: Ask, now: int) -> list[Effect]:
        """A region returns and asks what is ours; what we hold of the dead comes first."""
        own = self.own
        if not own.is_live():
            return []
        closing = own.close({name: epoch for name, epoch in ask.dead if name != own.name}, now)
        if closing is None or own.standby.is_adopting():
            return closing or []  # it asks again
        own.asked[peer] = max(own.asked.get(peer, -1), ask.epoch)
        return own.standby.asked(peer, ask, own.epoch)

    def _inspected(self, operation: Inspect, result: Inspected | None, now: int) -> list[Effect]:
        if result is None:
            return []
        self.own.standby.inspected(operation)
        if not self.own.is_live():
            return []
        own = self.own
        vouched = self.acceptance.vouched(operation.queued, now)
        verdict, effects = self.choice.verdict(operation.owner, operation.held, operation.epoch)
        told = Told(
            operation.nonce, result.mine, result.highest, verdict, own.first, covered=own.has_told_all()
        )
        return [*vouched, *effects, Send(operation.owner, told)]

    # -- the store has done it

    def committed(self, operation: Operation, result: object, now: int) -> list[Effect]:
        self.own.writes.done(operation, now)
        return self._out(self._committed(operation, result, now), now)

    def _committed(self, operation: Operation, result: object, now: int) -> list[Effect]:
        own = self.own
        match operation:
            case SaveEpoch():
                return self._epoch_saved(operation)
            case SaveLife():
                return self._life_saved(operation)
            case SaveClean():
                if not self.returning.returned(operation):
                    return []
                return [*self.choice.choose(now, self._fleet_at), *self.acceptance.returned(now)]
            case SaveStandby():
                return self.choice.chosen(operation, self._fleet_at, is_saved=result is not False)
            case IsEmpty():
                return self.choice.looked(bool(result), self._fleet_at) if own.is_live() else []
            case Accept():
                assert isinstance(result, Accepted)
                return self.acceptance.accepted(operation, result, now)
            case Release():
                return self.acceptance.released(operation)
            case Abandon():
                own.link.repeat_keys()  # its key stands for something else now
            case TakeQueued():
                assert isinstance(result, Queued)
                if operation.unsafe:
                    return self.returning.listed(operation, result, now)
                queued, more = own.link.gathered(operation, result)
                if queued is None:
                    return more
                waiting, unsafe = self.acceptance.waiting(), self.acceptance.unsafe()
                if own.link.listed(operation, queued, waiting, now, unsafe=unsafe):
                    moving = self.choice.move(queued, unsafe)
                    if moving:
                        return moving
                return own.link.pump(now)
            case OpenSession():
                assert result is None or isinstance(result, tuple)
                return own.standby.opened(operation, result)
            case Apply():
                return own.standby.applied(operation, str(result))
            case Adopt():
                assert isinstance(result, Adopted)
                return self._adopted(operation, result, now)
            case Inspect():
                assert result is None or isinstance(result, Inspected)
                return self._inspected(operation, result, now)
            case GiveUp():
                self.acceptance.given_up(operation.spans)
                if operation.is_standby:
                    own.standby.end_session(operation.to)  # the next one compares these, too
                own.counters.given_up += sum(count for _, count in operation.spans)
                return [Forget(operation.spans), *self.returning.cleared(operation)]
            case Mark() | DropCopies():
                return self.returning.cleared(operation, more=bool(result))
            case LookUp():
                assert result is None or isinstance(result, Accepted)
                return self.acceptance.looked_up(operation, result)
        return []

    def _adopted(self, operation: Adopt, result: Adopted, now: int) -> list[Effect]:
        own = self.own
        if operation.epoch != own.epoch:
            return self.returning.step(now)  # refused: this region was called dead itself
        own.counters.adopted += sum(count for _, count in result.spans)
        own.link.owns(result.spans, adopted=True)
        self.returning.owns(result.spans)
        ready: list[Effect] = [Ready(result.spans)] if result.spans else []
        effects = [*ready, *own.standby.adopted(operation, result), *self.returning.step(now)]
        if not result.more and own.standby.held.get(operation.owner):
            own.link.repeat_keys()  # what it has told here, our standby has not heard of
        return [*effects, *self.choice.choose(now, self._fleet_at)] if own.is_live() else effects

    def exported(self, export: Export, spans: Spans, payload: bytes, cursor: bytes, now: int) -> list[Effect]:
        return self._out(self.own.link.exported(export, spans, payload, cursor, now), now)

    # -- time

    def tick(self, now: int) -> list[Effect]:
        """To be called every 50 ms or so."""
        own = self.own
        effects = self.returning.step(now)
        if own.is_live():
            effects += self.acceptance.tick(now)
            effects += own.link.tick(now)
            effects += self.acceptance.give_up_waiting(now)
            if now - self._fleet_at >= own.timing.suspect and (
                now - self._promise_asked_at >= own.timing.beat
            ):
                self._promise_asked_at = now
                effects += [Send(peer, PromiseAsk(own.epoch, now)) for peer in own.peers]
        return self._out(effects, now)

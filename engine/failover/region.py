"""A region's part: its lease, its receipts, its standby, and its return after it was called dead.

Invariants, with every disk and every message behaving as badly as they may:
- a receipt is given when the batch is on this disk and on the standby's, or, marked as degraded, on this disk only;
- nothing is dispatched without a lease, and a batch not before its copy is safe (or was given up, degraded);
- a live region's copies are adoptable at one place, its standby, which changes only when Fleet has called it dead;
- who was called dead asks every live region before it dispatches again.

The machine does no I/O: each method returns effects (engine/failover/effects.py) for its shell.
"""

from dataclasses import dataclass
from typing import TypeAlias

from engine.failover.effects import Answer, Effect, Export, Forget, Ready, Send, Write
from engine.failover.enquiry import Enquiries, Enquiry
from engine.failover.lease import Lease
from engine.failover.link import Link, State
from engine.failover.messages import (
    Ack,
    Ask,
    Beat,
    BeatReply,
    Claim,
    ClaimReply,
    Closed,
    Data,
    Hello,
    Known,
    Message,
    Promise,
    PromiseAsk,
    RegionView,
    Standby,
    Standing,
    Told,
    Welcome,
)
from engine.failover.rendezvous import rank
from engine.failover.returning import AWAY, Phase, Round, sight_of
from engine.failover.spans import Spans, intersect, pieces, subtract
from engine.failover.standby import StandbyRole
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
    LookUp,
    Mark,
    OpenSession,
    Operation,
    Release,
    SaveClean,
    SaveEpoch,
    SaveStandby,
    TakeQueued,
)
from engine.failover.timing import Timing

FLEET = ""
AT_ONCE = 2000  # messages per operation of the store
MAX_PENDING = 4096
MAX_PROMISES = 65_536

AWAY_REFUSAL = "this region was called dead and has not returned yet"
NO_STANDBY = "no standby region is within reach"
IN_HAND = "a region has this batch in hand: ask again"
UNCERTAIN = "regions that may have this batch are away"
FULL = "too many batches wait"

Tokens: TypeAlias = list[tuple[int, object]]  # (token, payload) of clients that wait for one key


@dataclass(slots=True)
class Pending:
    """A batch that has no receipt yet. `spans` is () until it is on disk."""

    tokens: list[int]
    guarded: bool
    since: int
    uncertain: bool = False
    spans: Spans = ()


@dataclass(slots=True)
class Counters:
    """For status and metrics."""

    adopted: int = 0
    given_up: int = 0
    degraded: int = 0
    returns: int = 0


class RegionMachine:
    """See the module docstring. `incarnation` grows with each start of the process; `now` is its monotonic clock."""

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
    ) -> None:
        self.name = name
        self.peers = peers
        self.life = incarnation
        self.epoch = durable.epoch
        self.clean = durable.clean
        self.first = durable.first
        self._lived = durable.lived
        self.view: tuple[RegionView, ...] = ()
        self.counters = Counters()
        self._timing = timing
        self._accept_local = accept_local
        self.lease = Lease(peers, now=now, timing=timing)
        self.link = Link(timing, life=incarnation)
        self.standby = StandbyRole(dict(durable.fences), dict(durable.held))
        self.standby_name = durable.standby
        self._choosing = ""
        self._asked = dict(durable.asked)  # peers that have asked us on their return, by their epoch
        # by name, their epoch: what they have of ours from an earlier disk is not known here
        self._unasked = {n: e for n, e in durable.unasked if self._asked.get(n, -1) < e}
        # returning standbys that were told to keep our copies, by their epoch; or that may have been told so
        self._kept = {n: epoch for n, epoch in durable.asked if n == durable.standby}
        self._unsafe = dict(durable.unsafe)
        self._pending: dict[bytes, Pending] = {}
        self._lookups: dict[bytes, list[int]] = {}  # who asks for a key that cannot be accepted now
        self._promises: dict[bytes, None] = {}
        self._enquiries: Enquiries[Tokens | None] = Enquiries(
            timing, number=incarnation << 24
        )  # None: about an own batch, after a restart
        self._new_epoch = 0  # on its way to the disk
        self._slot_until = -1
        self._round: Round | None = None
        self._nonce = incarnation << 24
        self._beat_seen = (-1, -1)
        self._fleet_at = now
        self._promise_asked_at = now
        self._writes: list[tuple[int, Operation]] = []
        self._recover_at = 0
        self._wary_until = (
            now  # until then, a batch may have been accepted elsewhere while this region was away
        )

    # -- what the shell asks

    def may_dispatch(self, now: int) -> bool:
        return now < self.lease_until()

    def lease_until(self) -> int:
        """Nothing may be dispatched from then on."""
        return self.lease.until() if self.clean and not self._new_epoch else -1

    def is_covered(self, now: int) -> bool:
        """Whether a copy that is sent now may be expected to be safe soon."""
        return self.link.is_usable(now) and self.standby_name in self._present()

    def _is_unsure(self) -> bool:
        """Whether a batch may have been accepted that no live region knows of: more than one's word is out of reach."""
        return len(self._away()) > 1 or bool(self._unasked)

    def _standings(self) -> dict[str, RegionView]:
        return {v.name: v for v in self.view if v.name != self.name}

    def _away(self) -> tuple[tuple[str, int], ...]:
        """Peers that cannot have accepted anything lately: who is on its way back has asked us before it does."""
        return tuple(
            (n, v.epoch)
            for n, v in self._standings().items()
            if v.standing in AWAY and self._asked.get(n, -1) < v.epoch
        )

    def _present(self) -> list[str]:
        """Peers that may be live; all of them before the first view."""
        away = {name for name, _ in self._away()}
        return [peer for peer in self.peers if peer not in away]

    # -- effects

    def _out(self, effects: list[Effect], now: int) -> list[Effect]:
        """Every effect leaves through here: what is given to the store is watched."""
        for effect in effects:
            if isinstance(effect, Write):
                self._writes.append((now, effect.operation))
        return effects

    # -- clients

    def submit(
        self, token: int, key: bytes, payload: object, now: int, *, again: bool = False
    ) -> list[Effect]:
        """A client's batch. `again`: it may have given the same batch to another region before."""
        return self._out(self._submit(token, key, payload, now, again=again), now)

    def _submit(self, token: int, key: bytes, payload: object, now: int, *, again: bool) -> list[Effect]:
        if not self.clean or self._new_epoch:
            return [Answer(token, (), AWAY_REFUSAL)]
        if key in self._pending:
            self._pending[key].tokens.append(token)
            return []
        if key in self._unsafe:
            return [Answer(token, (), IN_HAND)]
        enquiry = self._enquiries.get(key)
        if enquiry is not None:
            if enquiry.what is None:
                return [Answer(token, (), IN_HAND)]
            enquiry.what.append((token, payload))
            return []
        if not again and key not in self._promises and now >= self._wary_until:
            return self._accept([token], key, payload, now)
        away = self._away()
        if self._is_unsure() and not self._accept_local:
            return [Answer(token, (), UNCERTAIN)]
        if self._enquiries.is_full():
            return [Answer(token, (), FULL)]
        effects = self._close(dict(away), now)
        if effects is None:
            return [Answer(token, (), IN_HAND)]
        return [*effects, *self._enquiries.begin(key, [(token, payload)], self._present(), away, now)]

    def _close(self, away: dict[str, int], now: int) -> list[Effect] | None:
        """Take nothing more from these under an older epoch; None if a promise of ours forbids it still."""
        open_ = {name: epoch for name, epoch in away.items() if self.standby.fences.get(name, 0) < epoch}
        if not all(self.lease.may_adopt(name, now) for name in open_):
            return None
        return [e for name, epoch in open_.items() for e in self.standby.adopt(name, epoch, self.epoch)]

    def _accept(self, tokens: list[int], key: bytes, payload: object, now: int) -> list[Effect]:
        usable = self.is_covered(now)
        if not usable and not self._accept_local:  # but what was accepted before has its receipt
            is_asked = key in self._lookups
            self._lookups.setdefault(key, []).extend(tokens)
            return [] if is_asked else [Write(LookUp(key, "", 0))]
        if len(self._pending) >= MAX_PENDING:
            return [Answer(token, (), FULL) for token in tokens]
        uncertain = len(self._away()) > 1 or (self._accept_local and self._is_unsure())
        self._pending[key] = Pending(tokens, usable, now, uncertain=uncertain)
        return [Write(Accept(key, payload, usable))]

    def _accepted(self, operation: Accept, result: Accepted, now: int) -> list[Effect]:
        pending = self._pending.get(operation.key)
        if pending is None or pending.spans:  # superseded meanwhile
            if result.known:
                return []
            if operation.guarded:
                self._unsafe[operation.key] = result.spans
                return []
            self.link.owns(result.spans)
            return [Ready(result.spans)]
        if result.known:
            del self._pending[operation.key]
            return [Answer(token, result.spans, repeated=True) for token in pending.tokens]
        pending.spans = result.spans
        if operation.guarded:
            self.link.copy(result.spans, operation.key)
            return self.link.pump(now)
        del self._pending[operation.key]
        self.counters.degraded += 1
        self.link.owns(result.spans)
        answers = [Answer(token, result.spans, degraded=True) for token in pending.tokens]
        return [*answers, Ready(result.spans), *self.link.pump(now)]

    def refused(self, operation: Accept, now: int) -> list[int]:
        """The store could not accept a batch: the tokens of those who wait for it."""
        self._writes = [(since, written) for since, written in self._writes if written is not operation]
        pending = self._pending.pop(operation.key, None)
        return pending.tokens if pending is not None else []

    def _safe(self, key: bytes, *, degraded: bool = False) -> list[Effect]:
        """The copy of a batch is safe, or nobody waits for it any longer (degraded)."""
        pending = self._pending.pop(key, None)
        if pending is None:
            return []
        degraded = degraded or pending.uncertain
        self.counters.degraded += degraded
        answers = [Answer(token, pending.spans, degraded=degraded) for token in pending.tokens]
        return [Write(Release(key, pending.spans)), *answers]

    # -- outcomes

    def settled(self, ids: list[int]) -> None:
        """These are final, on disk."""
        self.link.settled(ids)

    def deferred(self, ids: list[int]) -> None:
        """The attempts and due times of these have changed, on disk."""
        self.link.changed(ids)

    def flush(self, now: int) -> list[Effect]:
        """Send on what `settled` and `deferred` have gathered."""
        return self._out(self.link.pump(now), now)

    # -- messages

    def receive(self, sender: str, message: Message, now: int) -> list[Effect]:
        return self._out(self._receive(sender, message, now), now)

    def _receive(self, sender: str, message: Message, now: int) -> list[Effect]:
        match message:
            case Beat():
                return self._beat(message, now)
            case PromiseAsk():
                return self._promise(sender, message, now)
            case Promise():
                if self.clean and not self._new_epoch:
                    self.lease.promised(sender, message.clock)
            case Hello():
                return self.standby.hello(sender, message)
            case Data():
                return self.standby.data(sender, message)
            case Welcome():
                return self.link.welcomed(sender, message, now)
            case Ack():
                effects = [e for key in self.link.acknowledged(sender, message, now) for e in self._safe(key)]
                return [*effects, *self.link.tick(now)]
            case Closed():
                return self.link.closed(sender, message, now)
            case Ask():
                return self._asked_by(sender, message, now)
            case Told():
                if self._round is not None and self._round.nonce == message.nonce:
                    self._round.told[sender] = message
                    return self._return(now)
            case Claim():
                return self._claimed(sender, message, now)
            case ClaimReply():
                self._enquiries.answered(sender, message)
                return self._enquire(now)
        return []

    # -- Fleet

    def _beat(self, beat: Beat, now: int) -> list[Effect]:
        if (beat.fleet, beat.number) <= self._beat_seen or self._is_stalled(now):
            return []
        if any(isinstance(operation, SaveClean) for _, operation in self._writes):
            return []  # what is answered now must still be true when it is on disk
        if beat.fleet != self._beat_seen[0]:
            self._slot_until = -1  # it may give the slot to another as soon as it has our answer
        self._beat_seen = (beat.fleet, beat.number)
        self._fleet_at = now
        effects: list[Effect] = []
        if beat.view:
            self.view = beat.view
        if beat.life != self.life:
            pass  # what it says of leases and epochs is for an earlier process
        elif beat.epoch > max(self.epoch, self._new_epoch):
            effects += self._superseded(beat.epoch)
        elif beat.stamp >= 0 and beat.epoch == self.epoch and not self._new_epoch:
            self.lease.granted(beat.stamp)
            self._slot_until = beat.stamp + self._timing.lease if beat.slot else -1
        if self.clean and not self._new_epoch:
            effects += self._obey(now)
            effects += self._choose()
        effects += self._return(now)
        fences = tuple(sorted(self.standby.fences.items()))
        reply = BeatReply(beat.fleet, self.life, now, self.epoch, self.clean and not self._new_epoch, fences)
        return [*effects, Send(FLEET, reply)]

    def _is_stalled(self, now: int) -> bool:
        return bool(self._writes) and now - self._writes[0][0] > self._timing.stall

    def _superseded(self, epoch: int) -> list[Effect]:
        self._new_epoch = epoch
        self.lease.drop()
        self._slot_until = -1
        self._round = None
        refusals: list[Effect] = []
        for key, pending in self._pending.items():
            refusals += [Answer(token, (), AWAY_REFUSAL) for token in pending.tokens]
            if pending.guarded and pending.spans:
                self._unsafe[key] = pending.spans
        self._pending.clear()
        for enquiry in self._enquiries.clear():
            refusals += [Answer(token, (), AWAY_REFUSAL) for token, _ in enquiry.what or ()]
        return [*refusals, Write(SaveEpoch(epoch))]

    def _epoch_saved(self, operation: SaveEpoch) -> list[Effect]:
        self.epoch = max(self.epoch, operation.epoch)
        self.clean = False
        self._choosing = ""
        if self._new_epoch <= self.epoch:
            self._new_epoch = 0
        self.standby.reset()
        self.link.connect("", self.epoch, 0)
        return []

    def _obey(self, now: int) -> list[Effect]:
        """Adopt what the view calls dead, once no promise to it holds."""
        view = tuple(v for v in self.view if v.name != self.name and self.lease.may_adopt(v.name, now))
        return self.standby.obey(view, self.name, self.epoch)

    def _promise(self, peer: str, ask: PromiseAsk, now: int) -> list[Effect]:
        view = self._standings().get(peer)
        if (
            not self.clean
            or self._new_epoch
            or self.standby.fences.get(peer, 0) > ask.epoch
            or (view is not None and view.standing in AWAY)
        ):
            return []
        self.lease.give(peer, now)
        return [Send(peer, Promise(ask.clock))]

    # -- the standby of our messages

    def _choose(self) -> list[Effect]:
        """Keep the standby, unless Fleet has called it dead and there is another."""
        if self._choosing:
            return []
        standings = self._standings()
        current = standings.get(self.standby_name)
        if current is not None and (
            current.standing not in AWAY or self._kept.get(current.name, -1) >= current.epoch
        ):
            return self._connect()
        live = [n for n, v in standings.items() if v.standing is Standing.LIVE]
        if not live:
            return self._connect() if current is not None else []
        self._choosing = rank(self.name.encode(), live)[0]
        self.link.connect("", self.epoch, 0)
        return [Write(SaveStandby(self._choosing))]

    def _connect(self) -> list[Effect]:
        if self.link.peer == self.standby_name:
            return []
        return self.link.connect(self.standby_name, self.epoch, self._fleet_at)

    def _chosen(self, operation: SaveStandby) -> list[Effect]:
        self.standby_name = operation.name
        if operation.name != self._choosing:
            return []
        self._choosing = ""
        return self._connect()

    def _asked_by(self, peer: str, ask: Ask, now: int) -> list[Effect]:
        """A region returns and asks what is ours; what we hold of the dead comes first."""
        if not self.clean or self._new_epoch:
            return []
        closing = self._close({name: epoch for name, epoch in ask.dead if name != self.name}, now)
        if closing is None or self.standby.is_adopting():
            return closing or []  # it asks again
        self._asked[peer] = max(self._asked.get(peer, -1), ask.epoch)
        if peer in self._unasked and self._unasked[peer] <= ask.epoch:
            del self._unasked[peer]
        return self.standby.asked(peer, ask, self.epoch)

    def _verdict(self, peer: str, held: int, epoch: int) -> tuple[Standby, list[Effect]]:
        """What a returning peer shall do with the copies of our messages that it holds."""
        if held and held < self.first:
            return Standby.ADOPT, []
        if self._choosing:
            return Standby.WAIT, []
        if self.standby_name == peer:
            self._kept[peer] = epoch
            return Standby.KEEP, []
        if not self.standby_name:
            self._choosing = peer
            return Standby.WAIT, [Write(SaveStandby(peer))]
        return (Standby.DROP if self.link.is_complete() else Standby.WAIT), []

    # -- return

    def _return(self, now: int) -> list[Effect]:
        """Take the next step of the return, if the slot is ours."""
        if self.clean or self._new_epoch or any(isinstance(o, SaveClean) for _, o in self._writes):
            return []
        if now >= self._slot_until:
            self._round = None
            return []
        sight = sight_of(self.view, self.name)
        if self._round is None or self._round.sight != sight:
            self._nonce += 1
            self._round = Round(self._nonce, sight)
        round_ = self._round
        effects: list[Effect] = []
        if round_.phase is Phase.ADOPTING:
            if any(now < self.lease.given_until(name) for name in round_.away()):
                return []  # a promise of ours may let it go on sending
            for name, epoch in round_.away().items():
                if self.standby.fences.get(name, 0) < epoch:
                    effects += self.standby.adopt(name, epoch, self.epoch)
            if not self.standby.is_adopting():
                round_.phase = Phase.LISTING
                effects.append(Write(TakeQueued(unsafe=True, tag=round_.nonce)))
        elif round_.phase is Phase.ASKING:
            if now - round_.asked_at >= self._timing.resend:
                round_.asked_at = now
                fresh = not self.first
                for peer in round_.open():
                    held = self.standby.held.get(peer, 0)
                    dead = tuple(round_.away().items())
                    effects.append(
                        Send(peer, Ask(self.epoch, round_.nonce, round_.queued, fresh, held, dead))
                    )
            if not round_.open():
                effects += self._conclude(round_)
        return effects

    def _conclude(self, round_: Round) -> list[Effect]:
        """Everybody has answered."""
        effects: list[Effect] = []
        adopt = [peer for peer in round_.with_verdict(Standby.ADOPT) if peer in self.standby.held]
        if adopt:
            epochs = {name: epoch for name, _, epoch in round_.sight}
            for peer in adopt:
                del self.standby.held[peer]
                fence = max(self.standby.fences.get(peer, 0), epochs[peer])
                effects += self.standby.adopt(peer, fence, self.epoch, forced=True)
            self._round = None  # there is more to ask about now
            return effects
        lost = round_.lost()
        effects += [Write(GiveUp(piece)) for piece in pieces(lost, AT_ONCE)]
        if round_.away() or round_.has_new_disk_since(self._lived):
            effects += [Write(Mark(piece)) for piece in pieces(subtract(round_.queued, lost), AT_ONCE)]
        effects += [Write(DropCopies(peer)) for peer in round_.with_verdict(Standby.DROP)]
        round_.phase = Phase.SAVING
        unasked = self._unasked if self.first else round_.away()
        still = tuple((name, epoch) for name, epoch in unasked.items() if name not in round_.told)
        return [*effects, Write(SaveClean(self.epoch, round_.highest(), still))]

    def _returned(self, operation: SaveClean, now: int) -> list[Effect]:
        if operation.epoch != self.epoch:
            return []
        self.clean = True
        self.first = self.first or operation.epoch
        self._lived = operation.epoch
        self._unasked = dict(operation.unasked)
        self._round = None
        self.counters.returns += 1
        self._wary_until = now + self._timing.late
        return [*self._choose(), *self._recover(now)]

    def _given_up(self, operation: GiveUp) -> list[Effect]:
        for key, spans in list(self._unsafe.items()):
            if intersect(spans, operation.spans):
                del self._unsafe[key]
        self.counters.given_up += sum(count for _, count in operation.spans)
        return [Forget(operation.spans)]

    # -- enquiries

    def _recover(self, now: int) -> list[Effect]:
        """Batches without a receipt, of before a restart: find out whether they were accepted elsewhere since."""
        effects: list[Effect] = []
        self._recover_at = now + self._timing.resend
        closing = self._close(dict(self._away()), now) if self._unsafe else None
        if closing is None:
            return effects
        effects += closing
        for key in self._unsafe:
            if key not in self._enquiries and not self._enquiries.is_full():
                effects += self._enquiries.begin(key, None, self._present(), self._away(), now)
        return effects

    def _enquire(self, now: int) -> list[Effect]:
        effects, decided = self._enquiries.tick(set(self._present()), now)
        for enquiry in decided:
            effects += self._recovered(enquiry, now) if enquiry.what is None else self._decided(enquiry, now)
        return effects

    def _decided(self, enquiry: Enquiry[Tokens | None], now: int) -> list[Effect]:
        clients = enquiry.what or []
        if enquiry.known is Known.YES:
            return [Answer(token, enquiry.spans, repeated=True) for token, _ in clients]
        if enquiry.known is not Known.NO or enquiry.key in self._unsafe:
            return [Answer(token, (), IN_HAND) for token, _ in clients]
        if not clients:
            return []
        return self._accept([token for token, _ in clients], enquiry.key, clients[0][1], now)

    def _recovered(self, enquiry: Enquiry[Tokens | None], now: int) -> list[Effect]:
        spans = self._unsafe.get(enquiry.key)
        if spans is None or enquiry.known is Known.PENDING:
            return []
        if enquiry.known is Known.YES and not intersect(spans, enquiry.spans):
            del self._unsafe[enquiry.key]
            return [Write(Abandon(enquiry.key, spans, enquiry.spans)), Forget(spans)]
        del self._unsafe[enquiry.key]
        self._pending[enquiry.key] = Pending([], True, now, spans=spans)
        self.link.copy(spans, enquiry.key)
        return self.link.pump(now)

    def _claimed(self, sender: str, claim: Claim, now: int) -> list[Effect]:
        """Another region asks who knows a key. No answer as long as the dead may still have their way here."""
        dead = dict(claim.dead)
        if not self.clean or self._new_epoch or self.name in dead:
            return []
        closing = self._close(dead, now)
        if closing is None or self.standby.is_adopting():
            return closing or []  # it asks again
        effects = closing
        known = self._in_hand(sender, claim)
        self._promises[claim.key] = None
        if len(self._promises) > MAX_PROMISES:
            del self._promises[next(iter(self._promises))]
        if known is None:
            return [*effects, Write(LookUp(claim.key, sender, claim.number))]
        return [*effects, Send(sender, ClaimReply(claim.number, claim.key, known))]

    def _in_hand(self, sender: str, claim: Claim) -> Known | None:
        """The answer to a claim of a batch that is being accepted here, or asked for; None if it is not."""
        if claim.key in self._pending:
            return Known.PENDING
        if claim.key in self._unsafe:  # if both of us have it, without a receipt, the first by name keeps it
            return Known.NO if claim.recovering and sender < self.name else Known.PENDING
        enquiry = self._enquiries.get(claim.key)
        if enquiry is None:
            return None
        if self.name < sender and not claim.recovering:
            return Known.PENDING
        enquiry.known = Known.PENDING
        return None

    def _looked_up(self, operation: LookUp, result: Accepted | None) -> list[Effect]:
        if not operation.asker:
            tokens = self._lookups.pop(operation.key, [])
            if result is None:
                return [Answer(token, (), NO_STANDBY) for token in tokens]
            return [Answer(token, result.spans, repeated=True) for token in tokens]
        unknown = Known.PENDING if self._unasked and not self._accept_local else Known.NO
        known = unknown if result is None else Known.YES
        return [
            Send(
                operation.asker,
                ClaimReply(operation.number, operation.key, known, result.spans if result else ()),
            )
        ]

    # -- the store has done it

    def committed(self, operation: Operation, result: object, now: int) -> list[Effect]:
        for index, (_, written) in enumerate(self._writes):
            if written is operation:
                del self._writes[index]
                break
        return self._out(self._committed(operation, result, now), now)

    def _committed(self, operation: Operation, result: object, now: int) -> list[Effect]:
        match operation:
            case SaveEpoch():
                return self._epoch_saved(operation)
            case SaveClean():
                return self._returned(operation, now)
            case SaveStandby():
                return self._chosen(operation)
            case Accept():
                assert isinstance(result, Accepted)
                return self._accepted(operation, result, now)
            case Release():
                return [Ready(operation.spans)]
            case TakeQueued():
                assert isinstance(result, tuple)
                return self._listed(operation, result, now)
            case OpenSession():
                assert result is None or isinstance(result, tuple)
                return self.standby.opened(operation, result)
            case Apply():
                return self.standby.applied(operation, str(result))
            case Adopt():
                assert isinstance(result, Adopted)
                self.counters.adopted += sum(count for _, count in result.spans)
                self.link.owns(result.spans)
                ready: list[Effect] = [Ready(result.spans)] if result.spans else []
                return [*ready, *self.standby.adopted(operation, result), *self._return(now)]
            case Inspect():
                assert result is None or isinstance(result, Inspected)
                return self._inspected(operation, result)
            case GiveUp():
                return self._given_up(operation)
            case LookUp():
                assert result is None or isinstance(result, Accepted)
                return self._looked_up(operation, result)
        return []

    def _listed(self, operation: TakeQueued, queued: Spans, now: int) -> list[Effect]:
        if operation.unsafe:
            if self._round is not None and self._round.nonce == operation.tag:
                self._round.queued = queued
                self._round.phase = Phase.ASKING
                self._round.asked_at = now - self._timing.resend
                return self._return(now)
            return []
        waiting = [(p.spans, key) for key, p in self._pending.items() if p.guarded and p.spans]
        self.link.listed(operation, queued, waiting, now)
        return self.link.pump(now)

    def _inspected(self, operation: Inspect, result: Inspected | None) -> list[Effect]:
        if result is None or not self.clean or self._new_epoch:
            return []
        verdict, effects = self._verdict(operation.owner, operation.held, operation.epoch)
        told = Told(operation.nonce, result.mine, result.highest, verdict, self.first)
        return [*effects, Send(operation.owner, told)]

    def exported(self, export: Export, spans: Spans, payload: bytes, cursor: bytes, now: int) -> list[Effect]:
        return self._out(self.link.exported(export, spans, payload, cursor, now), now)

    # -- time

    def tick(self, now: int) -> list[Effect]:
        """To be called every 50 ms or so."""
        effects = self._return(now)
        if self.clean and not self._new_epoch:
            if now >= self._recover_at:
                effects += self._recover(now)
            effects += self._enquire(now)
            effects += self.link.tick(now)
            if self._accept_local and self.link.state is not State.LISTING and not self.is_covered(now):
                for key, pending in list(self._pending.items()):
                    if pending.guarded and pending.spans and now - pending.since >= self._timing.patience:
                        self.link.owns(pending.spans)
                        effects += self._safe(key, degraded=True)
            if now - self._fleet_at >= self._timing.suspect and (
                now - self._promise_asked_at >= self._timing.beat
            ):
                self._promise_asked_at = now
                effects += [Send(peer, PromiseAsk(self.epoch, now)) for peer in self.peers]
        return self._out(effects, now)

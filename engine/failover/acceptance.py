"""Batches of clients: what a region accepts, when that is safe, and who else may have accepted it.

A receipt is given when the batch is on this disk and on the standby's, or, marked as degraded, on this disk only. A
batch that a client may have given to another region before is accepted when all that may be live have said that they
neither have it nor will take it without asking. Batches of before a restart, without a receipt, are asked for too.
"""

from dataclasses import dataclass
from typing import TypeAlias

from engine.failover.effects import Answer, Effect, Forget, Ready, Send, Write
from engine.failover.enquiry import Enquiries, Enquiry
from engine.failover.link import State
from engine.failover.messages import Claim, ClaimReply, Known
from engine.failover.situation import Situation
from engine.failover.spans import Spans, ids_of, intersect, size, subtract, union
from engine.failover.store import Abandon, Accept, Accepted, LookUp, Release

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
    """A batch without a receipt. `spans` is () until it is on disk. `alone`: there was no standby within reach; while
    its Release is on its way: there is no copy."""

    tokens: list[int]
    since: int
    alone: bool = False
    uncertain: bool = False
    spans: Spans = ()
    is_recovered: bool = False


class Acceptance:
    """See the module docstring. `unsafe`: batches that the disk held without a receipt when the process started."""

    def __init__(
        self, situation: Situation, unsafe: tuple[tuple[bytes, Spans], ...], *, incarnation: int, now: int
    ) -> None:
        self._own = situation
        self._unsafe = dict(unsafe)
        self._pending: dict[bytes, Pending] = {}
        self._releasing: dict[bytes, Pending] = {}  # a receipt as soon as it is due on disk
        # who asks for a key that cannot be accepted now, and why it cannot
        self._lookups: dict[bytes, list[tuple[int, str]]] = {}
        self._promises: dict[bytes, None] = {}
        self._enquiries: Enquiries[Tokens | None] = Enquiries(
            situation.timing, number=incarnation << 24
        )  # None: about an own batch, after a restart
        self._recover_at = 0
        self._covered_at = now  # when a standby was last within reach, or this region began
        # until then, a batch may have been accepted elsewhere while this region was away, or since it has promised, in
        # an earlier process, not to accept it without asking
        self._wary_until = now + situation.timing.late

    def renumber(self, life: int) -> None:
        """This process has another number."""
        self._enquiries.renumber(life << 24)

    # -- clients

    def submit(self, token: int, key: bytes, payload: object, now: int, *, again: bool) -> list[Effect]:
        own = self._own
        if not own.is_live():
            return [Answer(token, (), AWAY_REFUSAL)]
        in_hand = self._pending.get(key) or self._releasing.get(key)
        if in_hand is not None:
            if in_hand.is_recovered:
                return [Answer(token, (), IN_HAND)]  # a part of it may have been given up
            in_hand.tokens.append(token)
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
        away = own.away()
        if own.is_unsure() and not own.accept_local:
            return self._look_up([token], key, UNCERTAIN)
        if self._enquiries.is_full():
            return [Answer(token, (), FULL)]
        effects = own.close(dict(away), now)
        if effects is None:
            return [Answer(token, (), IN_HAND)]
        return [*effects, *self._enquiries.begin(key, [(token, payload)], own.present(), away, now)]

    def _accept(
        self, tokens: list[int], key: bytes, payload: object, now: int, *, unheard: int = 0
    ) -> list[Effect]:
        """`unheard`: so many regions were away when the others were asked for the key."""
        own = self._own
        usable = own.is_covered(now)
        if not usable and not own.accept_local:  # but what was accepted before has its receipt
            return self._look_up(tokens, key, NO_STANDBY)
        if len(self._pending) >= MAX_PENDING:
            return [Answer(token, (), FULL) for token in tokens]
        uncertain = max(unheard, len(own.away())) > 1 or (own.accept_local and own.is_unsure())
        # a session that begins anew is no reason to do without a copy
        alone = not usable and now - self._covered_at >= own.timing.patience
        self._pending[key] = Pending(tokens, now, alone=alone, uncertain=uncertain)
        return [Write(Accept(key, payload))]

    def _look_up(self, tokens: list[int], key: bytes, refusal: str) -> list[Effect]:
        """It cannot be accepted now; but what was accepted before has its receipt."""
        is_asked = key in self._lookups
        self._lookups.setdefault(key, []).extend((token, refusal) for token in tokens)
        return [] if is_asked else [Write(LookUp(key, "", 0))]

    def accepted(self, operation: Accept, result: Accepted, now: int) -> list[Effect]:
        """The batch is on this disk."""
        own = self._own
        pending = self._pending.get(operation.key)
        if pending is None or pending.spans:  # superseded meanwhile
            if not result.known and not result.hearsay:
                self._unsafe[operation.key] = result.spans
            return []
        if result.hearsay:
            del self._pending[operation.key]
            return [Answer(token, (), IN_HAND) for token in pending.tokens]
        if result.known:
            del self._pending[operation.key]
            return self._repeat(pending.tokens, result.spans)
        pending.spans = result.spans
        if pending.alone and not own.is_covered(now) and own.link.state is not State.LISTING:
            own.link.copy(result.spans, operation.key)
            return [*self._release(operation.key, alone=True), *own.link.pump(now)]
        own.link.copy(result.spans, operation.key)
        return own.link.pump(now)

    def _release(self, key: bytes, *, alone: bool) -> list[Effect]:
        """`alone`: without waiting for the copy. It gets its receipt when its release is on this disk: after a restart
        without that, it would have to be asked for, and might be given up to another region that has it as well."""
        pending = self._releasing[key] = self._pending.pop(key)
        pending.alone = alone
        self._own.counters.degraded += alone or pending.uncertain
        return [Write(Release(key, pending.spans))]

    def released(self, operation: Release) -> list[Effect]:
        """A batch is due, on disk."""
        pending = self._releasing.pop(operation.key, None)
        if pending is not None:
            self._own.link.released(operation.key)
            if pending.alone:
                self._own.link.owe_keys()  # the copy comes without its keys
            degraded = pending.alone or pending.uncertain
            # who was first has it; the others have joined, and may have other recipients under the same key
            answers = [
                Answer(token, pending.spans, repeated=bool(number), degraded=degraded)
                for number, token in enumerate(pending.tokens)
            ]
            return [*answers, Ready(operation.spans)]
        if operation.key in self._unsafe:  # superseded meanwhile: it is asked for before it is sent
            return [Forget(operation.spans)]
        return [Ready(operation.spans)]

    def _repeat(self, tokens: list[int], spans: Spans) -> list[Effect]:
        """The receipt once more; it is degraded if the copy may be missing still."""
        alone = self._own.may_be_alone()
        return [Answer(token, spans, repeated=True, degraded=alone) for token in tokens]

    def refused(self, operation: Accept) -> list[int]:
        """The store could not accept it: the tokens of those who wait for it."""
        pending = self._pending.pop(operation.key, None)
        return pending.tokens if pending is not None else []

    def safe(self, key: bytes) -> list[Effect]:
        """The copy of a batch is safe."""
        if key in self._pending:
            return self._release(key, alone=False)
        if key not in self._releasing and key not in self._unsafe:
            self._own.link.released(key)
        return []

    def waiting(self) -> list[tuple[Spans, bytes]]:
        """Batches on this disk that wait for their copy."""
        return [(pending.spans, key) for key, pending in self._pending.items() if pending.spans]

    def unsafe(self) -> Spans:
        """What is on this disk without being due."""
        return union(*self._unsafe.values(), *(pending.spans for pending in self._pending.values()))

    # -- this region was called dead, and returns

    def releasing(self) -> tuple[tuple[bytes, Spans], ...]:
        """Batches whose release is on its way to the disk."""
        return tuple((key, pending.spans) for key, pending in self._releasing.items())

    def superseded(self) -> list[Effect]:
        """This region was called dead: nobody gets a receipt, and what is on disk without one is asked for later."""
        refusals: list[Effect] = []
        for key, pending in self._pending.items():
            refusals += [Answer(token, (), AWAY_REFUSAL) for token in pending.tokens]
            if pending.spans:
                self._unsafe[key] = pending.spans
        for key, pending in self._releasing.items():
            refusals += [Answer(token, (), AWAY_REFUSAL) for token in pending.tokens]
            self._unsafe[key] = pending.spans
        self._pending.clear()
        self._releasing.clear()
        for enquiry in self._enquiries.clear():
            refusals += [Answer(token, (), AWAY_REFUSAL) for token, _ in enquiry.what or ()]
        return refusals

    def given_up(self, spans: Spans) -> None:
        """Others own these; what is left of a batch is asked for like one of before a restart."""
        for key, own in list(self._unsafe.items()):
            left = subtract(own, spans)
            if not left:
                del self._unsafe[key]
            elif size(left) < size(own):
                self._unsafe[key] = left

    def returned(self, now: int) -> list[Effect]:
        self._wary_until = now + self._own.timing.late
        self._covered_at = now
        return self._recover(now)

    def _recover(self, now: int) -> list[Effect]:
        """Batches without a receipt, of before a restart: find out whether they were accepted elsewhere since."""
        own = self._own
        effects: list[Effect] = []
        self._recover_at = now + own.timing.resend
        closing = own.close(dict(own.away()), now) if self._unsafe else None
        if closing is None:
            return effects
        effects += closing
        for key in self._unsafe:
            if key not in self._enquiries and not self._enquiries.is_full():
                effects += self._enquiries.begin(key, None, own.present(), own.away(), now)
        return effects

    # -- enquiries of ours

    def answered(self, sender: str, reply: ClaimReply, now: int) -> list[Effect]:
        self._enquiries.answered(sender, reply)
        return self._enquire(now)

    def _enquire(self, now: int) -> list[Effect]:
        effects, decided = self._enquiries.tick(set(self._own.present()), now)
        for enquiry in decided:
            effects += self._recovered(enquiry, now) if enquiry.what is None else self._decided(enquiry, now)
        return effects

    def _decided(self, enquiry: Enquiry[Tokens | None], now: int) -> list[Effect]:
        clients = enquiry.what or []
        if enquiry.known is Known.YES:
            alone = enquiry.alone
            return [Answer(token, enquiry.spans, repeated=True, degraded=alone) for token, _ in clients]
        if enquiry.known is not Known.NO or enquiry.key in self._unsafe:
            return [Answer(token, (), IN_HAND) for token, _ in clients]
        if not clients:
            return []
        tokens = [token for token, _ in clients]
        return self._accept(tokens, enquiry.key, clients[0][1], now, unheard=len(enquiry.dead))

    def _recovered(self, enquiry: Enquiry[Tokens | None], now: int) -> list[Effect]:
        spans = self._unsafe.get(enquiry.key)
        if spans is None or enquiry.known is Known.PENDING:
            return []
        if enquiry.known is Known.YES and not intersect(spans, enquiry.spans):
            del self._unsafe[enquiry.key]
            self._own.link.settled(ids_of(spans))
            return [Write(Abandon(enquiry.key, spans, enquiry.spans)), Forget(spans)]
        is_doubtful = len(enquiry.dead) > 1 or self._own.is_unsure()
        uncertain = is_doubtful and enquiry.known is Known.NO
        if uncertain and not self._own.accept_local:
            return []  # it is asked for again: who is away may have accepted it
        return self._take_up(enquiry.key, now, uncertain=uncertain)

    def _take_up(self, key: bytes, now: int, *, uncertain: bool = False) -> list[Effect]:
        """A batch of before a restart is ours: it is due when its copy is safe."""
        spans = self._unsafe.pop(key)
        self._pending[key] = Pending([], now, uncertain=uncertain, spans=spans, is_recovered=True)
        self._own.link.copy(spans, key)
        return self._own.link.pump(now)

    def vouched(self, queued: Spans, now: int) -> list[Effect]:
        """Who returns has these queued. If some are of batches of ours without a receipt, it has adopted them, and may
        have given one: it gives them up when their copy is safe, and not while they are on this disk alone."""
        both = intersect(union(*self._unsafe.values()), queued) if self._unsafe else ()
        keys = [key for key, spans in self._unsafe.items() if intersect(spans, both)] if both else []
        return [effect for key in keys for effect in self._take_up(key, now)]

    # -- enquiries of others

    def claimed(self, sender: str, claim: Claim, now: int) -> list[Effect]:
        """Another region asks who knows a key. No answer as long as the dead may still have their way here."""
        own = self._own
        dead = dict(claim.dead)
        if not own.is_live() or own.name in dead or own.is_away(sender):
            return []  # who is away may not know it yet, and what it accepted now would be nobody else's to know
        closing = own.close(dead, now)
        if closing is None or own.standby.is_adopting():
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
        if claim.key in self._pending or claim.key in self._releasing:
            return Known.PENDING
        if claim.key in self._unsafe:  # if both of us have it, without a receipt, the first by name keeps it
            return Known.NO if claim.recovering and sender < self._own.name else Known.PENDING
        enquiry = self._enquiries.get(claim.key)
        if enquiry is None:
            return None
        # of two that ask each other the first by name goes on, unless it has had to ask again: somebody does not hear
        # it, and who asks now may be heard by all
        is_overdue = enquiry.pause > self._own.timing.resend
        if self._own.name < sender and not claim.recovering and not is_overdue:
            return Known.PENDING
        enquiry.known = Known.PENDING
        return None

    def looked_up(self, operation: LookUp, result: Accepted | None) -> list[Effect]:
        if not operation.asker:
            waiting = self._lookups.pop(operation.key, [])
            if result is None:
                return [Answer(token, (), refusal) for token, refusal in waiting]
            return self._repeat([token for token, _ in waiting], result.spans)
        may_be_elsewhere = any(name != operation.asker for name in self._own.unheard())
        unknown = Known.PENDING if may_be_elsewhere and not self._own.accept_local else Known.NO
        known = unknown if result is None else Known.YES
        spans = result.spans if result else ()
        alone = result is not None and self._own.may_be_alone()
        return [Send(operation.asker, ClaimReply(operation.number, operation.key, known, spans, alone))]

    # -- time

    def tick(self, now: int) -> list[Effect]:
        if self._own.is_covered(now):
            self._covered_at = now
        effects = self._recover(now) if now >= self._recover_at else []
        return [*effects, *self._enquire(now)]

    def give_up_waiting(self, now: int) -> list[Effect]:
        """With `accept_local`: what waits for a standby that is out of reach gets its receipt, degraded."""
        own = self._own
        if not own.accept_local or own.link.state is State.LISTING or own.is_covered(now):
            return []
        effects: list[Effect] = []
        for key, pending in list(self._pending.items()):
            if pending.spans and now - pending.since >= own.timing.patience:
                effects += self._release(key, alone=True)
        return effects

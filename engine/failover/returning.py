"""A region that was called dead comes back: it finds out what others own of its messages before it sends anything.

Under the slot, in rounds: adopt what is to be adopted, list what is queued, ask every live region, give up what they
own. That goes to the disk in pieces, one after the other, so that Fleet's beats are answered meanwhile: with many
messages it takes longer than a lease. A round starts again when the view changes, or when another region has had the
slot; what was listed, given up or marked before is not done once more, so the last of many rounds ends. Regions that
are dead meanwhile are not asked: they will have to ask this one. What remains then may have been sent by one of them,
or by one that has lost its disk since, and is marked.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeAlias

from engine.failover.effects import Effect, Send, Write
from engine.failover.messages import AWAY, Ask, RegionView, Standby, Told
from engine.failover.situation import Situation
from engine.failover.spans import Span, Spans, pieces, subtract, union
from engine.failover.store import DropCopies, GiveUp, Mark, Operation, Queued, SaveClean, TakeQueued
from engine.failover.timing import Timing

AT_ONCE = 2000  # messages per operation of the store
LONG = 10_000  # runs of ids in a question


class Phase(IntEnum):
    ADOPTING = 1
    LISTING = 2
    ASKING = 3
    CLEARING = 4
    SAVING = 5


Sight: TypeAlias = tuple[tuple[str, bool, int], ...]


def sight_of(view: tuple[RegionView, ...], name: str) -> Sight:
    """What of a view matters to a round."""
    return tuple((v.name, v.standing in AWAY, v.epoch) for v in view if v.name != name)


@dataclass(slots=True)
class Round:
    """One attempt to return."""

    nonce: int
    sight: Sight
    phase: Phase = Phase.ADOPTING
    queued: Spans = ()
    told: dict[str, Told] = field(default_factory=dict)
    asked_at: int = 0
    left: deque[Operation] = field(
        default_factory=deque
    )  # to be cleared, the first of them is on its way to the disk

    def away(self) -> dict[str, int]:
        """Regions that are not asked, with their epochs."""
        return {name: epoch for name, away, epoch in self.sight if away}

    def pause(self, timing: Timing) -> int:
        """Until the question is repeated: the longer it is, the later."""
        return min(timing.resend * (1 + len(self.queued) // LONG), timing.patient)

    def open(self) -> list[str]:
        """Regions whose answer is wanted still."""
        return [
            name
            for name, away, _ in self.sight
            if not away and (name not in self.told or self.told[name].standby is Standby.WAIT)
        ]

    def lost(self) -> Spans:
        return union(*(told.mine for told in self.told.values()))

    def highest(self) -> int:
        return max((told.highest for told in self.told.values()), default=0)

    def has_new_disk_since(self, lived: int) -> bool:
        """Whether one that was asked has lost its disk since the asker was live, in epoch `lived`."""
        return any(told.first > lived for told in self.told.values())

    def has_told_all(self, name: str) -> bool:
        """Whether it was asked, and is not the only one to know what it has answered from."""
        return name in self.told and self.told[name].covered

    def with_verdict(self, verdict: Standby) -> list[str]:
        return [name for name, told in self.told.items() if told.standby is verdict]


class Return:
    """The rounds of one process. `slot_until`: the end of the slot in which this region may return, -1 for none."""

    def __init__(self, situation: Situation, *, incarnation: int) -> None:
        self._own = situation
        self._nonce = incarnation << 24
        self._round: Round | None = None
        self.slot_until = -1
        self._begin()

    def _begin(self) -> None:
        """What rounds leave to the next ones, as long as this region is not live and accepts nothing."""
        self._found: list[Span] = []  # listed, or adopted since; some may have got their outcome
        self._given_up: Spans = ()  # of these
        self._listed_to = -1
        self._is_listed = False
        self._marked: list[Span] = []
        self._marked_in: Sight = ()

    def abort(self) -> None:
        """This region was called dead again."""
        self.slot_until = -1
        self._round = None

    def renumber(self, life: int) -> None:
        """This process has another number: who hears of it takes it for another process, which has no slot."""
        self._nonce = max(self._nonce, life << 24)
        self.abort()

    def told(self, sender: str, message: Told, now: int) -> list[Effect]:
        """A live region's answer."""
        if self._round is None or self._round.nonce != message.nonce:
            return []
        self._round.told[sender] = message
        return self.step(now)

    def owns(self, spans: Spans) -> None:
        """These were adopted: the listing may be past them."""
        if not self._own.clean:
            self._found.extend(spans)
            self._given_up = subtract(self._given_up, spans)

    def listed(self, operation: TakeQueued, part: Queued, now: int) -> list[Effect]:
        """The store says what is queued here, a part of it."""
        round_ = self._round
        if round_ is None or round_.nonce != operation.tag:
            return []
        self._found.extend(part.spans)
        self._listed_to = part.last
        self._is_listed = part.last < 0
        return self._list(round_, now)

    def _list(self, round_: Round, now: int) -> list[Effect]:
        """Go on with the listing where it is; when it is done, ask."""
        if not self._is_listed:
            round_.phase = Phase.LISTING
            return [Write(TakeQueued(unsafe=True, tag=round_.nonce, after=self._listed_to))]
        round_.queued = subtract(self._found, self._given_up)
        self._found, self._given_up = list(round_.queued), ()
        round_.phase = Phase.ASKING
        round_.asked_at = now - self._own.timing.patient
        return self.step(now)

    def step(self, now: int) -> list[Effect]:
        """Take the next step, if the slot is ours."""
        own = self._own
        if own.clean or own.new_epoch or own.writes.is_returning():
            return []
        if now >= self.slot_until:
            self._round = None
            return []
        sight = sight_of(own.view, own.name)
        if self._round is None or self._round.sight != sight:
            self._nonce += 1
            self._round = Round(self._nonce, sight)
            if (
                sight != self._marked_in
            ):  # who was live meanwhile may have sent what was not due when it was marked
                self._marked_in, self._marked = sight, []
        if self._round.phase is Phase.ADOPTING:
            return self._adopt(self._round, now)
        if self._round.phase is Phase.ASKING:
            return self._ask(self._round, now)
        return []

    def _adopt(self, round_: Round, now: int) -> list[Effect]:
        """First, what is to be adopted from those that are not asked."""
        own = self._own
        if any(now < own.lease.given_until(name) for name in round_.away()):
            return []  # a promise of ours may let it go on sending
        effects: list[Effect] = []
        for name, epoch in round_.away().items():
            if own.standby.is_open(name, epoch):
                effects += own.standby.adopt(name, epoch, own.epoch)
        if not own.standby.is_adopting():
            effects += self._list(round_, now)
        return effects

    def _ask(self, round_: Round, now: int) -> list[Effect]:
        own = self._own
        effects: list[Effect] = []
        if now - round_.asked_at >= round_.pause(own.timing):
            round_.asked_at = now
            dead = tuple(round_.away().items())
            for peer in round_.open():
                held = own.standby.held.get(peer, 0)
                ask = Ask(own.epoch, round_.nonce, round_.queued, not own.first, held, dead)
                effects.append(Send(peer, ask))
        if not round_.open():
            effects += self._conclude(round_)
        return effects

    def _conclude(self, round_: Round) -> list[Effect]:
        """Everybody has answered."""
        own = self._own
        effects: list[Effect] = []
        adopt = [peer for peer in round_.with_verdict(Standby.ADOPT) if peer in own.standby.held]
        if adopt:
            epochs = {name: epoch for name, _, epoch in round_.sight}
            for peer in adopt:
                del own.standby.held[peer]
                fence = max(own.standby.fences.get(peer, 0), epochs[peer])
                effects += own.standby.adopt(peer, fence, own.epoch, forced=True)
            self._round = None  # there is more to ask about now
            return effects
        round_.phase = Phase.CLEARING
        round_.left.extend(self.to_clear(round_))
        return self._clear(round_)

    def to_clear(self, round_: Round) -> list[Operation]:
        """What follows for the disk from the answers."""
        operations: list[Operation] = []
        for peer, told in round_.told.items():
            is_standby = told.standby is Standby.KEEP
            operations += [GiveUp(piece, peer, is_standby) for piece in pieces(told.mine, AT_ONCE)]
        # a batch that was accepted here alone: others knew of no copy of it
        may_be_elsewhere = self._own.accept_local
        if may_be_elsewhere or round_.away() or round_.has_new_disk_since(self._own.lived):
            rest = subtract(round_.queued, union(round_.lost(), self._marked))
            operations += [Mark(piece) for piece in pieces(rest, AT_ONCE)]
        operations += [DropCopies(peer) for peer in round_.with_verdict(Standby.DROP)]
        return operations

    def cleared(self, operation: GiveUp | Mark | DropCopies, *, more: bool = False) -> list[Effect]:
        """It is on disk, or a part of it (`more`)."""
        if isinstance(operation, GiveUp):
            self._given_up = union(self._given_up, operation.spans)
        round_ = self._round
        if round_ is None or not round_.left or round_.left[0] is not operation:
            return []
        if more:
            return [Write(operation)]
        if isinstance(operation, Mark):
            self._marked.extend(operation.spans)
        round_.left.popleft()
        return self._clear(round_)

    def _clear(self, round_: Round) -> list[Effect]:
        own = self._own
        if round_.left:
            return [Write(round_.left[0])]
        round_.phase = Phase.SAVING
        unasked = own.unasked if own.first else {name: epoch for name, _, epoch in round_.sight}
        still = tuple((name, epoch) for name, epoch in unasked.items() if not round_.has_told_all(name))
        return [Write(SaveClean(own.epoch, round_.highest(), still))]

    def returned(self, operation: SaveClean) -> bool:
        """It is on disk. False if this region was called dead once more before."""
        own = self._own
        if operation.epoch != own.epoch:
            return False
        own.clean = True
        own.first = own.first or operation.epoch
        own.lived = operation.epoch
        own.unasked = dict(operation.unasked)
        own.counters.returns += 1
        self._round = None
        self._begin()
        return True

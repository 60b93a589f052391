"""Broken protocols: each leaves out one rule, and the simulation has to find it (test_simulation.py)."""

from dataclasses import replace
from typing import Any

from engine.failover.effects import Answer, Effect, Write
from engine.failover.fleet import FleetMachine, number_above
from engine.failover.messages import (
    Ask,
    Beat,
    BeatReply,
    Behind,
    Claim,
    Copy,
    Data,
    Known,
    Message,
    Standby,
    Told,
)
from engine.failover.region import RegionMachine
from engine.failover.returning import Round
from engine.failover.spans import Spans
from engine.failover.standby import StandbyRole
from engine.failover.store import Accept, Accepted, Apply, GiveUp, Operation, SaveStandby


class NoLeaseCheck(RegionMachine):
    """Dispatches whether its lease has run out or not."""

    def lease_until(self) -> int:
        return 1 << 62


class NoFence(RegionMachine):
    """Returns with its new epoch, and keeps what others say is theirs."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        to_clear = self.returning.to_clear

        def keep(round_: Round) -> list[Operation]:
            return [operation for operation in to_clear(round_) if not isinstance(operation, GiveUp)]

        self.returning.to_clear = keep  # type: ignore[method-assign]


class KeepsNoCopy(RegionMachine):
    """Returns, and forgets what it gives up although its new owner has no other standby."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        to_clear = self.returning.to_clear

        def forget(round_: Round) -> list[Operation]:
            return [replace(o, is_standby=False) if isinstance(o, GiveUp) else o for o in to_clear(round_)]

        self.returning.to_clear = forget  # type: ignore[method-assign]


class DropsWhatIsUnsafe(RegionMachine):
    """Has its standby drop the copies of batches that it does not know to have a receipt, when a session begins."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.acceptance.unsafe = lambda: ()  # type: ignore[method-assign]


class ReceiptBeforeCopy(RegionMachine):
    """Gives the receipt when the batch is on its own disk."""

    def _committed(self, operation: Operation, result: object, now: int) -> list[Effect]:
        if not isinstance(operation, Accept):
            return super()._committed(operation, result, now)
        assert isinstance(result, Accepted)
        pending = self.acceptance._pending.get(operation.key)
        effects = super()._committed(operation, result, now)
        if not result.known and pending is not None:
            effects += [Answer(token, result.spans) for token in pending.tokens]
        return effects


class NeverGivesWay(RegionMachine):
    """Has a batch in hand as long as somebody does not answer, also when another could accept it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        in_hand = self.acceptance._in_hand

        def insist(sender: str, claim: Claim) -> Known | None:
            if claim.key in self.acceptance._enquiries and self.name < sender and not claim.recovering:
                return Known.PENDING
            return in_hand(sender, claim)

        self.acceptance._in_hand = insist  # type: ignore[method-assign]


class _Hasty(StandbyRole):
    def obey(self, view: Any, name: str, epoch: int) -> list[Effect]:
        suspects = [v for v in view if v.name != name and v.standing.name == "SUSPECT"]
        early = [e for v in suspects for e in self.adopt(v.name, v.epoch + 1, epoch)]
        return [*early, *super().obey(view, name, epoch)]


class AdoptsFromSuspects(RegionMachine):
    """Does not wait until Fleet calls a region dead."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.own.standby = _Hasty(self.standby.fences, self.standby.held)


class ForgetsPromises(RegionMachine):
    """Adopts although it has promised not to."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.lease.may_adopt = lambda peer, now: True  # type: ignore[method-assign]
        self.lease.given_until = lambda peer: 0  # type: ignore[method-assign]


class KeepsStaleCopies(RegionMachine):
    """Returns with copies whose owner has another standby by now."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.choice.verdict = lambda peer, held, epoch: (Standby.KEEP, [])  # type: ignore[method-assign]


class AcceptsWithoutAsking(RegionMachine):
    """Takes a batch that the client gave to another region before."""

    def submit(
        self, token: int, key: bytes, payload: object, now: int, *, again: bool = False
    ) -> list[Effect]:
        self.acceptance._promises.clear()
        return super().submit(token, key, payload, now)


class LeavesTheDeadOpen(RegionMachine):
    """Tells a returning region what it owns before it has adopted from those whom that one does not ask."""

    def _asked_by(self, peer: str, ask: Ask, now: int) -> list[Effect]:
        return super()._asked_by(peer, replace(ask, dead=()), now)


class BeginsWithoutEnd(RegionMachine):
    """Begins an adoption and forgets it, because a promise forbids the next one."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        close = self.own.close

        def close_each(away: dict[str, int], now: int) -> list[Effect] | None:
            effects: list[Effect] = []
            for name, epoch in away.items():
                closing = close({name: epoch}, now)
                if closing is None:
                    return None
                effects += closing
            return effects

        self.own.close = close_each  # type: ignore[method-assign]


class SeesNoGap(RegionMachine):
    """Goes on with a session that it has lost, as if nothing of it had been acknowledged."""

    def receive(self, sender: str, message: Message, now: int) -> list[Effect]:
        if isinstance(message, Data):
            message = replace(message, base=0)
        return super().receive(sender, message, now)


class VouchesForCopies(RegionMachine):
    """Knows the key of a batch as soon as it has its copy, whether the owner has given a receipt or not."""

    def _out(self, effects: list[Effect], now: int) -> list[Effect]:
        return super()._out([_known(effect) for effect in effects], now)


def _known(effect: Effect) -> Effect:
    if isinstance(effect, Write) and isinstance(effect.operation, Apply):
        apply = effect.operation
        if isinstance(apply.entry, Copy):
            return Write(replace(apply, entry=replace(apply.entry, key=b"")))
    return effect


class KeepsKeysToItself(RegionMachine):
    """Does not pass on to its standby the keys that it has adopted."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.own.link.repeat_keys = lambda: None  # type: ignore[method-assign]


class OwesNoKeys(RegionMachine):
    """Does not tell its standby the keys of receipts that it has given while that was silent."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.own.link.owe_keys = lambda: None  # type: ignore[method-assign]


class LeavesAnAdoption(RegionMachine):
    """Does not go on with an adoption that was broken off."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        role = self.own.standby
        role.is_open = lambda owner, epoch: role.fences.get(owner, 0) < epoch  # type: ignore[method-assign]


class ChangesItsStandbyAtOnce(RegionMachine):
    """Takes another standby without having on disk that the one before is dead."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        choose, close = self.choice.choose, self.own.close

        def choose_at_once(now: int, fleet_at: int) -> list[Effect]:
            self.own.close, self.own.is_closed = lambda away, now: [], lambda away: True  # type: ignore[method-assign]
            effects = choose(now, fleet_at)
            self.own.close, self.own.is_closed = close, is_closed  # type: ignore[method-assign]
            return effects

        is_closed = self.own.is_closed
        self.choice.choose = choose_at_once  # type: ignore[method-assign]


class TrustsANewDisk(RegionMachine):
    """Believes that a region has sent nothing of its messages, although that one's disk was lost meanwhile."""

    def receive(self, sender: str, message: Message, now: int) -> list[Effect]:
        if isinstance(message, Told):
            message = replace(message, first=0)
        return super().receive(sender, message, now)


class KeepsAnOldSlot(RegionMachine):
    """Goes on returning in the slot of an earlier Fleet, when it has answered the next one."""

    def _beat(self, beat: Beat, now: int) -> list[Effect]:
        self._beat_seen = (beat.fleet, self._beat_seen[1] if beat.fleet == self._beat_seen[0] else -1)
        return super()._beat(beat, now)


class MovesWithMail(RegionMachine):
    """A shard changes its standby for a better one whatever it owns, and whatever the standby has."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        move, looked = self.choice.move, self.choice.looked

        def always(queued: Spans, unsafe: Spans) -> list[Effect]:
            self.own.link.held_nothing = True
            operations = [effect.operation for effect in move((), ()) if isinstance(effect, Write)]
            return [Write(replace(o, only_if_empty=False)) for o in operations if isinstance(o, SaveStandby)]

        self.choice.move = always  # type: ignore[method-assign]
        self.choice.looked = lambda is_empty, fleet_at: looked(True, fleet_at)  # type: ignore[method-assign]


class CountsByItsClock(RegionMachine):
    """Has the number of the time at which it started, whatever number Fleet has heard."""

    def _outnumber(self, life: int) -> list[Effect]:
        return []


class TimedFleet(FleetMachine):
    """Has the number of the time at which it started, whatever Fleet its regions have obeyed."""

    def _refused(self, book: Any, refusal: Behind, now: int) -> None:
        pass


class OutbiddingFleet(FleetMachine):
    """Takes a greater number whenever it hears of one, also when another has taken its place."""

    def _refused(self, book: Any, refusal: Behind, now: int) -> None:
        self._begin(number_above(refusal.newest, self._own), now)


class HasteFleet(FleetMachine):
    """Calls a region dead as soon as it is suspect: its lease may still run."""

    def _judge(self, book: Any, now: int) -> None:
        if now - book.heard_at >= self._timing.suspect:
            book.heard_at -= self._timing.expiry
        super()._judge(book, now)


class ForgetfulFleet(FleetMachine):
    """Starts, and gives leases without waiting for those of the Fleet before it."""

    def _try_ready(self, now: int) -> None:
        self._started = -(1 << 60)
        super()._try_ready(now)


class TrustingFleet(FleetMachine):
    """Believes a region that it is live, although who could say that it was called dead has not been heard."""

    def receive(self, region: str, reply: BeatReply, now: int) -> None:
        super().receive(region, replace(reply, unbroken=True), now)


class HastySlotFleet(FleetMachine):
    """Gives the slot to the next without knowing whether the one before has returned in it."""

    def _is_slot_free(self) -> bool:
        return True


class RepeatingFleet(FleetMachine):
    """Counts epochs from the highest that it hears of: who had a higher one may be away."""

    def __init__(self, *args: Any, first_epoch: int, **options: Any) -> None:
        super().__init__(*args, first_epoch=0, **options)

    def _learn(self, epoch: int) -> None:
        self._top = max(self._top, epoch)


class CrowdedFleet(FleetMachine):
    """Lets all regions return at once."""

    def _beat(self, book: Any, view: Any) -> Beat:
        self._slot = book.name
        return super()._beat(book, view)


MUTATIONS: dict[str, dict[str, Any]] = {
    "no-lease-check": {"machine": NoLeaseCheck},
    "no-fence": {"machine": NoFence},
    "keeps-no-copy": {"machine": KeepsNoCopy},
    "drops-what-is-unsafe": {"machine": DropsWhatIsUnsafe},
    "receipt-before-copy": {"machine": ReceiptBeforeCopy},
    "adopts-from-suspects": {"machine": AdoptsFromSuspects},
    "forgets-promises": {"machine": ForgetsPromises},
    "keeps-stale-copies": {"machine": KeepsStaleCopies},
    "accepts-without-asking": {"machine": AcceptsWithoutAsking},
    "leaves-the-dead-open": {"machine": LeavesTheDeadOpen},
    "begins-without-end": {"machine": BeginsWithoutEnd},
    "sees-no-gap": {"machine": SeesNoGap},
    "vouches-for-copies": {"machine": VouchesForCopies},
    "keeps-keys-to-itself": {"machine": KeepsKeysToItself},
    "owes-no-keys": {"machine": OwesNoKeys},
    "leaves-an-adoption": {"machine": LeavesAnAdoption},
    "changes-its-standby-at-once": {"machine": ChangesItsStandbyAtOnce},
    "trusts-a-new-disk": {"machine": TrustsANewDisk},
    "never-gives-way": {"machine": NeverGivesWay},
    "keeps-an-old-slot": {"machine": KeepsAnOldSlot},
    "moves-with-mail": {"machine": MovesWithMail, "shards": True},
    "counts-by-its-clock": {"machine": CountsByItsClock, "clocks": True},
    "haste-fleet": {"fleet": HasteFleet},
    "forgetful-fleet": {"fleet": ForgetfulFleet},
    "trusting-fleet": {"fleet": TrustingFleet},
    "hasty-slot-fleet": {"fleet": HastySlotFleet},
    "repeating-fleet": {"fleet": RepeatingFleet},
    "crowded-fleet": {"fleet": CrowdedFleet},
    "timed-fleet": {"fleet": TimedFleet, "clocks": True},
    "outbidding-fleet": {"fleet": OutbiddingFleet, "clocks": True},
}

"""Broken protocols: each leaves out one rule, and the simulation has to find it (test_simulation.py)."""

from typing import Any

from engine.failover.effects import Answer, Effect, Hold, Release
from engine.failover.fleet import FleetMachine
from engine.failover.messages import Beat
from engine.failover.region import RegionMachine
from engine.failover.spans import normal
from engine.failover.store import Accept, Accepted, Moved, Operation, SaveEpoch


class NoLeaseCheck(RegionMachine):
    """Dispatches whether its lease has run out or not."""

    def lease_until(self) -> int:
        return 1 << 62


class NoFenceOnReturn(RegionMachine):
    """Comes back with its new epoch and asks nobody what was adopted."""

    def _epoch_saved(self, operation: SaveEpoch) -> list[Effect]:
        return super()._epoch_saved(SaveEpoch(operation.epoch, frozenset()))

    def _beat(self, beat: Beat, now: int) -> list[Effect]:
        return super()._beat(Beat(beat.fleet, beat.life, beat.epoch, beat.stamp, (), beat.view), now)


class ReceiptBeforeCopy(RegionMachine):
    """Gives the receipt when the batch is on its own disk."""

    def _accepted(self, operation: Accept, result: Accepted, now: int) -> list[Effect]:
        effects = super()._accepted(operation, result, now)
        if not result.known:
            effects.append(Answer(operation.token, self.name, result.spans))
        return effects


class KeepsWhatMoved(RegionMachine):
    """Hears what a peer adopted, and goes on as before."""

    def committed(self, operation: Operation, result: object, now: int) -> list[Effect]:
        if isinstance(operation, Moved):
            operation = Moved(operation.peer, (), operation.session, operation.answered)
        return super().committed(operation, result, now)


class AdoptsWithoutWaiting(RegionMachine):
    """Obeys an order to adopt although it has promised not to, or has no lease of Fleet's any more."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.lease.may_adopt = lambda peer, now: True  # type: ignore[method-assign]


class DispatchesWhatIsHeld(RegionMachine):
    """Ignores what must wait for a peer's word."""

    def receive(self, sender: str, message: Any, now: int) -> list[Effect]:
        return _without_holds(super().receive(sender, message, now))

    def committed(self, operation: Operation, result: object, now: int) -> list[Effect]:
        effects = _without_holds(super().committed(operation, result, now))
        if isinstance(operation, SaveEpoch):
            effects.append(Release(normal(self.owner.batches.queued())))
        return effects


def _without_holds(effects: list[Effect]) -> list[Effect]:
    return [effect for effect in effects if not isinstance(effect, Hold)]


class HasteFleet(FleetMachine):
    """Calls a region dead as soon as it is suspect: its lease may still run."""

    def _judge(self, book: Any, now: int) -> None:
        if now - book.heard_at >= self._timing.suspect and book.standing.name != "DEAD":
            self._call_dead(book, now)


class ForgetfulFleet(FleetMachine):
    """Starts, and gives leases without waiting for those of the Fleet before it."""

    def _try_ready(self, now: int) -> None:
        self._started = -(1 << 60)
        super()._try_ready(now)


class CopiesTwice(RegionMachine):
    """Does not ask a peer again for a batch that it may have: copies it to another at once."""

    def tick(self, now: int) -> list[Effect]:
        for batch in self.owner.batches:
            if batch.place.name == "SENT" and now - batch.sent_at >= self._timing.resend:
                others = [peer for peer in self.owner.candidates(batch.key) if peer != batch.peer]
                if others:
                    batch.peer, batch.sent_at = others[0], 0
        return super().tick(now)


MUTATIONS: dict[str, dict[str, Any]] = {
    "no-lease-check": {"machine": NoLeaseCheck},
    "no-fence-on-return": {"machine": NoFenceOnReturn},
    "receipt-before-copy": {"machine": ReceiptBeforeCopy},
    "keeps-what-moved": {"machine": KeepsWhatMoved},
    "adopts-without-waiting": {"machine": AdoptsWithoutWaiting},
    "dispatches-what-is-held": {"machine": DispatchesWhatIsHeld},
    "haste-fleet": {"fleet": HasteFleet},
    "forgetful-fleet": {"fleet": ForgetfulFleet},
    "copy-to-another-at-once": {"machine": CopiesTwice},
}

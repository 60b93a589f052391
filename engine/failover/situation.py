"""What a region knows of itself and of the others: the ground on which the parts of its machine decide.

The parts (acceptance.py, standby_choice.py, returning.py, and region.py, which joins them) share one Situation.
"""

from dataclasses import dataclass

from engine.failover.effects import Effect, Write
from engine.failover.lease import Lease
from engine.failover.link import Link
from engine.failover.messages import AWAY, RegionView
from engine.failover.standby import StandbyRole
from engine.failover.store import Durable, Inspect, LookUp, OpenSession, Operation, SaveClean, SaveUnasked
from engine.failover.timing import Timing

Question = LookUp | Inspect | OpenSession


@dataclass(slots=True)
class Counters:
    """For status and metrics."""

    adopted: int = 0
    given_up: int = 0
    degraded: int = 0
    returns: int = 0


class Writes:
    """Operations that were given to the store and are not on its disk yet."""

    def __init__(self) -> None:
        self._open: list[tuple[int, Operation]] = []  # since when
        self._questions: set[Question] = set()  # those of them that peers ask
        self._done_at = -1  # when the store has done something last

    def admit(self, effects: list[Effect], now: int) -> list[Effect]:
        """Watch what is given to the store. A question that a peer has repeated goes there once: its answer is on its
        way, and so many of them, each for as long as the others take, would be what the store is busy with."""
        admitted: list[Effect] = []
        for effect in effects:
            if isinstance(effect, Write):
                operation = effect.operation
                if isinstance(operation, Question):
                    if operation in self._questions:
                        continue
                    self._questions.add(operation)
                self._open.append((now, operation))
            admitted.append(effect)
        return admitted

    def done(self, operation: Operation, now: int = -1) -> None:
        """It is on disk at that time, or was refused (-1)."""
        self._done_at = max(self._done_at, now)
        if isinstance(operation, Question):
            self._questions.discard(operation)
        for index, (_, written) in enumerate(self._open):
            if written is operation:
                del self._open[index]
                return

    def is_returning(self) -> bool:
        """Whether a return is on its way to the disk."""
        return any(isinstance(operation, SaveClean) for _, operation in self._open)

    def is_stalled(self, age: int, now: int) -> bool:
        """Whether the store has had something to do for so long and has done nothing. One that gets on under its load
        is not stalled, however long that takes: to call the region dead would give others more to do, and it, too."""
        return bool(self._open) and now - max(self._open[0][0], self._done_at) > age


class Situation:
    """See the module docstring. Epochs, and what is told to peers, are those that are on disk."""

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
        self.peers = peers
        self.siblings = siblings  # those of the peers that are shards of the same region
        self.life = incarnation
        self.new_life = 0  # on its way to the disk
        self.timing = timing
        self.accept_local = accept_local
        self.epoch = durable.epoch
        self.new_epoch = 0  # on its way to the disk
        self.clean = durable.clean
        self.first = durable.first
        self.lived = durable.lived
        self.view: tuple[RegionView, ...] = ()
        self.view_of = -1  # the Fleet that said so
        self.fleet = -1  # the Fleet that was answered last: it knows what was fenced here until then
        self.orders_from = 0  # its epochs are greater
        self._heard_epoch = 0  # the greatest that a Fleet has spoken of
        self.asked = dict(durable.asked)  # peers that have asked us on their return, by their epoch
        # by name, their epoch: what they have of ours from an earlier disk is not known here
        self.unasked = {peer: epoch for peer, epoch in durable.unasked if peer in peers}
        self.standby_name = durable.standby
        self.lease = Lease(peers, now=now, timing=timing)
        self.link = Link(timing, life=incarnation)
        self.standby = StandbyRole(dict(durable.fences), dict(durable.held), durable.unfinished)
        self.writes = Writes()
        self.counters = Counters()

    def see(self, view: tuple[RegionView, ...], fleet: int) -> list[Effect]:
        """What Fleet says now. Who could not be asked what stood on an earlier disk of ours, and has returned, is asked
        like all; and when its own standby knows it, too, it is not the only one to know. Until then this region does
        not vouch for it: others may not know yet that it is on its way back."""
        self.view, self.view_of = view, fleet
        standings = self.standings()
        told = [name for name in self.unasked if self._is_back(name) and standings[name].covered]
        for name in told:
            del self.unasked[name]
        if not told:
            return []
        return [Write(SaveUnasked(tuple(self.unasked.items())))]  # it would be believed again after a restart

    def heard(self, *epochs: int) -> None:
        """A Fleet has spoken of these."""
        self._heard_epoch = max(self._heard_epoch, *epochs)

    def known_epoch(self) -> int:
        """The greatest that this region has heard of. A Fleet that begins must give greater ones, whatever its clock
        says, and who could tell which there have been may be away."""
        return max(self._heard_epoch, self.epoch, self.new_epoch, *self.standby.fences.values(), 0)

    def _is_back(self, name: str) -> bool:
        """Whether one of `unasked` has returned since."""
        view = self.standings().get(name)
        return view is not None and view.standing not in AWAY and view.epoch >= self.unasked[name]

    def unheard(self) -> list[str]:
        """Those of `unasked` that have not returned: who asks here for a key may not ask them."""
        return [name for name in self.unasked if not self._is_back(name)]

    def is_live(self) -> bool:
        """Whether this region has returned, as far as it knows."""
        return self.clean and not self.new_epoch

    def standings(self) -> dict[str, RegionView]:
        return {v.name: v for v in self.view if v.name != self.name}

    def is_over(self, name: str, epoch: int) -> bool:
        """Whether Fleet has given this peer a later epoch. The fence may say so already; but a new disk has none, and
        takes nothing from anybody before it has heard."""
        view = self.standings().get(name)
        return view.epoch > epoch if view is not None else not self.first

    def away(self) -> tuple[tuple[str, int], ...]:
        """Peers that cannot have accepted anything lately: who is on its way back has asked us before it does."""
        return tuple(
            (n, v.epoch)
            for n, v in self.standings().items()
            if v.standing in AWAY and self.asked.get(n, -1) < v.epoch
        )

    def is_away(self, name: str) -> bool:
        """Whether Fleet calls it dead, or on its way back."""
        view = self.standings().get(name)
        return view is not None and view.standing in AWAY

    def present(self) -> list[str]:
        """Peers that may be live; all of them before the first view."""
        away = {name for name, _ in self.away()}
        return [peer for peer in self.peers if peer not in away]

    def is_unsure(self) -> bool:
        """Whether a batch may have been accepted that no live region knows of: more than one's word is out of reach."""
        away = dict(self.away())
        return len(away) > 1 or not away.keys().isdisjoint(self.unasked)

    def is_covered(self, now: int) -> bool:
        """Whether a copy that is sent now may be expected to be safe soon."""
        return self.link.is_usable(now) and self.standby_name in self.present()

    def has_told_all(self) -> bool:
        """Whether the standby knows all that stands on this disk, except for batches without a receipt."""
        return self.is_live() and self.link.has_told() and not self.standby.is_adopting()

    def may_be_alone(self) -> bool:
        """Whether something that has a receipt may be on this disk only."""
        return self.accept_local and not self.link.is_caught_up()

    def has_orders(self) -> bool:
        """Whether the view is an order still. A new Fleet that was told here that somebody is not fenced may find it
        live: what the one before has said is not acted on any more, nor what peers know from there."""
        return self.view_of == self.fleet

    def is_order(self, name: str, epoch: int) -> bool:
        """Whether this Fleet calls it away in that epoch, whoever says so, or in a later one."""
        view = self.standings().get(name)
        is_seen = self.has_orders() and view is not None and view.standing in AWAY and view.epoch >= epoch
        return is_seen or epoch > self.orders_from

    def close(self, away: dict[str, int], now: int) -> list[Effect] | None:
        """Take nothing more from these under an older epoch; None if that is the order of an earlier Fleet, or if a
        promise of ours forbids it still."""
        open_ = {
            name: epoch
            for name, epoch in away.items()
            if self.standby.is_open(name, epoch) and not self._has_returned(name, epoch)
        }
        if not all(self.lease.may_adopt(n, now) and self.is_order(n, e) for n, e in open_.items()):
            return None
        return [e for name, epoch in open_.items() for e in self.standby.adopt(name, epoch, self.epoch)]

    def is_closed(self, away: dict[str, int]) -> bool:
        """Whether `close` is done for these, on disk."""
        return all(
            max(self.standby.closed.get(name, 0), self.asked.get(name, 0)) >= epoch
            or self._has_returned(name, epoch)
            for name, epoch in away.items()
        )

    def _has_returned(self, name: str, epoch: int) -> bool:
        """Who says that it is dead is late: it has returned in that epoch since, and what it owns is its own."""
        view = self.standings().get(name)
        return view is not None and view.standing not in AWAY and view.epoch >= epoch

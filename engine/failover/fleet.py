"""Fleet's part: it beats, gives leases and epochs, calls regions dead, and lets them return one after the other.

It keeps nothing on disk. A region is called dead only when every lease that it may have been given has run out; that
raises its epoch, and the view that goes out with the next beats tells its standby to adopt. When it has the epoch on
disk it is RETURNING. One region at a time has the slot, a lease under which it asks the live ones what they own of its
messages: so of two regions that return, the second finds the first live, and asks it.

A Fleet that starts knows nothing. It gives no lease until each region has answered it (and so obeys no earlier Fleet
any more), or the leases of an earlier Fleet have run out. Regions that it has not heard by then are dead to it. One of
them, or one that has lost its disk, may be the only one to know that the Fleet before had called another dead, and may
have adopted and sent what that one still has. So who cannot rule that out, because its own lease had ended, returns.

Its clock may have been set back since the one before began. Regions obey the Fleet with the greatest number, and tell
any other which that is, and the greatest epoch that they have heard of. A Fleet that is not ready then takes a greater
number, and begins anew. One that was ready, or that the region had obeyed, has been superseded and ends: so of two that
run the earlier one ends, and they do not outbid each other. One that was frozen for as long as a lease begins anew as
well: another may have given leases meanwhile, even one that has a smaller number.
"""

from dataclasses import dataclass

from engine.failover.messages import NO_ORDERS, Beat, BeatReply, Behind, RegionView, Standing
from engine.failover.timing import Timing


@dataclass(slots=True)
class Book:
    """What Fleet knows of one region."""

    name: str
    heard_at: int = -1  # time of the latest answer, -1 for never
    life: int = 0  # of the region's process
    stamp: int = -1  # the region's own clock in the latest answer
    epoch: int = 0  # the epoch it should have
    reported: int = -1  # the epoch it has on disk
    clean: bool = False
    unbroken: bool = False
    fresh: bool = False
    covered: bool = False
    standing: Standing = Standing.DEAD
    live_since: int = 0
    waiting_since: int = 0


@dataclass(frozen=True, slots=True)
class Transition:
    """For events and drills: a region's standing changed. Times are of Fleet's clock."""

    at: int
    region: str
    standing: Standing
    epoch: int


TRANSITIONS_KEPT = 1000
EPOCHS_BITS = 18
OWN_BITS = 32  # 4 s, in nanoseconds


def first_epoch_at(wall_ns: int) -> int:
    """For a Fleet that starts then: room for 262,144 deaths per tenth of a second, and exact in JSON until 2079."""
    return (wall_ns // 100_000_000) << EPOCHS_BITS


def first_epoch_above(epoch: int) -> int:
    """For a Fleet that hears of an epoch of another one: room for 262,144 deaths that it has not heard of."""
    return ((epoch >> EPOCHS_BITS) + 2) << EPOCHS_BITS


def number_above(number: int, own: int) -> int:
    """For a Fleet that began with the number `own`, when another has a greater one. No two Fleets take the same: they
    began at different nanoseconds."""
    return ((number >> OWN_BITS) + 1) << OWN_BITS | own & (1 << OWN_BITS) - 1


class FleetMachine:
    """See the module docstring. `incarnation` should grow with every start of Fleet, and no two may have the same.

    Its epochs are greater than `first_epoch`, which should be greater than any that a Fleet before it may have given:
    who could tell which those were may be away (`first_epoch_at`).
    """

    def __init__(
        self, regions: tuple[str, ...], *, incarnation: int, now: int, timing: Timing, first_epoch: int
    ) -> None:
        self._own = incarnation
        self._regions = regions
        self._timing = timing
        self._top = self._first_epoch = first_epoch
        self.is_superseded = False  # another Fleet is obeyed: this one says nothing any more
        self._was_obeyed = False  # before it was frozen
        self._ticked_at = now
        self.transitions: list[Transition] = []
        self._changes: list[Transition] = []
        self._begin(incarnation, now)

    def _begin(self, incarnation: int, now: int) -> None:
        """It knows nothing, and has given no order: epochs that it gave before it was frozen are none of its own."""
        self.incarnation = incarnation
        self._first_epoch = self._top
        self._books = {name: Book(name) for name in self._regions}
        self._started = now
        self._first_heard_at = -1
        self._ready = False
        self._next_beat = now
        self._number = 0
        self._fences: dict[str, int] = {}
        self._slot = ""
        self._slot_since = 0
        # whom a slot's lease was given last: name, epoch, life, and its own clock from which that counts
        self._slot_lease: tuple[str, int, int, int] | None = None

    @property
    def ready(self) -> bool:
        return self._ready

    def view(self, now: int) -> tuple[RegionView, ...]:
        return tuple(
            RegionView(book.name, book.standing, book.epoch, self._weight(book, now), book.covered)
            for book in self._books.values()
        )

    def _weight(self, book: Book, now: int) -> int:
        if book.standing is not Standing.LIVE:
            return 0
        return min(100, 10 + 90 * (now - book.live_since) // self._timing.ramp)

    def _new_epoch(self) -> int:
        self._top += 1
        return self._top

    def _set(self, book: Book, standing: Standing, now: int) -> None:
        if book.standing is not standing:
            book.standing = standing
            self._note(now, book)

    def _note(self, now: int, book: Book) -> None:
        transition = Transition(now, book.name, book.standing, book.epoch)
        self._changes.append(transition)
        self.transitions.append(transition)
        del self.transitions[:-TRANSITIONS_KEPT]

    def take_changes(self) -> list[Transition]:
        """Those since this was asked last."""
        changes, self._changes = self._changes, []
        return changes

    # -- time

    def tick(self, now: int) -> list[tuple[str, Beat]]:
        """Judge, and beat if it is time; returns what to send to whom."""
        if self.is_superseded:
            return []
        if now - self._ticked_at >= self._timing.expiry:
            self._was_obeyed |= self._is_obeyed()
            self._begin(
                self.incarnation + 1, now
            )  # what it is told from now on is no answer to what it said before
        self._ticked_at = now
        if not self._ready:
            self._try_ready(now)
        if self._ready:
            for book in self._books.values():
                self._judge(book, now)
            self._move_slot(now)
        if now < self._next_beat:
            return []
        self._next_beat = max(self._next_beat + self._timing.beat, now + self._timing.beat // 2)
        self._number += 1
        view = self.view(now) if self._ready else ()
        return [(book.name, self._beat(book, view)) for book in self._books.values()]

    def _beat(self, book: Book, view: tuple[RegionView, ...]) -> Beat:
        has_slot = self._slot == book.name and book.standing is Standing.RETURNING
        granted = (
            self._ready
            and book.reported == book.epoch
            and (book.standing in (Standing.LIVE, Standing.SUSPECT) or has_slot)
        )
        if has_slot and granted:
            self._slot_lease = (book.name, book.epoch, book.life, book.stamp)
        return Beat(
            self.incarnation,
            self._number,
            book.life,
            book.epoch if self._ready else 0,
            book.stamp if granted else -1,
            has_slot,
            view,
            self._first_epoch if self._ready else NO_ORDERS,
        )

    def _judge(self, book: Book, now: int) -> None:
        if book.standing is Standing.DEAD:
            return
        silence = now - book.heard_at
        if silence >= self._timing.expiry:
            book.epoch = self._new_epoch()
            book.stamp = -1
            self._set(book, Standing.DEAD, now)
        elif silence >= self._timing.suspect and book.standing is Standing.LIVE:
            self._set(book, Standing.SUSPECT, now)

    def _move_slot(self, now: int) -> None:
        """Give the slot to the region that waits longest; from one that does not get on, when it can use it no more."""
        waiting = [book for book in self._books.values() if book.standing is Standing.RETURNING]
        if self._slot:
            holder = self._books[self._slot]
            if holder.standing is Standing.RETURNING:
                if now - self._slot_since < self._timing.slot or len(waiting) < 2:
                    return
                holder.waiting_since = now
                self._slot = ""
        if waiting and self._is_slot_free():
            chosen = min(waiting, key=lambda book: book.waiting_since)
            self._slot, self._slot_since = chosen.name, now

    def _is_slot_free(self) -> bool:
        """Whether who had it last has returned, or has said after its lease that it has not, or must begin again.

        The end of the lease is not enough: it may have returned in its last moment, and not been heard since.
        """
        if self._slot_lease is None:
            return True
        name, epoch, life, stamp = self._slot_lease
        book = self._books[name]
        if book.epoch != epoch or book.standing is not Standing.RETURNING or book.life != life:
            return True
        return book.stamp >= stamp + self._timing.lease

    def _is_obeyed(self) -> bool:
        return any(book.heard_at >= 0 for book in self._books.values())

    def _try_ready(self, now: int) -> None:
        heard = [book for book in self._books.values() if book.heard_at >= 0]
        if not heard:
            return
        if self._first_heard_at < 0:
            self._first_heard_at = now
        if len(heard) < len(self._books):
            if now - self._started < self._timing.expiry:
                return
            if not any(book.unbroken for book in heard) and now - self._first_heard_at < self._timing.gather:
                return  # they have all stopped, or go on by promises; who comes in time has not to return
        is_in_doubt = len(heard) < len(self._books) or any(book.fresh for book in heard)
        self._ready = True  # no lease of an earlier Fleet runs any more
        for book in self._books.values():
            if book.heard_at < 0:
                book.epoch = self._new_epoch()
                self._note(now, book)
            elif self._is_superseded(book) or (is_in_doubt and book.clean and not book.unbroken):
                self._supersede(book, now)
            else:
                book.epoch = book.reported
                book.live_since = now - self._timing.ramp
                self._stand(book, now)

    def _is_superseded(self, book: Book) -> bool:
        return book.reported == 0 or self._fences.get(book.name, 0) > book.reported

    def _supersede(self, book: Book, now: int) -> None:
        """A region that answers, but whose epoch is over: it gets another one, and has to return."""
        book.epoch = self._new_epoch()
        book.waiting_since = now
        self._set(book, Standing.RETURNING, now)

    def _stand(self, book: Book, now: int) -> None:
        """The region has its epoch on disk."""
        if book.clean:
            if book.standing in (Standing.DEAD, Standing.RETURNING):
                book.live_since = max(book.live_since, now)
            if self._slot == book.name:
                self._slot = ""
            self._set(book, Standing.LIVE, now)
        elif book.standing is not Standing.RETURNING:
            book.waiting_since = now
            self._set(book, Standing.RETURNING, now)

    # -- answers

    def _learn(self, epoch: int) -> None:
        """An epoch that this Fleet has not given is of another: it gives greater ones from now on, and those up to
        there are not its orders."""
        if epoch > self._top:
            self._top = self._first_epoch = first_epoch_above(epoch)

    def _refused(self, book: Book, refusal: Behind, now: int) -> None:
        """A region has obeyed a Fleet with a greater number."""
        if self._was_obeyed or self._ready or book.heard_at >= 0:
            self.is_superseded = True
            return
        self._begin(number_above(refusal.newest, self._own), now)

    def receive(self, region: str, reply: BeatReply | Behind, now: int) -> None:
        """Take a region's answer to one of this Fleet's own beats."""
        book = self._books.get(region)
        if book is None or reply.fleet != self.incarnation:
            return
        if isinstance(reply, Behind):
            self._learn(reply.known)
            self._refused(book, reply, now)
            return
        self._learn(max(reply.known, reply.epoch, *(epoch for _, epoch in reply.fences)))
        for name, epoch in reply.fences:
            self._fences[name] = max(self._fences.get(name, 0), epoch)
        if (reply.life, reply.clock) < (book.life, book.stamp):
            return  # overtaken by a later one
        is_new_disk = reply.epoch < book.reported or (
            reply.epoch == book.reported and book.clean > reply.clean
        )
        book.life = reply.life
        book.heard_at = now
        book.reported = reply.epoch
        book.clean = reply.clean
        book.unbroken = reply.unbroken
        book.fresh = reply.fresh
        book.covered = reply.covered
        book.stamp = reply.clock
        if not self._ready:
            return
        for other in self._books.values():
            if self._fences.get(other.name, 0) > other.epoch:  # an earlier Fleet's order, learnt only now
                if other.standing is Standing.DEAD:
                    other.epoch = self._new_epoch()
                else:
                    self._supersede(other, now)
        if reply.epoch > book.epoch or is_new_disk:  # given by an earlier Fleet; it had more on disk than now
            self._supersede(book, now)
        if reply.epoch == book.epoch:
            self._stand(book, now)

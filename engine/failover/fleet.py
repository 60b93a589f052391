"""Fleet's part: it beats, gives leases and epochs, and calls regions dead. It keeps nothing on disk.

A region is called dead only when every lease that it may have been given has run out; that raises its epoch, and the
view that goes out with the next beats tells the others to adopt its copies. When it answers again it is told that
epoch, together with the names of those who may have adopted from it; once it has both on disk, it is live.

A Fleet that starts knows nothing. It gives no lease until each region has answered it (and so obeys no earlier Fleet
any more), or the leases of an earlier Fleet have run out. Regions that it has not heard by then are dead to it, and
may have adopted from any other: the others are told to ask them.
"""

from dataclasses import dataclass

from engine.failover.messages import Beat, BeatReply, RegionView, Standing
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
    standing: Standing = Standing.SUSPECT
    asks: tuple[str, ...] = ()
    live_since: int = 0


@dataclass(frozen=True, slots=True)
class Transition:
    """For events and drills: a region's standing changed. Times are of Fleet's clock."""

    at: int
    region: str
    standing: Standing
    epoch: int


class FleetMachine:
    """See the module docstring. `incarnation` must grow with every start of Fleet."""

    def __init__(self, regions: tuple[str, ...], *, incarnation: int, now: int, timing: Timing) -> None:
        self.incarnation = incarnation
        self._timing = timing
        self._books = {name: Book(name) for name in regions}
        self._started = now
        self._ready = False
        self._next_beat = now
        self._fences: dict[str, int] = {}
        self._top = 0
        self.transitions: list[Transition] = []

    def view(self, now: int) -> tuple[RegionView, ...]:
        return tuple(
            RegionView(book.name, book.standing, book.epoch, self._weight(book, now))
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
            self.transitions.append(Transition(now, book.name, standing, book.epoch))

    # -- time

    def tick(self, now: int) -> list[tuple[str, Beat]]:
        """Judge, and beat if it is time; returns what to send to whom."""
        if not self._ready:
            self._try_ready(now)
        else:
            for book in self._books.values():
                self._judge(book, now)
        if now < self._next_beat:
            return []
        self._next_beat = max(self._next_beat + self._timing.beat, now + self._timing.beat // 2)
        view = self.view(now) if self._ready else ()
        return [(book.name, self._beat(book, view)) for book in self._books.values()]

    def _beat(self, book: Book, view: tuple[RegionView, ...]) -> Beat:
        granted = self._ready and book.reported == book.epoch and book.standing is not Standing.DEAD
        return Beat(
            self.incarnation,
            book.life,
            book.epoch if self._ready else 0,
            book.stamp if granted else -1,
            book.asks,
            view,
        )

    def _judge(self, book: Book, now: int) -> None:
        if book.standing is Standing.DEAD:
            return
        silence = now - book.heard_at
        if silence >= self._timing.expiry:
            self._call_dead(book, now)
        elif silence >= self._timing.suspect:
            self._set(book, Standing.SUSPECT, now)

    def _call_dead(self, book: Book, now: int) -> None:
        book.epoch = self._new_epoch()
        others = (b.name for b in self._books.values() if b is not book and b.standing is not Standing.DEAD)
        book.asks = tuple(sorted({*book.asks, *others}))
        book.stamp = -1
        self._set(book, Standing.DEAD, now)

    def _try_ready(self, now: int) -> None:
        heard = [book for book in self._books.values() if book.heard_at >= 0]
        if len(heard) < len(self._books) and now - self._started < self._timing.expiry:
            return
        if not heard:
            return
        self._ready = True
        unheard = tuple(sorted(book.name for book in self._books.values() if book.heard_at < 0))
        for book in self._books.values():
            others = tuple(sorted(name for name in self._books if name != book.name))
            if book.heard_at < 0:
                book.epoch = self._new_epoch()
                book.asks = tuple(name for name in others if name not in unheard)
                self._set(book, Standing.DEAD, now)
                continue
            superseded = self._fences.get(book.name, 0) > book.reported
            if book.reported == 0 or superseded or unheard:
                book.epoch = self._new_epoch()
                book.asks = others if superseded else unheard
            else:
                book.epoch = book.reported
            book.live_since = now - self._timing.ramp
            if now - book.heard_at < self._timing.suspect:
                self._set(book, Standing.LIVE, now)

    # -- answers

    def receive(self, region: str, reply: BeatReply, now: int) -> None:
        """Take a region's answer to one of this Fleet's own beats."""
        book = self._books.get(region)
        if book is None or reply.fleet != self.incarnation:
            return
        self._top = max(self._top, reply.epoch, *(epoch for _, epoch in reply.fences))
        for name, epoch in reply.fences:
            self._fences[name] = max(self._fences.get(name, 0), epoch)
        if (reply.life, reply.clock) < (book.life, book.stamp):
            return  # overtaken by a later one
        book.life = reply.life
        book.heard_at = now
        book.reported = reply.epoch
        book.stamp = reply.clock
        if not self._ready:
            return
        for other in self._books.values():
            if self._fences.get(other.name, 0) > other.epoch:  # an earlier Fleet's order, learnt only now
                other.epoch = self._new_epoch()
                other.asks = tuple(sorted(name for name in self._books if name != other.name))
        if reply.epoch == book.epoch:
            book.asks = ()
            if book.standing is Standing.DEAD:
                book.live_since = now
            self._set(book, Standing.LIVE, now)

"""A region without copies, on a spool that has kept some: it sends nothing before Fleet says that all may.

Where that is written down, and what it rests on: engine/spool/rest.py. What it leaves behind here: copies of others'
messages, which nobody is to adopt once their owners send without telling, and batches that wait for a copy.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from engine.failover.spans import Spans, pieces
from engine.failover.store import DropCopies, Mark, Queued, Release, TakeQueued
from engine.region.awaiting import awaited
from engine.region.leaving import Rest
from engine.spool.errors import CopiesInDoubt
from engine.spool.store import Spool

MARKED_AT_ONCE = 2000


class Resting:
    """See the module docstring. `numbers`: those of the regions, by name. CopiesInDoubt: not without copies yet."""

    def __init__(
        self,
        *,
        name: str,
        numbers: Mapping[str, int],
        spool: Spool,
        offer: Callable[[Sequence[bytes]], None],
        wake: Callable[[], None],
    ) -> None:
        self._numbers = numbers
        self._spool = spool
        self._offer = offer
        self._wake = wake
        rest = spool.rest()
        if rest == 0:
            raise CopiesInDoubt(name)
        self.number = rest or 0  # of the stop in order, 0: it waits for nobody
        self._copies: tuple[tuple[str, int], ...] | None = None  # not counted
        self._going = asyncio.Lock()  # Fleet asks again if the answer is late

    def rest(self) -> Rest:
        """What Fleet judges by."""
        if self.number and self._copies is None:  # nobody sends any more of them
            self._copies = tuple(sorted(self._spool.copies(self._numbers).items()))
        return Rest(self.number, self._spool.has_kept_copies(), self._copies or ())

    async def drop_copies(self) -> None:
        """Before any region goes on alone: so nothing that one of them sends can be adopted by another."""
        async with self._going:
            if not self.number:
                return
            self._copies = None
            for future in drop_copies(self._spool, self._numbers):
                await awaited(future)

    async def begin_alone(self) -> None:
        """Every region has dropped its copies: what is here is this region's, and goes out."""
        async with self._going:
            if not self.number:
                return
            for future in release_all(self._spool, self._numbers):
                self._offer(await awaited(future) or ())
            await awaited(self._spool.begin_alone())
            self.number = 0
        self._wake()


def drop_copies(spool: Spool, numbers: Mapping[str, int]) -> Iterator["Future[Any]"]:
    """Each future is to be waited for before the next is taken."""
    for owner in numbers:
        more = True
        while more:
            dropping = spool.failover(DropCopies(owner), numbers)
            yield dropping
            more = bool(dropping.result())


def release_all(spool: Spool, numbers: Mapping[str, int]) -> Iterator["Future[Any]"]:
    """Batches that have no receipt yet are due, as their copies will never be safe: who asks again gets a receipt for
    them. Marked, for another region may have been given them meanwhile. Results as of Mark and Release."""
    for key, spans in spool.durable(numbers).unsafe:
        yield from _mark(spool, numbers, spans)
        yield spool.failover(Release(key, spans), numbers)


def mark_all(spool: Spool, numbers: Mapping[str, int]) -> Iterator["Future[Any]"]:
    """All that is queued may have been sent by another region."""
    after = -1
    while True:
        listing = spool.failover(TakeQueued(unsafe=True, tag=0, after=after), numbers)
        yield listing
        part: Queued = listing.result()
        yield from _mark(spool, numbers, part.spans)
        if part.last < 0:
            return
        after = part.last


def _mark(spool: Spool, numbers: Mapping[str, int], spans: Spans) -> Iterator["Future[Any]"]:
    for piece in pieces(spans, MARKED_AT_ONCE):
        yield spool.failover(Mark(piece), numbers)

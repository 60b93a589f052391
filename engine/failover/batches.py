"""An owner's queued messages in batches, and where each batch's copy is. In memory; the store has the messages.

A batch is a run of ids that share a fate: their copy is at one peer, or nowhere, or it is not known where. It stays a
run although single ids of it are settled; those are in `gone`.
"""

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from engine.failover.spans import Spans, normal, of_ids, subtract

LONGEST = 1024


class Place(IntEnum):
    NOWHERE = 1
    SENT = 2  # to `peer`, not answered
    PLACED = 3  # at `peer`
    UNKNOWN = 4  # this region has restarted, or was called dead: a peer may have a copy, or own it by now


@dataclass(slots=True)
class Batch:
    first: int
    count: int
    place: Place
    peer: str = ""
    key: bytes = b""
    payload: bytes = b""
    guarded: bool = False  # no receipt was given yet
    tokens: list[int] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)
    sent_at: int = 0
    held: bool = False
    handing: bool = False
    busy: bool = False  # the store is working on it

    @property
    def span(self) -> tuple[int, int]:
        return (self.first, self.count)

    @property
    def orphan(self) -> bool:
        """Accepted, but no receipt was given, and nobody waits for it."""
        return self.guarded and not self.tokens

    def left(self) -> Spans:
        """What is still queued of it."""
        return subtract((self.span,), of_ids(self.gone)) if self.gone else (self.span,)


class Batches:
    """All batches of an owner, in the order of their ids."""

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._by_first: dict[int, Batch] = {}

    def __iter__(self) -> Iterator[Batch]:
        return iter(list(self._by_first.values()))

    def __len__(self) -> int:
        return len(self._firsts)

    def add(self, batch: Batch) -> Batch:
        insort(self._firsts, batch.first)
        self._by_first[batch.first] = batch
        return batch

    def add_runs(self, spans: Iterable[Sequence[int]], place: Place) -> list[Batch]:
        """Runs found on disk, in pieces of a bounded length."""
        made = []
        for first, count in normal(spans):
            for start in range(first, first + count, LONGEST):
                made.append(self.add(Batch(start, min(LONGEST, first + count - start), place)))
        return made

    def guarded(self, key: bytes) -> Batch | None:
        """The batch of a key whose receipt was not given yet."""
        for batch in self._by_first.values():
            if batch.guarded and batch.key == key:
                return batch
        return None

    def get(self, first: int) -> Batch | None:
        return self._by_first.get(first)

    def remove(self, batch: Batch) -> None:
        del self._by_first[batch.first]
        del self._firsts[bisect_right(self._firsts, batch.first) - 1]

    def find(self, id_: int) -> Batch | None:
        """The batch that an id is in."""
        position = bisect_right(self._firsts, id_) - 1
        if position < 0:
            return None
        batch = self._by_first[self._firsts[position]]
        return batch if id_ < batch.first + batch.count else None

    def settle(self, id_: int) -> Batch | None:
        """An id is queued no longer; returns its batch, which is forgotten with its last id."""
        batch = self.find(id_)
        if batch is None or id_ in batch.gone:
            return None
        batch.gone.add(id_)
        if len(batch.gone) == batch.count:
            self.remove(batch)
        return batch

    def cut(self, spans: Iterable[Sequence[int]]) -> list[Batch]:
        """Split batches so that some of them are exactly what is queued in `spans`; returns those."""
        found = []
        for first, count in normal(spans):
            position = max(0, bisect_right(self._firsts, first) - 1)
            touched = []
            while position < len(self._firsts) and self._firsts[position] < first + count:
                batch = self._by_first[self._firsts[position]]
                if batch.first + batch.count > first:
                    touched.append(batch)
                position += 1
            for batch in touched:
                piece = self._split(batch, first, first + count)
                if len(piece.gone) < piece.count:
                    found.append(piece)
        return found

    def _split(self, batch: Batch, start: int, end: int) -> Batch:
        """The part of the batch within [start, end); what is outside becomes batches of its own."""
        start, end = max(start, batch.first), min(end, batch.first + batch.count)
        if (start, end) == (batch.first, batch.first + batch.count):
            return batch
        self.remove(batch)
        parts = []
        for low, high in ((batch.first, start), (start, end), (end, batch.first + batch.count)):
            if low == high:
                continue
            part = Batch(
                low,
                high - low,
                batch.place,
                batch.peer,
                batch.key,
                batch.payload,
                batch.guarded,
                list(batch.tokens),
                {id_ for id_ in batch.gone if low <= id_ < high},
                batch.sent_at,
                batch.held,
                batch.handing,
            )
            if len(part.gone) < part.count or low == start:
                parts.append(part)
        for part in parts:
            if len(part.gone) < part.count:
                self.add(part)
        return next(part for part in parts if part.first == start)

    def queued(self) -> Spans:
        return normal(span for batch in self._by_first.values() for span in batch.left())

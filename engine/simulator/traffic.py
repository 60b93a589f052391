"""The mail of a simulation: counts that wait, and message ids only for what is in a scheduler.

An id says how often its message was tried, the minute in which it was accepted, and a serial number, so that a
message needs no object anywhere. What waits is counted by (attempts, minute of acceptance).
"""

import heapq
from array import array
from collections import deque
from dataclasses import dataclass, field

MINUTE_MS = 60_000
SERIAL_BITS = 36
MINUTE_BITS = 20
ATTEMPTS_SHIFT = SERIAL_BITS + MINUTE_BITS
MINUTE_MASK = (1 << MINUTE_BITS) - 1
MAX_ATTEMPTS = 250
DAY_S = 86_400.0
HOUR_S = 3_600.0


def attempts_of(id_: int) -> int:
    return id_ >> ATTEMPTS_SHIFT


def minute_of(id_: int) -> int:
    return id_ >> SERIAL_BITS & MINUTE_MASK


def due_keys(first: int, count: int, queue: int, due_ms: int) -> bytes:
    """The due keys of ids in a row: queue u32, due_ms u48, id u64, big endian. Column by column, because a loop over
    messages would cost more than all the rest of the simulation."""
    ids = array("Q", range(first, first + count))
    ids.byteswap()
    columns = ids.tobytes()
    keys = bytearray((queue.to_bytes(4, "big") + due_ms.to_bytes(6, "big") + bytes(8)) * count)
    for column in range(8):
        keys[10 + column :: 18] = columns[column::8]
    return bytes(keys)


@dataclass(slots=True)
class Chunk:
    """Messages that are alike, in the order of their ids."""

    attempts: int
    minute: int
    count: int


@dataclass(slots=True)
class Flow:
    """The mail of one kind for one site in one region. `number` is the scheduler's, given anew at each start."""

    traffic: int
    site: str
    queue: int
    number: int = -1
    site_number: int = -1
    waiting: deque[Chunk] = field(default_factory=deque)
    retries: list[tuple[int, int, int, int]] = field(default_factory=list)  # due_ms, attempts, minute, count
    loaded: deque[tuple[int, int]] = field(default_factory=deque)  # (first id, count), oldest first
    loaded_count: int = 0  # ids in `loaded`
    granted: int = 0  # decisions of the scheduler
    depth: int = 0  # all that waits: in `waiting`, in `retries`, in the scheduler

    def arrive(self, count: int, minute: int, attempts: int = 0) -> None:
        """New messages, or such that another region had."""
        last = self.waiting[-1] if self.waiting else None
        if last is not None and (last.attempts, last.minute) == (attempts, minute):
            last.count += count
        else:
            self.waiting.append(Chunk(attempts, minute, count))
        self.depth += count

    def retry(self, due_ms: int, attempts: int, minute: int, count: int) -> None:
        """Messages that were deferred; `depth` has them still."""
        heapq.heappush(self.retries, (due_ms, min(attempts, MAX_ATTEMPTS), minute, count))

    def due(self, now_ms: int) -> None:
        """Retries whose time has come go first."""
        while self.retries and self.retries[0][0] <= now_ms:
            _, attempts, minute, count = heapq.heappop(self.retries)
            first = self.waiting[0] if self.waiting else None
            if first is not None and (first.attempts, first.minute) == (attempts, minute):
                first.count += count
            else:
                self.waiting.appendleft(Chunk(attempts, minute, count))

    def take(self, count: int, serial: int, now_ms: int) -> tuple[bytes, int]:
        """Due keys of up to `count` waiting messages, numbered from `serial`, and how many they are."""
        keys = []
        taken = 0
        while self.waiting and taken < count:
            chunk = self.waiting[0]
            size = min(chunk.count, count - taken)
            first = chunk.attempts << ATTEMPTS_SHIFT | chunk.minute << SERIAL_BITS | (serial + taken)
            keys.append(due_keys(first, size, self.queue, now_ms))
            self.loaded.append((first, size))
            self.loaded_count += size
            taken += size
            chunk.count -= size
            if not chunk.count:
                self.waiting.popleft()
        return b"".join(keys), taken

    def forget_loaded(self, ready: int) -> None:
        """Keep the ranges that hold the `ready` ids which are still in the scheduler: ids leave in about the order in
        which they came, so the oldest ranges are empty when the newer ones hold that many."""
        while self.loaded and self.loaded_count >= ready + 3 * self.loaded[0][1]:
            self.loaded_count -= self.loaded.popleft()[1]

    def forget_all_loaded(self) -> None:
        """The scheduler is gone."""
        self.loaded.clear()
        self.loaded_count = 0


class Arrivals:
    """How much of a traffic has arrived by a time: exact, whatever the steps of the clock are."""

    def __init__(self, per_day: int, weights: tuple[float, ...], begins_s: float, ends_s: float) -> None:
        total = sum(weights)
        self._hours = [per_day * weight / total for weight in weights]
        self._before = [sum(self._hours[:hour]) for hour in range(25)]
        self._begins_s = begins_s
        self._ends_s = ends_s
        self._offset = self._volume(begins_s)

    def _volume(self, at_s: float) -> float:
        day, rest = divmod(at_s, DAY_S)
        hour = int(rest // HOUR_S)
        return (
            day * self._before[24] + self._before[hour] + self._hours[hour] * (rest - hour * HOUR_S) / HOUR_S
        )

    def by(self, at_s: float) -> int:
        at_s = min(max(at_s, self._begins_s), self._ends_s)
        return int(self._volume(at_s) - self._offset + 1e-6)


class Split:
    """Whole messages to several places by weight: what rounding leaves goes to whoever is owed most."""

    def __init__(self, weights: list[float]) -> None:
        self._weights = weights
        self._owed = [0.0] * len(weights)

    def of(self, count: int, usable: list[bool]) -> list[int]:
        weights = [weight if ok else 0.0 for weight, ok in zip(self._weights, usable, strict=True)]
        total = sum(weights)
        if not count or total <= 0:
            return [0] * len(weights)
        exact = [owed + count * weight / total for owed, weight in zip(self._owed, weights, strict=True)]
        counts = [max(0, int(part)) if ok else 0 for part, ok in zip(exact, usable, strict=True)]
        order = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
        missing = count - sum(counts)
        ranked = [i for i in order if usable[i] and self._weights[i] > 0]
        for turn in range(abs(missing)):
            place = ranked[turn % len(ranked)] if missing > 0 else ranked[-1 - turn % len(ranked)]
            counts[place] += 1 if missing > 0 else -1
        self._owed = [part - number for part, number in zip(exact, counts, strict=True)]
        return counts

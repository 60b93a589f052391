"""Which spool queues wait for room in memory, and which of them is read from disk next.

The queues that feed one flow of the scheduler stand in one line, and the lines of a pool take turns. Within a line the
queues of a campaign go by their oldest message, so that a campaign's mail to a provider leaves in the order in which it
was accepted, whatever the domains, to within `TOGETHER_MS`; other queues take turns, so that a domain with much mail
does not keep the others waiting.
"""

import heapq
from collections import deque
from typing import Generic, Protocol, TypeVar

TOGETHER_MS = 2_000  # what was accepted within this time is read in one go
FAR_MS = 1 << 47


class Waiting(Protocol):
    """A spool queue of engine/region/windows.py. `head_ms`: its oldest message that is not in memory is not older."""

    campaign: str
    flow: int
    pool: int
    head_ms: int


Queue = TypeVar("Queue", bound=Waiting)


class Line(Generic[Queue]):
    """See the module docstring."""

    __slots__ = ("_heap", "_turn", "flow")

    def __init__(self, flow: int) -> None:
        self.flow = flow
        self._heap: list[tuple[int, int, Queue]] = []
        self._turn = 0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, queue: Queue) -> None:
        self._turn += 1
        rank = queue.head_ms if queue.campaign else self._turn
        heapq.heappush(self._heap, (rank, self._turn, queue))

    def head_ms(self) -> int:
        """Nothing of the queue that is next is older."""
        return self._heap[0][2].head_ms

    def pop(self) -> tuple[Queue, int]:
        """The next queue, and until which due time it is its turn."""
        _, _, queue = heapq.heappop(self._heap)
        if not queue.campaign or not self._heap:
            return queue, FAR_MS
        return queue, self._heap[0][0] + TOGETHER_MS


class Refills(Generic[Queue]):
    """See the module docstring."""

    def __init__(self) -> None:
        self._lines: dict[int, Line[Queue]] = {}
        self._pools: dict[int, deque[Line[Queue]]] = {}

    def __len__(self) -> int:
        """How many queues wait."""
        return sum(map(len, self._lines.values()))

    def flows(self) -> list[int]:
        """Those with queues that wait."""
        return list(self._lines)

    def has_line(self, flow: int) -> bool:
        """Whether a queue that feeds the flow waits."""
        return flow in self._lines

    def head_ms(self, flow: int) -> int | None:
        """Nothing of the queue that is read next for the flow is older; None if none waits."""
        line = self._lines.get(flow)
        return line.head_ms() if line else None

    def add(self, queue: Queue) -> None:
        line = self._lines.get(queue.flow)
        if line is None:
            line = self._lines[queue.flow] = Line(queue.flow)
            self._pools.setdefault(queue.pool, deque()).append(line)
        line.add(queue)

    def lines(self, pool: int) -> int:
        """How many lines a pool has."""
        return len(self._pools.get(pool, ()))

    def take_turn(self, pool: int) -> Line[Queue]:
        """The line whose turn it is; it goes to the end. There has to be one."""
        lines = self._pools[pool]
        line = lines[0]
        lines.rotate(-1)
        return line

    def end_turn(self, pool: int, line: Line[Queue]) -> None:
        """Forget the line that had the last turn if no queue is left in it."""
        if not line:
            self._pools[pool].pop()
            del self._lines[line.flow]

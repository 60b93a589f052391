"""What a region counts of its mail while it goes by, for metrics: by stream and provider, since the region's start.

Counted is what is on disk: accepted when the receipt is safe, an outcome when it is settled. A batch costs a pass over
its messages; the sums are read when somebody asks. The provider of mail that has no route is `unknown`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from engine.metrics.bounding import UNKNOWN
from engine.metrics.catalogue import Point
from engine.spool.batches import Settlement
from engine.values.outcome import OutcomeKind
from engine.values.stream import Stream


class FlowTally:
    """See the module docstring. `place_of`: the stream and the pool (-1: none yet) of a due key's queue; `provider`: a
    pool's name."""

    def __init__(
        self, *, place_of: Callable[[bytes], tuple[int, int]], provider: Callable[[int], str]
    ) -> None:
        self._place_of = place_of
        self._provider = provider
        self._accepted: Counter[int] = Counter()
        self._outcomes: Counter[tuple[int, int, OutcomeKind]] = Counter()
        self._attempts: Counter[int] = Counter()

    def accepted(self, due_keys: Iterable[bytes]) -> None:
        """Receipts were given for these."""
        for queue, count in Counter(key[:4] for key in due_keys).items():
            self._accepted[self._place_of(queue)[0]] += count

    def settled(self, settlements: Iterable[Settlement]) -> None:
        """These are on disk."""
        by_queue = Counter((one.due_key[:4], one.outcome.kind) for one in settlements)
        for (queue, kind), count in by_queue.items():
            if kind is not OutcomeKind.RETURNED:
                self._outcomes[(*self._place_of(queue), kind)] += count

    def attempted(self, by_pool: Mapping[int, int]) -> None:
        """Pools have reported so many attempts."""
        self._attempts.update(by_pool)

    def points(self) -> list[Point]:
        return [
            *(
                Point("sendfleet.messages.accepted", (str(Stream(stream)),), count)
                for stream, count in self._accepted.items()
            ),
            *(
                Point("sendfleet.outcomes", (str(Stream(stream)), self._name(pool), str(kind)), count)
                for (stream, pool, kind), count in self._outcomes.items()
            ),
            *(
                Point("sendfleet.attempts", (self._name(pool),), count)
                for pool, count in self._attempts.items()
            ),
        ]

    def _name(self, pool: int) -> str:
        return self._provider(pool) if pool >= 0 else UNKNOWN

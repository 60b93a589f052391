"""One look at a region, beside those before it: values now, and by how much counters have risen."""

import itertools
from collections import deque
from collections.abc import Iterable, Sequence

from engine.metrics.catalogue import CATALOGUE, Kind, Point

MAX_LOOKS = 1000  # that are remembered for one window
LOOKED_BACK_AT = frozenset(  # over a window, by rules
    {"sendfleet.outcomes", "sendfleet.tls.sessions", "sendfleet.failover.degraded"}
)

Labels = tuple[str, ...]
Counters = dict[tuple[str, Labels], float]


class Look:
    """`span_s`: time since the look before, 0 if there is none, or the region did not answer then."""

    def __init__(
        self, points: Iterable[Point], at_s: float, history: Sequence[tuple[float, Counters]]
    ) -> None:
        self._rows: dict[str, list[tuple[Labels, float]]] = {}
        for point in points:
            self._rows.setdefault(point.metric, []).append((point.labels, point.value))
        self._at_s = at_s
        self._history = history
        self.has_before = bool(history)
        self.span_s = at_s - history[-1][0] if history else 0.0

    def rows(self, metric: str) -> list[tuple[Labels, float]]:
        return self._rows.get(metric, [])

    def value(self, metric: str) -> float:
        """Of a metric without labels; 0 if nobody has told it."""
        return sum(value for _, value in self.rows(metric))

    def increases(self, metric: str, window_s: float = 0.0) -> list[tuple[Labels, float]]:
        """By how much its counters have risen since the last look, or within the window. One that is smaller than
        before has begun anew in the meantime. Nothing without a look before; within a window only what is in
        `LOOKED_BACK_AT`."""
        assert not window_s or metric in LOOKED_BACK_AT
        if not self._history:
            return []
        earlier = self._history if window_s else ()
        steps = [counters for at_s, counters in earlier if self._at_s - at_s <= window_s]
        steps = steps or [self._history[-1][1]]  # the last look counts, however long ago it was
        found = []
        for labels, value in self.rows(metric):
            key = metric, labels
            known = [step[key] for step in steps if key in step] or [0.0]  # or it is new
            pairs = itertools.pairwise([*known, value])
            found.append((labels, sum(now - before if now >= before else now for before, now in pairs)))
        return found


class History:
    """The counters of a region's looks within a time; those to which it did not answer are left out.

    All counters are those of the last look; of earlier ones only what rules look back at: a large fleet has thousands
    of others (sessions by source and provider), and as many looks in a window.
    """

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._looks: deque[tuple[float, Counters]] = deque(maxlen=MAX_LOOKS + 1)

    def look(self, points: Sequence[Point], at_s: float) -> Look:
        look = Look(points, at_s, list(self._looks))
        if look.value("sendfleet.region.up"):
            if self._looks:
                before_s, before = self._looks.pop()
                kept = {key: value for key, value in before.items() if key[0] in LOOKED_BACK_AT}
                self._looks.append((before_s, kept))
            self._looks.append((at_s, self._counters(points)))
        while len(self._looks) > 1 and at_s - self._looks[0][0] > self._window_s:
            self._looks.popleft()
        return look

    def _counters(self, points: Iterable[Point]) -> Counters:
        known = (
            {key: key for key in self._looks[-1][1]} if self._looks else {}
        )  # the same names, not equal ones
        found: Counters = {}
        for point in points:
            if CATALOGUE[point.metric].kind is Kind.COUNTER:
                key = point.metric, point.labels
                found[known.get(key, key)] = point.value
        return found

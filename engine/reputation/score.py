"""Scores from 0 to 100, from time-decayed counts.

Each window halves its counts every half-life; a window with too few attempts says nothing; of the others the worst
score counts. Deliverability fails slowly and recovers slowly, so a short window alone would forgive too soon and a
long one alone would notice too late.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engine.config.reputation import Metric, MetricsConfig, ReputationConfig, ScoreWindow
from engine.reputation.allowance import SiteCounts

FIELDS = ("delivered", "deferred", "bounced", "blocked", "complaints", "tls_failures", "excused")
DELIVERED, DEFERRED, BOUNCED, BLOCKED, COMPLAINTS, TLS, EXCUSED = range(len(FIELDS))
BEST = 100
_Z = 1.645  # one in twenty is wrong by chance (normal distribution, one-sided)


@dataclass(frozen=True, slots=True)
class Score:
    """`value` 0 to 100, and what costs most. Not `judged`: too few attempts, the value is the best one."""

    value: int
    judged: bool
    reason: str


UNJUDGED = Score(BEST, False, "too few attempts to judge")


def vector(counts: SiteCounts) -> tuple[float, ...]:
    return tuple(float(getattr(counts, field)) for field in FIELDS)


class Decayed:
    """Counts of so many kinds in several windows, each of which forgets half after its half-life."""

    __slots__ = ("_at_ms", "_rows", "_width", "_windows")

    def __init__(self, windows: Sequence[ScoreWindow], width: int) -> None:
        self._windows = windows
        self._width = width
        self._at_ms = 0
        self._rows = [[0.0] * width for _ in windows]

    def add(self, at_ms: int, counts: Sequence[float]) -> None:
        """Count what happened at `at_ms`; before the last time nothing fades, but from there on it does."""
        self._decay(at_ms)
        for row in self._rows:
            for index, count in enumerate(counts):
                row[index] += count

    def _decay(self, at_ms: int) -> None:
        passed_ms = at_ms - self._at_ms
        self._at_ms = at_ms
        if passed_ms <= 0:  # the clock was set back
            return
        for window, row in zip(self._windows, self._rows, strict=True):
            factor = 0.5 ** (passed_ms / 1000 / window.half_life)
            for index in range(len(row)):
                row[index] *= factor

    def clear(self) -> None:
        self._rows = [[0.0] * self._width for _ in self._windows]

    def rows(self, at_ms: int) -> Iterator[tuple[ScoreWindow, Sequence[float]]]:
        """The counts of each window as they are at `at_ms`."""
        self._decay(at_ms)
        return zip(self._windows, self._rows, strict=True)

    def to_state(self) -> list[object]:
        return [self._at_ms, [list(row) for row in self._rows]]

    def load(self, state: Sequence[object]) -> None:
        """What `to_state` gave. Counts of a configuration with other windows begin anew."""
        at_ms, rows = state
        if isinstance(rows, list) and len(rows) == len(self._rows) and isinstance(at_ms, int):
            self._at_ms = at_ms
            self._rows = [[float(value) for value in row] for row in rows]


class Counts:
    """The counts of one source, at a site or of the whole, in every window of the configuration."""

    __slots__ = ("_config", "_decayed")

    def __init__(self, config: ReputationConfig) -> None:
        self._config = config
        self._decayed = Decayed(config.windows, len(FIELDS))

    def add(self, at_ms: int, counts: Sequence[float]) -> None:
        """As `Decayed.add`."""
        self._decayed.add(at_ms, counts)

    def clear(self) -> None:
        self._decayed.clear()

    def score(self, at_ms: int) -> Score:
        """The worst score of the windows that can be judged."""
        metrics = self._config.metrics
        return worst_of([judge(row, window.minimum, metrics) for window, row in self._decayed.rows(at_ms)])

    def to_state(self) -> list[object]:
        return self._decayed.to_state()

    @classmethod
    def from_state(cls, config: ReputationConfig, state: Sequence[object]) -> "Counts":
        """Counts of a configuration with other windows begin anew."""
        counts = cls(config)
        counts._decayed.load(state)
        return counts


def worst_of(scores: Sequence[Score]) -> Score:
    """The worst of those that are judged."""
    judged = [score for score in scores if score.judged]
    return min(judged, key=lambda score: score.value) if judged else UNJUDGED


def attempts_of(counts: Sequence[float]) -> float:
    """A complaint is no attempt, a block is one of the deferrals or bounces, a TLS failure is a deferral. What is
    excused costs nothing, but it is an attempt: at a greylisting site the bounces come before the deliveries."""
    return counts[DELIVERED] + counts[DEFERRED] + counts[BOUNCED] + counts[EXCUSED]


def judge(counts: Sequence[float], minimum: float, metrics: MetricsConfig) -> Score:
    """The score of plain counts; `minimum` attempts at least."""
    attempts = attempts_of(counts)
    # a decayed count never quite is what was counted: half an attempt less is enough
    if attempts < minimum - 0.5 or attempts <= 0:
        return UNJUDGED
    # a blocked attempt is also a deferral or a bounce: it costs once
    deferred = counts[DEFERRED] - counts[BLOCKED] - counts[TLS]
    bounced = at_least(counts[BOUNCED] / attempts, attempts) if counts[BOUNCED] > 0 else 0.0
    delivered = counts[DELIVERED]
    complaints = counts[COMPLAINTS] / delivered if delivered > 0 else 0.0
    return weigh(
        ("hard bounces", metrics.bounces, bounced),
        ("blocks", metrics.blocks, counts[BLOCKED] / attempts),
        ("complaints", metrics.complaints, complaints),
        ("deferrals", metrics.deferrals, deferred / attempts),
        ("TLS failures", metrics.tls, counts[TLS] / attempts),
    )


def weigh(*rows: tuple[str, Metric, float]) -> Score:
    """The score of shares: (name, what the share costs, the share)."""
    total = 0.0
    worst = 0.0
    reason = "nothing to object to"
    for name, metric, share in rows:
        if share <= metric.good:
            continue
        cost = (min(1.0, share) - metric.good) / (metric.bad - metric.good)
        points = min(1.0, cost) * metric.points
        total += points
        if points > worst:
            worst = points
            reason = f"{name} at {min(1.0, share):.2%}"
    return Score(max(0, round(BEST - total)), True, reason)


def at_least(share: float, attempts: float) -> float:
    """The smallest true share that `share` of so many attempts speaks for: the lower end of Wilson's interval.

    Which addresses of a list are bad is chance, so among the first fifty of a good list there may well be five; a
    block speaks for itself.
    """
    if attempts <= 0:
        return 0.0
    square = _Z * _Z / attempts
    centre = share + square / 2
    margin = _Z * math.sqrt((share * (1 - share) + square / 4) / attempts)
    return max(0.0, (centre - margin) / (1 + square))

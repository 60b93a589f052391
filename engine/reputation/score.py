"""Scores from 0 to 100, from time-decayed counts.

Each window halves its counts every half-life; a window with too few attempts says nothing; of the others the worst
score counts. Deliverability fails slowly and recovers slowly, so a short window alone would forgive too soon and a
long one alone would notice too late.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from engine.config.reputation import MetricsConfig, ReputationConfig
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


class Counts:
    """The counts of one thing that is scored, in every window of the configuration."""

    __slots__ = ("_at_ms", "_config", "_rows")

    def __init__(self, config: ReputationConfig) -> None:
        self._config = config
        self._at_ms = 0
        self._rows = [[0.0] * len(FIELDS) for _ in config.windows]

    def add(self, at_ms: int, counts: Sequence[float]) -> None:
        """Count what happened at `at_ms`; a time before the last one counts as the last one."""
        self._decay(at_ms)
        for row in self._rows:
            for index, count in enumerate(counts):
                row[index] += count

    def _decay(self, at_ms: int) -> None:
        passed_ms = at_ms - self._at_ms
        if passed_ms <= 0:
            return
        for window, row in zip(self._config.windows, self._rows, strict=True):
            factor = 0.5 ** (passed_ms / 1000 / window.half_life)
            for index in range(len(row)):
                row[index] *= factor
        self._at_ms = at_ms

    def clear(self) -> None:
        for row in self._rows:
            row[:] = [0.0] * len(row)

    def score(self, at_ms: int) -> Score:
        """The worst score of the windows that can be judged."""
        self._decay(at_ms)
        scores = []
        for window, row in zip(self._config.windows, self._rows, strict=True):
            scores.append(judge(row, window.minimum, self._config.metrics))
        judged = [score for score in scores if score.judged]
        return min(judged, key=lambda score: score.value) if judged else UNJUDGED

    def to_state(self) -> list[object]:
        return [self._at_ms, [list(row) for row in self._rows]]

    @classmethod
    def from_state(cls, config: ReputationConfig, state: Sequence[object]) -> "Counts":
        """Counts of a configuration with other windows begin anew."""
        counts = cls(config)
        at_ms, rows = state
        if isinstance(rows, list) and len(rows) == len(counts._rows) and isinstance(at_ms, int):
            counts._at_ms = at_ms
            counts._rows = [[float(value) for value in row] for row in rows]
        return counts


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
    rows = (
        ("hard bounces", metrics.bounces, bounced),
        ("blocks", metrics.blocks, counts[BLOCKED] / attempts),
        ("complaints", metrics.complaints, complaints),
        ("deferrals", metrics.deferrals, deferred / attempts),
        ("TLS failures", metrics.tls, counts[TLS] / attempts),
    )
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

"""The state of one source at one site (or of the whole source), and the way from state to state.

    warming | active <-> degraded -> removed -> probation (trickle, then the steps of a ramp) -> active
                                        ^------------'

A removal lasts `removed_stay` at least, doubled with each removal in a row. Nothing leaves the state removed before
that, and only what has returned can be removed again: so within any minimum stay there is at most one removal and
one return, whatever the replies do. Removal forgets the counts: a source in probation is judged by what it does
there, not by what it was removed for. Pure: time and scores are arguments.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from engine.config.reputation import ReputationConfig
from engine.reputation.score import BEST, FIELDS, Counts, Score, attempts_of, judge

FULL = 1000
FAILED_PROBATION = "probation"


class State(StrEnum):
    """Of a source at a site."""

    ACTIVE = "active"
    WARMING = "warming"
    DEGRADED = "degraded"
    REMOVED = "removed"
    PROBATION = "probation"


@dataclass(frozen=True, slots=True)
class Transition:
    """A change of state, for the events. `site` "" is the whole source."""

    at_ms: int
    site: str
    before: State
    after: State
    score: int
    reason: str


@dataclass(frozen=True, slots=True)
class Share:
    """What a state allows: `permille` of the full rate, `interval_ms` between messages at least (0: no trickle)."""

    permille: int
    interval_ms: int


class Standing:
    """See the module docstring."""

    __slots__ = (
        "_config",
        "_step_counts",
        "counts",
        "reason",
        "removed_ms",
        "score",
        "since_ms",
        "site",
        "state",
        "stay_ms",
        "step",
        "step_ms",
        "strikes",
    )

    def __init__(self, config: ReputationConfig, site: str) -> None:
        self._config = config
        self.site = site
        self.state = State.ACTIVE
        self.since_ms = 0
        self.reason = ""
        self.score = BEST
        self.counts = Counts(config)
        self.strikes = 0
        self.removed_ms = 0  # when it was removed last
        self.stay_ms = 0  # of the last removal
        self.step = 0  # of the probation: 0 is the trickle
        self.step_ms = 0
        self._step_counts = [0.0] * len(FIELDS)

    def observe(self, now_ms: int, counts: Sequence[float]) -> None:
        """Count what happened; `advance` draws the conclusions."""
        if self.state is State.REMOVED:
            return  # late answers to what was under way: they were the reason already
        self.counts.add(now_ms, counts)
        if self.state is State.PROBATION:
            for index, count in enumerate(counts):
                self._step_counts[index] += count

    def advance(self, now_ms: int, *, warming: bool) -> Transition | None:
        """The transition that is due now, if there is one. `warming`: a warm-up is under way."""
        config = self._config
        # what lies ahead was written before the clock was set back: it begins now
        self.since_ms = min(self.since_ms, now_ms)
        self.removed_ms = min(self.removed_ms, now_ms)
        self.step_ms = min(self.step_ms, now_ms)
        if self.state is State.REMOVED:
            if now_ms < self.removed_ms + self.stay_ms:
                return None
            self.counts.clear()
            self._begin_step(now_ms, 0)
            return self._enter(now_ms, State.PROBATION, "the minimum stay is over: probes")
        score = self.counts.score(now_ms)
        self.score = score.value
        if self.state is State.PROBATION:
            return self._advance_probation(now_ms)
        if score.judged and score.value < config.removed_below:
            return self._remove(now_ms, score.reason)
        normal = State.WARMING if warming else State.ACTIVE
        if score.judged and score.value < config.degraded_below and self.state is not State.DEGRADED:
            return self._enter(now_ms, State.DEGRADED, score.reason)
        if self.state is State.DEGRADED:
            stayed = now_ms - self.since_ms >= config.degraded_stay * 1000
            if stayed and score.value >= config.degraded_below + config.hysteresis:
                return self._enter(now_ms, normal, "the score has recovered")
            return None
        if self.strikes and now_ms - self.since_ms >= config.forgive * 1000:
            self.strikes -= 1
            self.since_ms = now_ms
        if self.state is not normal:
            return self._enter(now_ms, normal, "warm-up" if warming else "warm-up is over")
        return None

    def remove(self, now_ms: int, reason: str, *, stay_ms: int = 0) -> Transition | None:
        """Out of the rotation by order: a listing, or a reply that says so. `stay_ms`: at least so long."""
        if self.state is State.REMOVED:
            return None
        return self._remove(now_ms, reason, stay_ms)

    def release(self, now_ms: int) -> bool:
        """An operator ends a removal before its time: `advance` begins the probation now. False if there is none."""
        if self.state is not State.REMOVED:
            return False
        self.stay_ms = max(0, now_ms - self.removed_ms)
        return True

    def _remove(self, now_ms: int, reason: str, stay_ms: int = 0) -> Transition:
        config = self._config
        doubled = config.removed_stay * 1000 * 2 ** min(self.strikes, 16)
        self.stay_ms = max(round(min(doubled, config.removed_stay_max * 1000)), stay_ms)
        self.strikes = min(self.strikes + 1, 16)
        self.removed_ms = now_ms
        return self._enter(now_ms, State.REMOVED, reason)

    def _advance_probation(self, now_ms: int) -> Transition | None:
        probation = self._config.probation
        found = judge(self._step_counts, probation.probes, self._config.metrics)
        if self._fails(found):
            return self._remove(now_ms, f"{FAILED_PROBATION}: {found.reason}")
        stay_s = probation.stay if self.step == 0 else probation.step
        if not found.judged or now_ms - self.step_ms < stay_s * 1000:
            return None
        if found.value < self._config.degraded_below:
            self._begin_step(now_ms, self.step)  # not bad enough to go, not good enough for more
            return None
        if self.step < len(probation.ramp):
            self._begin_step(now_ms, self.step + 1)
            return Transition(
                now_ms, self.site, State.PROBATION, State.PROBATION, found.value, f"ramp, step {self.step}"
            )
        return self._enter(now_ms, State.ACTIVE, "probation passed")

    def _fails(self, found: Score) -> bool:
        """Removed again: by a full set of probes, or as soon as not even perfect further ones could help."""
        if found.judged:
            return found.value < self._config.removed_below
        missing = self._config.probation.probes - attempts_of(self._step_counts)
        hoped = list(self._step_counts)
        hoped[0] += max(0.0, missing)
        best = judge(hoped, 0, self._config.metrics)
        return best.judged and best.value < self._config.removed_below

    def _begin_step(self, now_ms: int, step: int) -> None:
        self.step = step
        self.step_ms = now_ms
        self._step_counts = [0.0] * len(FIELDS)

    def _enter(self, now_ms: int, state: State, reason: str) -> Transition:
        transition = Transition(now_ms, self.site, self.state, state, self.score, reason[:256])
        self.state = state
        self.since_ms = now_ms
        self.reason = reason[:256]
        return transition

    def share(self) -> Share:
        """What the state allows."""
        config = self._config
        if self.state is State.REMOVED:
            return Share(0, 0)
        if self.state is State.DEGRADED:
            span = config.degraded_below - config.removed_below
            above = max(0, min(span, self.score - config.removed_below))
            return Share(max(FULL // 10, FULL * above // span), 0)
        if self.state is State.PROBATION:
            if self.step == 0:
                return Share(FULL, round(config.probation.interval * 1000))
            return Share(max(1, round(FULL * config.probation.ramp[self.step - 1])), 0)
        return Share(FULL, 0)

    def review_ms(self) -> int:
        """A time at which `advance` may do something without an attempt; 0 if there is none."""
        if self.state is State.REMOVED:
            return self.removed_ms + self.stay_ms
        if self.state is State.DEGRADED:
            return self.since_ms + round(self._config.degraded_stay * 1000)
        return 0

    def to_state(self) -> list[object]:
        return [
            str(self.state),
            self.since_ms,
            self.reason,
            self.score,
            self.strikes,
            self.removed_ms,
            self.stay_ms,
            self.step,
            self.step_ms,
            list(self._step_counts),
            self.counts.to_state(),
        ]

    @classmethod
    def from_state(cls, config: ReputationConfig, site: str, state: Sequence[object]) -> "Standing":
        """`state` is what `to_state` gave. A step that the configuration no longer has becomes its last."""
        standing = cls(config, site)
        values = list(state)
        standing.state = State(str(values[0]))
        (
            standing.since_ms,
            standing.reason,
            standing.score,
            standing.strikes,
            standing.removed_ms,
            standing.stay_ms,
            step,
            standing.step_ms,
            step_counts,
            counts,
        ) = values[1:]  # type: ignore[assignment]
        standing.step = min(int(step), len(config.probation.ramp))  # type: ignore[call-overload]
        standing._step_counts = list(step_counts)  # type: ignore[call-overload]
        standing.counts = Counts.from_state(config, counts)  # type: ignore[arg-type]
        return standing

"""What one tenant has earned by its own mail: new, good or poor.

    new -> good: enough attempts, long enough, a good score        new | good -> poor: a bad score
    poor -> new: after the minimum stay, by good mail over the pool apart; it proves itself again

Counted is what the tenant causes itself: recipients that do not exist, complaints, refusals of its content or its
domain, blocks of a source that only it uses. What a shared source meets says nothing about one of those who share it.
Pure: time is an argument. The statistics are those of the sources (engine/reputation/score.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.config.quality import QualityConfig
from engine.reputation.score import BEST, UNJUDGED, Decayed, Score, at_least, weigh, worst_of
from engine.values.quality import Quality

KINDS = ("delivered", "bounced", "refused", "complaints")
DELIVERED, BOUNCED, REFUSED, COMPLAINTS = range(len(KINDS))
MAX_STRIKES = 16
MAX_REASON = 256


@dataclass(frozen=True, slots=True)
class Change:
    """A tenant changes its class."""

    at_ms: int
    tenant: str
    before: Quality
    after: Quality
    score: int
    reason: str


class TenantStanding:
    """See the module docstring."""

    __slots__ = (
        "_config",
        "attempts",
        "counts",
        "quality",
        "reason",
        "score",
        "since_ms",
        "stay_ms",
        "strikes",
        "tenant",
    )

    def __init__(self, config: QualityConfig, tenant: str, now_ms: int) -> None:
        self._config = config
        self.tenant = tenant
        self.quality = Quality.NEW
        self.since_ms = now_ms
        self.reason = "not known yet"
        self.score = BEST
        self.attempts = 0.0  # since it is in its class
        self.strikes = 0
        self.stay_ms = 0  # of the present stay in the class poor
        self.counts = Decayed(config.windows, len(KINDS))

    def observe(self, now_ms: int, counts: Sequence[float]) -> None:
        """Counts in the order of `KINDS`; `advance` draws the conclusions."""
        self.counts.add(now_ms, counts)
        self.attempts += counts[DELIVERED] + counts[BOUNCED] + counts[REFUSED]

    def judge(self, now_ms: int) -> Score:
        longest = max(window.half_life for window in self._config.windows)
        found = []
        for window, row in self.counts.rows(now_ms):
            attempts = row[DELIVERED] + row[BOUNCED] + row[REFUSED]
            if attempts < window.minimum - 0.5:
                found.append(UNJUDGED)
                continue
            metrics = self._config.metrics
            shares = [
                ("hard bounces", metrics.bounces, _share(row[BOUNCED], attempts)),
                ("refusals", metrics.refusals, _share(row[REFUSED], attempts)),
            ]
            if window.half_life == longest:
                shares.append(("complaints", metrics.complaints, _share(row[COMPLAINTS], row[DELIVERED])))
            found.append(weigh(*shares))
        return worst_of(found)

    def advance(self, now_ms: int) -> Change | None:
        """The change that is due now, if there is one."""
        config = self._config
        self.since_ms = min(self.since_ms, now_ms)  # the clock was set back
        found = self.judge(now_ms)
        self.score = found.value
        is_fine = found.value >= config.poor_below + config.hysteresis
        stayed_ms = now_ms - self.since_ms
        if self.quality is Quality.POOR:
            # silence proves nothing: what it still has to send may be what it was moved for
            has_proof = found.judged and self.attempts >= config.windows[-1].minimum
            if stayed_ms >= self.stay_ms and has_proof and is_fine:
                return self._enter(
                    now_ms, Quality.NEW, "the minimum stay is over and the score has recovered"
                )
            return None
        if found.judged and found.value < config.poor_below:
            return self._fall(now_ms, found.reason)
        if self.quality is Quality.NEW:
            proven = self.attempts >= config.proven and stayed_ms >= config.proven_after * 1000
            if proven and found.judged and is_fine:
                return self._enter(now_ms, Quality.GOOD, f"{self.attempts:.0f} attempts: {found.reason}")
        elif self.strikes and stayed_ms >= config.forgive * 1000:
            self.strikes -= 1
            self.since_ms = now_ms
        return None

    def condemn(self, now_ms: int, reason: str) -> Change | None:
        """A provider has removed a source that only this tenant uses: there is no need to count."""
        return None if self.quality is Quality.POOR else self._fall(now_ms, reason)

    def order(self, now_ms: int, quality: Quality, reason: str) -> Change | None:
        """An operator says what the tenant is; from there it goes on as if it had earned it."""
        if quality is self.quality:
            return None
        if quality is Quality.POOR:
            return self._fall(now_ms, reason)
        self.counts.clear()
        return self._enter(now_ms, quality, reason)

    def _fall(self, now_ms: int, reason: str) -> Change:
        config = self._config
        stay_s = min(config.poor_stay * 2**self.strikes, config.poor_stay_max)
        self.stay_ms = round(stay_s * 1000)
        self.strikes = min(self.strikes + 1, MAX_STRIKES)
        return self._enter(now_ms, Quality.POOR, reason)

    def _enter(self, now_ms: int, quality: Quality, reason: str) -> Change:
        change = Change(now_ms, self.tenant, self.quality, quality, self.score, reason[:MAX_REASON])
        self.quality = quality
        self.attempts = 0.0
        self.since_ms = now_ms
        self.reason = reason[:MAX_REASON]
        return change

    def to_state(self) -> dict[str, object]:
        return {
            "quality": int(self.quality),
            "since_ms": self.since_ms,
            "reason": self.reason,
            "score": self.score,
            "attempts": self.attempts,
            "strikes": self.strikes,
            "stay_ms": self.stay_ms,
            "counts": self.counts.to_state(),
        }

    @classmethod
    def from_state(cls, config: QualityConfig, tenant: str, state: Mapping[str, Any]) -> "TenantStanding":
        """`state` is what `to_state` gave."""
        made = cls(config, tenant, int(state["since_ms"]))
        made.quality = Quality(state["quality"])
        made.reason = str(state["reason"])
        made.score = int(state["score"])
        made.attempts = float(state["attempts"])
        made.strikes = int(state["strikes"])
        made.stay_ms = int(state["stay_ms"])
        made.counts.load(state["counts"])
        return made


def _share(count: float, of: float) -> float:
    """The share that the sample proves; 1 if there is nothing to compare with."""
    if count <= 0:
        return 0.0
    return at_least(min(1.0, count / of), of) if of > 0 else 1.0

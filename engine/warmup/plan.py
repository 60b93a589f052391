"""The warm-up of one source at one site: the stage, the day's counts, and what each day's end makes of them.

At the end of a UTC day the next stage comes if enough of the cap was delivered and the score holds; else the stage
is held. Days without mail neither advance nor hold; long idleness costs stages, because a provider forgets a source
that it does not hear. A rate-limit reply costs a stage at once, once a day at most. Pure: time is an argument.

The day's cap is spread evenly until the time of day at which it has to be used up. That is shortly before midnight, or,
if mail came to an end earlier on a day whose cap was not used, an hour before it ended then: otherwise a source whose
mail comes in office hours would never use its cap, because warm sources take the mail that it has no allowance for yet.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from engine.config.warmup import Stage, WarmupConfig

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
SPREAD_MARGIN_MS = HOUR_MS  # the day's cap is spread so that the last hour is left for what rounding left
SPREAD_UNTIL_MS = DAY_MS - SPREAD_MARGIN_MS
SPREAD_MORE_MS = HOUR_MS // 4  # so much later, at least, after each day that the cap was used up
LEAST_SHARE = 0.25  # of the cap: a day with less mail says nothing about the hours in which there is mail


class Phase(StrEnum):
    """`paused`: the stage is held by an operator; caps stay in force."""

    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Cap:
    """What a stage allows: messages per UTC day and per hour, and the interval at which the rest of the day's
    cap is spread evenly over the rest of the time for it."""

    day: int
    hour: int
    interval_us: int


@dataclass(frozen=True, slots=True)
class StageChange:
    """For the events. `kind`: advanced, held, stepped back, decayed, finished, stalled, paused, resumed, skipped."""

    at_ms: int
    site: str
    kind: str
    stage: int
    reason: str


class Plan:
    """See the module docstring. `stage` counts from 0; the warm-up is finished behind the last one."""

    __slots__ = (
        "_config",
        "_stages",
        "attempts",
        "day",
        "delivered",
        "excused",
        "held_days",
        "idle_days",
        "last_ms",
        "phase",
        "site",
        "spread_until_ms",
        "stage",
        "stepped_back",
    )

    def __init__(self, config: WarmupConfig, stages: Sequence[Stage], site: str, now_ms: int) -> None:
        self._config = config
        self._stages = tuple(stages)
        self.site = site
        self.phase = Phase.RUNNING
        self.stage = 0
        self.day = now_ms // DAY_MS
        self.attempts = 0
        self.delivered = 0
        self.excused = 0
        self.idle_days = 0
        self.held_days = 0
        self.stepped_back = False
        self.last_ms = 0  # time of day of the last attempt
        self.spread_until_ms = SPREAD_UNTIL_MS  # time of day

    @property
    def stage_count(self) -> int:
        return len(self._stages)

    @property
    def is_forgotten(self) -> bool:
        """Whether its provider has long not heard of the source, and there is no stage left to lose."""
        is_first = self.phase is Phase.RUNNING and self.stage == 0
        return is_first and not self.attempts and self.idle_days >= self._config.idle_days

    def observe(self, now_ms: int, attempts: int, delivered: int, excused: int = 0) -> None:
        """Count into the current day: call `advance` first. `excused` are those of the `attempts` that were put off for
        a reason that lies with the recipient."""
        if attempts:
            self.last_ms = now_ms % DAY_MS
        self.attempts += attempts
        self.delivered += delivered
        self.excused += excused

    def advance(self, now_ms: int, score: int) -> list[StageChange]:
        """Close the days that are over. If the clock was set back, what was counted goes on to the end of tomorrow at
        the latest."""
        today = now_ms // DAY_MS
        self.day = min(self.day, today + 1)
        if today <= self.day:
            return []
        changes: list[StageChange] = []
        if self.attempts:
            self.idle_days = 0
            self._learn_hours()
            if self.phase is Phase.RUNNING:
                changes += self._close_used_day(now_ms, score)
        else:
            changes += self._idle(now_ms, 1)
        changes += self._idle(now_ms, today - self.day - 1)
        self.day = today
        self.attempts = 0
        self.delivered = 0
        self.excused = 0
        self.stepped_back = False
        return changes

    def _learn_hours(self) -> None:
        """When the cap has to be used up tomorrow."""
        if self.phase is Phase.FINISHED or self.stepped_back:
            return  # what was sent says nothing about when there was mail
        cap = self._stages[self.stage].day
        if self.attempts >= cap:
            # there was mail until the cap was used up, and perhaps longer
            later_ms = max(self.spread_until_ms + SPREAD_MORE_MS, self.last_ms)
            self.spread_until_ms = min(SPREAD_UNTIL_MS, later_ms)
        elif self.attempts >= cap * LEAST_SHARE:
            self.spread_until_ms = min(self.spread_until_ms, max(0, self.last_ms - SPREAD_MARGIN_MS))

    def _close_used_day(self, now_ms: int, score: int) -> list[StageChange]:
        config = self._config
        cap = self._stages[self.stage].day
        # a greylisted message takes two attempts of the cap: what was excused is not asked for, up to half of the cap
        asked = cap - min(self.excused, cap // 2)
        wanted = -(-asked * round(config.delivered * 1000) // 1000)
        if self.stepped_back:
            reason = "stepped back on this day"
        elif self.delivered < wanted:
            excused = f" ({self.excused} attempts were excused)" if self.excused else ""
            reason = f"{self.delivered} delivered of {cap}, needed are {wanted}{excused}"
        elif score < config.min_score:
            reason = f"score {score}, needed is {config.min_score}"
        else:
            self.held_days = 0
            self.stage += 1
            if self.stage == len(self._stages):
                self.phase = Phase.FINISHED
                return [self._change(now_ms, "finished", f"{self.delivered} delivered at the last stage")]
            return [self._change(now_ms, "advanced", f"{self.delivered} delivered of {cap}")]
        self.held_days += 1
        changes = [self._change(now_ms, "held", reason)]
        if self.held_days == config.stalled_days:
            changes.append(
                self._change(now_ms, "stalled", f"{self.held_days} days without progress: {reason}")
            )
        return changes

    def _idle(self, now_ms: int, days: int) -> list[StageChange]:
        """So many days without mail. A finished warm-up decays too: it is begun again below its last stage."""
        if days <= 0:
            return []
        config = self._config
        before = max(0, self.idle_days - config.idle_days) // config.idle_step_days
        self.idle_days += days
        lost = max(0, self.idle_days - config.idle_days) // config.idle_step_days - before
        if lost <= 0 or self.stage == 0:
            return []
        self.stage = max(0, min(self.stage, len(self._stages)) - lost)
        if self.phase is Phase.FINISHED:
            self.phase = Phase.RUNNING
        return [self._change(now_ms, "decayed", f"{self.idle_days} days without mail")]

    def step_back(self, now_ms: int, reason: str) -> StageChange | None:
        """The provider complains about the rate: one stage less from now on, once a day at most."""
        if self.phase is Phase.FINISHED or self.stepped_back:
            return None
        self.stepped_back = True
        if self.stage == 0:
            return None
        self.stage -= 1
        return self._change(now_ms, "stepped back", reason)

    def pause(self, now_ms: int) -> StageChange | None:
        if self.phase is not Phase.RUNNING:
            return None
        self.phase = Phase.PAUSED
        return self._change(now_ms, "paused", "by an operator")

    def resume(self, now_ms: int) -> StageChange | None:
        if self.phase is not Phase.PAUSED:
            return None
        self.phase = Phase.RUNNING
        return self._change(now_ms, "resumed", "by an operator")

    def skip(self, now_ms: int, stage: int) -> StageChange:
        """Go to a stage; behind the last one the warm-up is finished. ValueError for others. It ends a pause, and what
        the day has cost before: the provider's next complaint costs a stage again."""
        if not 0 <= stage <= len(self._stages):
            raise ValueError(f"stage {stage}: allowed are 0 to {len(self._stages)}")
        self.stage = stage
        self.held_days = 0
        self.stepped_back = False
        self.phase = Phase.FINISHED if stage == len(self._stages) else Phase.RUNNING
        return self._change(now_ms, "skipped", "by an operator")

    def _change(self, now_ms: int, kind: str, reason: str) -> StageChange:
        return StageChange(now_ms, self.site, kind, self.stage, reason[:256])

    def cap(self, now_ms: int) -> Cap | None:
        """What holds now; None when the warm-up is finished."""
        if self.phase is Phase.FINISHED:
            return None
        stage = self._stages[self.stage]
        hour = stage.hour or max(1, round(stage.day * self._config.hourly_share))
        used = self.attempts if now_ms // DAY_MS == self.day else 0
        left = max(1, stage.day - used)
        time_ms = self.spread_until_ms - now_ms % DAY_MS
        return Cap(stage.day, hour, max(-(-HOUR_MS * 1000 // hour), time_ms * 1000 // left))

    def days_left(self) -> int:
        """Days until the warm-up is finished if every day from today on is used, 0 when it is."""
        return 0 if self.phase is Phase.FINISHED else len(self._stages) - self.stage

    def to_state(self) -> list[object]:
        return [
            str(self.phase),
            self.stage,
            self.day,
            self.attempts,
            self.delivered,
            self.idle_days,
            self.held_days,
            self.stepped_back,
            self.excused,
            self.last_ms,
            self.spread_until_ms,
            0 if self.phase is Phase.FINISHED else self._stages[self.stage].day,
        ]

    @classmethod
    def from_state(
        cls, config: WarmupConfig, stages: Sequence[Stage], site: str, state: Sequence[Any]
    ) -> "Plan":
        """A finished warm-up stays finished. In a table that has changed it goes on at the largest stage that is no
        more than the daily cap of before: a provider knows the volume, not the number of a stage."""
        plan = cls(config, stages, site, 0)
        phase, stage, plan.day, plan.attempts, plan.delivered, plan.idle_days, plan.held_days, back, *rest = (
            state
        )
        # the first release kept nothing of these
        plan.excused, plan.last_ms, plan.spread_until_ms, cap = rest + [0, 0, SPREAD_UNTIL_MS, 0][len(rest) :]
        plan.phase = Phase(phase)
        plan.stepped_back = bool(back)
        plan.stage = len(plan._stages) if plan.phase is Phase.FINISHED else min(stage, len(plan._stages) - 1)
        if cap and plan._stages[plan.stage].day != cap:
            below = [index for index, one in enumerate(plan._stages) if one.day <= cap]
            plan.stage = below[-1] if below else 0
        return plan

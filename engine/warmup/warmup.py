"""The warm-up of one source: a plan for every site it has met."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from engine.config.warmup import WarmupConfig, WarmupTable
from engine.warmup.plan import DAY_MS, Cap, Phase, Plan, StageChange

VERSION = 1
LONG_TAIL = "default"


@dataclass(frozen=True, slots=True)
class PlanView:
    """One plan as an operator sees it. `day_cap`, `hour_cap` 0: finished. `end_day`: UTC day number, projected."""

    site: str
    phase: str
    stage: int
    stages: int
    day_cap: int
    hour_cap: int
    attempts: int
    delivered: int
    remaining: int
    held_days: int
    end_day: int


def provider_of(site: str) -> str:
    """The provider that a site belongs to; an MX rollup is of the long tail."""
    return LONG_TAIL if site.startswith("mx:") else site


class Warmup:
    """See the module docstring. `table` None: the source is warm, nothing is capped."""

    def __init__(self, config: WarmupConfig, table: WarmupTable | None) -> None:
        self._config = config
        self._table = table
        self.plans: dict[str, Plan] = {}
        self._day = -1  # that all plans were advanced to

    def plan(self, now_ms: int, site: str) -> Plan | None:
        """The plan at a site, begun now if there is none yet; None if the source is not warmed."""
        if self._table is None:
            return None
        found = self.plans.get(site)
        if found is None:
            found = self.plans[site] = self._new(now_ms, site)
        return found

    def _new(self, now_ms: int, site: str) -> Plan:
        assert self._table is not None
        return Plan(self._config, self._table.stages_of(provider_of(site)), site, now_ms)

    def is_warming(self, site: str) -> bool:
        plan = self.plans.get(site)
        return plan is not None and plan.phase is not Phase.FINISHED

    def observe(
        self, now_ms: int, site: str, *, attempts: int, delivered: int, score: int, excused: int = 0
    ) -> list[StageChange]:
        """Count attempts at a site; closes its day first if that is over."""
        plan = self.plan(now_ms, site)
        if plan is None:
            return []
        changes = plan.advance(now_ms, score)
        plan.observe(now_ms, attempts, delivered, excused)
        return changes

    def advance(self, now_ms: int, score_of: Callable[[str], int]) -> list[StageChange]:
        """Close the days that are over at every site, and forget plans that are as if they began tomorrow."""
        today = now_ms // DAY_MS
        if today == self._day:
            return []
        self._day = today
        changes: list[StageChange] = []
        for site, plan in list(self.plans.items()):
            changes += plan.advance(now_ms, score_of(site))
            if plan.is_forgotten:
                del self.plans[site]
        return changes

    def step_back(self, now_ms: int, site: str, reason: str) -> StageChange | None:
        plan = self.plan(now_ms, site)
        return None if plan is None else plan.step_back(now_ms, reason)

    def cap(self, now_ms: int, site: str) -> Cap | None:
        """The caps at a site, None for none."""
        plan = self.plans.get(site)
        if plan is None and self._table is not None:
            plan = self._new(now_ms, site)  # it begins with the first attempt
        return None if plan is None else plan.cap(now_ms)

    def views(self, now_ms: int) -> list[PlanView]:
        return [self._view(now_ms, plan) for plan in self.plans.values()]

    def _view(self, now_ms: int, plan: Plan) -> PlanView:
        cap = plan.cap(now_ms)
        day = cap.day if cap is not None else 0
        is_today = plan.day == now_ms // DAY_MS
        attempts = plan.attempts if is_today else 0
        return PlanView(
            site=plan.site,
            phase=str(plan.phase),
            stage=plan.stage,
            stages=plan.stage_count,
            day_cap=day,
            hour_cap=cap.hour if cap is not None else 0,
            attempts=attempts,
            delivered=plan.delivered if is_today else 0,
            remaining=max(0, day - attempts),
            held_days=plan.held_days,
            end_day=now_ms // DAY_MS + plan.days_left(),
        )

    def to_state(self) -> dict[str, object]:
        return {"version": VERSION, "plans": {site: plan.to_state() for site, plan in self.plans.items()}}

    @classmethod
    def from_state(
        cls, config: WarmupConfig, table: WarmupTable | None, state: Mapping[str, Any]
    ) -> "Warmup":
        """Raises ValueError for a state of a version that this code does not know."""
        if state.get("version") != VERSION:
            raise ValueError(f"warm-up state: version {state.get('version')!r}; allowed is {VERSION}")
        warmup = cls(config, table)
        if table is not None:
            for site, row in state["plans"].items():
                stages = table.stages_of(provider_of(site))
                warmup.plans[site] = Plan.from_state(config, stages, site, row)
        return warmup

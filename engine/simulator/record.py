"""What a simulation records: totals, and series of samples per site and per (source, site).

`as_json` gives plain data whose text is the same for the same plan and seed. A fleet may have thousands of (source,
site) pairs; the series of at most `MAX_PAIRS` are kept, first of those that left the state active; the JSON says how
many were left out.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Protocol

from engine.config.schema import FleetConfig
from engine.region.sites import ALL, DAY_MS
from engine.simulator.models import Spoken
from engine.simulator.node import Node
from engine.simulator.plan import Happening, Plan

MAX_PAIRS = 64
MAX_EVENTS = 2_000
NS = 1_000_000_000


class Simulated(Protocol):
    """What is looked at for a sample (engine/simulator/simulation.py, Simulation)."""

    nodes: list[Node]

    def depth(self, site: str) -> int: ...


class ConservationError(AssertionError):
    """The simulation has lost or doubled messages: a fault of the simulator."""


@dataclass(slots=True)
class Pair:
    """The series of one source at one site. `state`: of the samples, as text."""

    delivered: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    cap: list[int | None] = field(default_factory=list)
    score: list[int] = field(default_factory=list)
    weight: list[int] = field(default_factory=list)
    state: list[str] = field(default_factory=list)
    days: Counter[int] = field(default_factory=Counter)  # delivered by UTC day number
    now_delivered: int = 0
    now_refused: int = 0

    @property
    def is_eventful(self) -> bool:
        return any(state != "active" for state in self.state)


@dataclass(slots=True)
class SiteSeries:
    depth: list[int] = field(default_factory=list)
    delivered: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    in_rotation: list[int] = field(default_factory=list)
    utilisation: list[float | None] = field(default_factory=list)


class Record:
    """See the module docstring."""

    def __init__(self, plan: Plan, config: FleetConfig, sites: list[str]) -> None:
        self.plan = plan
        self._config = config
        self._start_ms = plan.start_ms
        self.accepted = 0
        self.delivered_count = 0
        self.bounced = 0
        self.expired = 0
        self.queued = 0
        self.attempts_refused = 0
        self.replies: Counter[str] = Counter()
        self.pairs: dict[tuple[int, str], Pair] = {}
        self.sites = {site: SiteSeries() for site in sites}
        self.times: list[float] = []
        self.happenings: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.event_counts: Counter[str] = Counter()
        self._sample_ns = max(1, round(plan.duration / plan.samples * NS))
        self._next_ns = self._sample_ns
        self._day = self._start_ms // DAY_MS
        self._allowed: dict[tuple[int, str], float] = {}
        self._together: dict[str, float] = {}
        self._waited: dict[str, bool] = {}
        self._seen_events = [0 for _ in config.regions]
        self.tenants: list[dict[str, Any]] = []

    def _pair(self, source: int, site: str) -> Pair:
        found = self.pairs.get((source, site))
        if found is None:
            found = self.pairs[source, site] = Pair()
            size = len(self.times)
            found.delivered += [0] * size
            found.refused += [0] * size
            found.cap += [None] * size
            found.score += [100] * size
            found.weight += [0] * size
            found.state += ["active"] * size
        return found

    # -- from the loop

    def delivered(self, source: int, site: str, count: int) -> None:
        pair = self._pair(source, site)
        pair.now_delivered += count
        pair.days[self._day] += count
        self.delivered_count += count

    def refused(self, source: int, site: str, said: Spoken, count: int) -> None:
        self._pair(source, site).now_refused += count
        self.attempts_refused += count
        self.replies[f"{site}: {str(said.reply)[:120]}"] += count

    def happened(self, at_s: float, event: Happening) -> None:
        told = event.model_dump(mode="json", exclude_none=True)
        self.happenings.append({"at_s": at_s, **told})

    def step(self, simulation: Simulated, end_ns: int) -> None:
        self._day = (self._start_ms + end_ns // 1_000_000) // DAY_MS
        if end_ns < self._next_ns:
            return
        self._next_ns += self._sample_ns
        self._sample(simulation, end_ns)

    def _sample(self, simulation: Simulated, end_ns: int) -> None:
        self.times.append(end_ns / NS)
        per_site: dict[str, list[int]] = {site: [0, 0, 0] for site in self.sites}
        used: Counter[str] = Counter()
        allowed: dict[str, float] = dict.fromkeys(self.sites, 0.0)
        nodes = {number: node for node in simulation.nodes for number in node.sites.sources}
        for (source, site), pair in self.pairs.items():
            node = nodes[source]
            is_known = node.is_up and node.sites.known(site)
            granted = node.allowances.of(source, site)
            pair.delivered.append(pair.now_delivered)
            pair.refused.append(pair.now_refused)
            pair.score.append(granted.score)
            pair.weight.append(granted.weight if node.is_up else 0)
            pair.state.append(granted.state if node.is_up else "region down")
            at = node.sites.site(node.sites.number(site)) if is_known else None
            pair.cap.append(at.caps.get(source) if at is not None else None)
            sums = per_site[site]
            sums[0] += pair.now_delivered
            sums[1] += pair.now_refused
            sums[2] += pair.weight[-1] > 0
            used[site] += pair.now_delivered + pair.now_refused
            allowed[site] += self._allowed.get((source, site), 0.0)
            pair.now_delivered = pair.now_refused = 0
            self._allowed[source, site] = self._next_allowed(node, source, site)
        for name, series in self.sites.items():
            depth = simulation.depth(name)
            delivered, refused, rotating = per_site[name]
            series.delivered.append(delivered)
            series.refused.append(refused)
            series.in_rotation.append(rotating)
            series.depth.append(depth)
            allowed[name] = min(allowed[name], self._together.get(name, math.inf))
            self._together[name] = sum(self._allowed_together(node, name) for node in simulation.nodes)
            is_busy = self._waited.get(name, False) and depth > 0 and allowed[name] > 0
            series.utilisation.append(round(min(1.0, used[name] / allowed[name]), 4) if is_busy else None)
            self._waited[name] = depth > 0
        for number, node in enumerate(simulation.nodes):
            for at_ms, kind, fields in node.store.events[self._seen_events[number] :]:
                self.event_counts[kind] += 1
                if len(self.events) < MAX_EVENTS and kind not in ("allowance", "suspension", "sources"):
                    self.events.append({"at_s": (at_ms - self._start_ms) / 1000, "event": kind, **fields})
            self._seen_events[number] = len(node.store.events)

    def _next_allowed(self, node: Node, source: int, site: str) -> float:
        """Messages that the limits in force now allow until the next sample."""
        if not node.is_up or not node.sites.known(site) or not node.allowances.of(source, site).weight:
            return 0.0
        held = node.suspensions.of(node.sites.sources[source].name, site)
        if held is not None or node.suspensions.of("", site) is not None:
            return 0.0
        at = node.sites.site(node.sites.number(site))
        interval_ns = node.sites.pace(at, source)[0]
        left = at.caps[source] - node.sites.used_today(at, source) if source in at.caps else None
        by_rate = (
            self._sample_ns / interval_ns
            if interval_ns
            else float(node.sites.window(at, source)) * (self._sample_ns / NS / self.plan.tick)
        )
        return by_rate if left is None else min(float(left), by_rate)

    def _allowed_together(self, node: Node, site: str) -> float:
        """Messages that a region's sources together may send to a site until the next sample."""
        if not node.is_up or not node.sites.known(site):
            return math.inf
        at = node.sites.site(node.sites.number(site))
        rate = node.sites.profile(at.provider).rate_total
        by_rate = math.inf if rate is None else self._sample_ns / NS * rate.count / rate.period_s
        return (
            by_rate if at.cap_total is None else min(by_rate, at.cap_total - node.sites.used_today(at, ALL))
        )

    def finish(self, simulation: Simulated) -> None:
        """The end: the conservation law (contract, promise 2) must hold."""
        self._sample(simulation, round(self.plan.duration * NS)) if self._is_sample_due() else None
        self.tenants = [
            {"region": node.region, **row} for node in simulation.nodes for row in node.tenants.listing()
        ]
        self.queued = sum(simulation.depth(site) for site in self.sites)
        found = self.delivered_count + self.bounced + self.expired + self.queued
        if found != self.accepted:
            raise ConservationError(
                f"accepted {self.accepted} != delivered {self.delivered_count} + bounced {self.bounced} + expired "
                f"{self.expired} + queued {self.queued}"
            )

    def _is_sample_due(self) -> bool:
        return not self.times or self.times[-1] < self.plan.duration - 1e-6

    # -- out

    def shown(self) -> list[tuple[int, str]]:
        """The pairs whose series are kept."""
        keys = sorted(self.pairs, key=lambda key: (key[1], key[0]))
        if len(keys) > MAX_PAIRS:
            keys.sort(key=lambda key: (not self.pairs[key].is_eventful, key[1], key[0]))
            keys = sorted(keys[:MAX_PAIRS], key=lambda key: (key[1], key[0]))
        return keys

    def as_json(self) -> dict[str, Any]:
        names = [source.name for source in self._config.sources]
        shown = self.shown()
        start_day = self._start_ms // DAY_MS
        return {
            "plan": self.plan.model_dump(mode="json"),
            "totals": {
                "accepted": self.accepted,
                "delivered": self.delivered_count,
                "bounced": self.bounced,
                "expired": self.expired,
                "queued": self.queued,
                "attempts_refused": self.attempts_refused,
            },
            "times_s": [round(time, 3) for time in self.times],
            "sites": {
                site: {
                    "depth": s.depth,
                    "delivered": s.delivered,
                    "refused": s.refused,
                    "in_rotation": s.in_rotation,
                    "utilisation": s.utilisation,
                }
                for site, s in self.sites.items()
            },
            "pairs": [
                {
                    "source": names[source],
                    "site": site,
                    "delivered": pair.delivered,
                    "refused": pair.refused,
                    "cap": pair.cap,
                    "score": pair.score,
                    "weight": pair.weight,
                    "state": runs(pair.state),
                    "days": {str(day - start_day): count for day, count in sorted(pair.days.items())},
                }
                for source, site in shown
                for pair in (self.pairs[source, site],)
            ],
            "tenants": self.tenants,
            "pairs_left_out": len(self.pairs) - len(shown),
            "replies": dict(self.replies.most_common(100)),
            "happenings": self.happenings,
            "event_counts": dict(sorted(self.event_counts.items())),
            "events": self.events,
        }


def runs(values: list[str]) -> list[list[Any]]:
    """Runs of equal values as [value, how many]."""
    found: list[list[Any]] = []
    for value in values:
        if found and found[-1][0] == value:
            found[-1][1] += 1
        else:
            found.append([value, 1])
    return found

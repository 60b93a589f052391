"""Whatever providers, operators and crashes do on simulated days: no limit is exceeded, nothing flaps, nothing starves.

The plans are random: sources in warm-up and warm ones, dedicated and shared, rates, daily caps, greylisting,
providers that bear few connections or turn on single sources and netblocks, storms, restarts of regions in the middle
of a batch, also of the last one before midnight, of sources' owners, and the loss of a region. Each goes on for two
hours after midnight. State goes through the bytes that the spool keeps. On some more days somebody sets the clock,
back and forward, by minutes and by days. `make soak` runs thousands of days (SENDFLEET_SIMULATED_DAYS, from the seed
SENDFLEET_SIMULATED_SEED on).
"""

import logging
import os
import random
import struct
from collections import deque
from itertools import pairwise
from typing import Any

import pytest

from engine.region.sites import ALL, DAY_MS, Site
from engine.reputation.standing import State
from engine.simulator.node import Node
from engine.simulator.plan import parse_plan
from engine.simulator.simulation import BATCH, Simulation
from engine.simulator.traffic import Flow
from engine.values.stream import Stream

DAYS = int(os.environ.get("SENDFLEET_SIMULATED_DAYS", "10"))
FIRST_SEED = int(os.environ.get("SENDFLEET_SIMULATED_SEED", "1"))
ENTRY = struct.Struct("<QqIHHIIQ")
HOUR_NS = 3_600_000_000_000
STEP_S = 120
DAY_S = 86_400
NS = 1_000_000_000
NO_CAP = 1 << 60


def random_plan(seed: int) -> dict[str, Any]:
    """One day of a small fleet."""
    rng = random.Random(seed)
    regions = ["eu", "us"][: rng.choice((1, 1, 2))]
    groups: list[dict[str, Any]] = [
        {
            "name": f"s{n}",
            "region": rng.choice(regions) if n else regions[0],
            "count": rng.randint(1, 3),
            "first_ip": f"192.0.{n}.1",
            "streams": rng.choice(
                [["marketing"], ["marketing", "transactional"], ["marketing", "notification"]]
            ),
            "warmup": rng.choice([None, None, "standard", "conservative", "tiny"]),
            "tenancy": rng.choice(["shared", "shared", {"dedicated": "acme"}, {"hybrid": "acme"}]),
            "history": rng.choice([None, 500, 100_000]),
        }
        for n in range(rng.randint(1, 4))
    ]
    groups[0] |= {"tenancy": "shared", "streams": ["marketing", "transactional", "notification"]}
    groups += [{**groups[0], "name": f"r{n}", "region": r} for n, r in enumerate(regions[1:])]
    for n, group in enumerate(groups):
        group["first_ip"] = f"192.0.{n}.1"
    sites = ["google", "outlook", "yahoo", "mx:one.example"]
    traffic = [
        {
            "name": f"t{n}",
            "per_day": rng.choice([500, 5_000, 30_000]),
            "tenant": rng.choice(["acme", "other"]),
            "stream": rng.choice(["marketing", "transactional", "notification"]) if n else "marketing",
            "hours": rng.choice(["flat", "office", "burst"]),
            "shares": {site: rng.random() for site in rng.sample(sites, rng.randint(1, 4))},
            "unknown": rng.choice([0.0, 0.01, 0.3]),
            "complaints": rng.choice([0.0, 0.0003, 0.02]),
        }
        for n in range(rng.randint(1, 3))
    ]
    providers: dict[str, Any] = {
        site: {"rate": rng.choice(["unlimited", "1/s", "30/min", "500/h"])} for site in sites[:3]
    }
    if rng.random() < 0.5:
        providers[rng.choice(sites[:3])]["daily_cap"] = rng.choice([50, 700, 4_000])
    if rng.random() < 0.4:
        providers[rng.choice(sites[:3])]["daily_cap_total"] = rng.choice([100, 1_500, 8_000])
    if rng.random() < 0.4:
        providers[rng.choice(sites[:3])]["rate_total"] = rng.choice(["1/s", "20/min", "900/h"])
    if len(groups) > len(regions):
        groups[-len(regions)]["quality"] = rng.choice([[], [], ["poor"], ["new", "poor"]])
    models = {
        site: {
            "cold": rng.choice([100, 2_000]),
            "growth": rng.choice([1.5, 4.0]),
            "greylist": rng.choice([0.0, 0.5]),
            "block_for": rng.choice(["1h", "8h"]),
            "inertia": rng.choice([100, 3_000]),
        }
        for site in sites[:3]
    }
    crowd = random.Random(f"crowd {seed}")
    for model in models.values():
        model["bears"] = crowd.choice([None, None, 1, 3])
        model["crowd_defers"] = crowd.choice([0.0, 1.0])
    return {
        "name": f"day-{seed}",
        "seed": seed,
        "duration": "26h",
        "start": rng.choice(["2026-01-05", "2026-12-31"]),
        "tick": f"{STEP_S}s",
        "report": f"{STEP_S * rng.choice((1, 4, 15))}s",
        "samples": 24,
        "window": rng.choice([50, 5_000]),
        "sources": groups,
        "traffic": traffic,
        "models": models,
        "events": [event_of(rng, groups, regions) for _ in range(rng.randint(0, 8))]
        + [
            {"kind": "restart", "at": f"{DAY_S - STEP_S}s", "region": region}
            for region in regions
            if rng.random() < 0.5
        ],
        "fleet": {
            "providers": providers,
            "warmup": {"tables": {"tiny": {"stages": [5, 20, {"day": 60, "hour": 30}]}}},
            "reputation": {
                "floor": rng.choice(["hold", "trickle"]),
                "removed_stay": rng.choice(["1h", "4h"]),
            },
        },
    }


def event_of(rng: random.Random, groups: list[dict[str, Any]], regions: list[str]) -> dict[str, Any]:
    group = rng.choice(groups)
    event: dict[str, Any] = {
        "kind": rng.choice(
            ["storm", "listing", "block", "restart", "restart", "owner_restart", "region_down"]
        ),
        "at": f"{rng.randrange(86_000)}s",
        "lasts": f"{rng.randrange(60, 20_000)}s",
    }
    if (event["kind"] in ("storm", "listing", "block") and rng.random() < 0.8) or event["kind"] == "storm":
        event["provider"] = rng.choice(["google", "outlook", "yahoo"])
    if event["kind"] == "storm":
        event["share"] = rng.choice([0.1, 1.0])
    elif event["kind"] == "listing":
        event["netblock"] = str(group["first_ip"]).rpartition(".")[0] + ".0/24"
    elif event["kind"] in ("block", "owner_restart"):
        event["sources"] = [f"{group['name']}-1"]
    else:
        event["region"] = rng.choice(regions)
    return event


class Referee:
    """Sees every decision before it is answered, and what is given back unsent; keeps its own books."""

    def __init__(self) -> None:
        self.simulation: Simulation
        self.decisions = 0
        # send time, interval then; of the present step, and the last one before
        self._sent: dict[tuple[str, str], list[tuple[int, int]]] = {}
        self._hourly: dict[tuple[str, str], int] = {}  # caps in force
        self._hours: dict[tuple[str, str], deque[tuple[int, int]]] = {}
        self._days: dict[tuple[str, str, int], int] = {}
        self._slowest: dict[tuple[str, str], int] = {}
        self._last_together: dict[tuple[str, str], int] = {}
        self._free_ns: dict[tuple[int, str], dict[str, int]] = {}

    def taken(self, node: Node, entries: bytes) -> None:
        rows = list(ENTRY.iter_unpack(entries))
        self.decisions += len(rows)
        now_s = self.simulation.clock.monotonic_ns() // NS
        # the region dies with this batch: its pools may send it in the next step
        is_late = (
            self.simulation.nodes.index(node) in self.simulation._dying and now_s % DAY_S >= DAY_S - STEP_S
        )
        for number, source in {(row[2], row[3]) for row in rows}:
            site = node.sites.site(number)
            name = node.sites.sources[source].name
            assert node.scheduler.outstanding(source, number) <= node.sites.window(site, source), (
                name,
                site.name,
            )
            assert site.caps.get(source) is None or node.sites.used_today(site, source) <= site.caps[source]
            self._check_day(site)
            self._check_suspended(node, ("", name), site.name)
            plan = node.owner(name).warmup.plans.get(site.name)
            cap = plan.cap(self._now_ms()) if plan is not None else None
            self._hourly[name, site.name] = cap.hour if cap is not None else NO_CAP
            assert site.cap_total is None or node.sites.used_today(site, ALL) <= site.cap_total
            assert node.allowances.of(source, site.name).weight or node.allowances.is_kept(source, site.name)
        for row in rows:
            self._count(node, row)
            if is_late:
                self._count_of_tomorrow(node, row)

    def of_day(self, who: str, site: str, day: int) -> int:
        """Messages of a source, or of a region, that may have gone out on a day."""
        return self._days.get((who, site, day), 0)

    def _check_day(self, site: Site) -> None:
        assert site.day == self._now_ms() // DAY_MS, site

    def _check_suspended(self, node: Node, names: tuple[str, str], site: str) -> None:
        """Neither all sources together nor this one is suspended."""
        for name in names:
            held = node.suspensions.of(name, site)
            assert held is None or held.until_ms <= self._now_ms(), (name, site, held)

    def _count_of_tomorrow(self, node: Node, row: tuple[int, ...]) -> None:
        site = node.sites.site(row[2])
        for key in ((node.sites.sources[row[3]].name, site.name), (node.region, site.name)):
            day = (*key, site.day + 1)
            self._days[day] = self._days.get(day, 0) + 1

    def _count(self, node: Node, row: tuple[int, ...]) -> None:
        _, send_at, number, source, *_ = row
        site = node.sites.site(number)
        key = node.sites.sources[source].name, site.name
        interval, _ = node.sites.pace(site, source)
        sent = self._sent.setdefault(key, [])
        if sent:
            assert send_at - sent[-1][0] >= min(sent[-1][1], interval), (key, send_at, sent[-1], interval)
        sent.append((send_at, interval))
        self._slowest[key] = interval
        day = (*key, site.day)
        self._days[day] = self._days.get(day, 0) + 1
        self._check_together(node, site, send_at)
        cap = site.caps.get(source)
        if cap is not None:
            assert self._days[day] <= cap, (day, self._days[day], cap)
        self._check_hour(key, send_at)

    def _check_together(self, node: Node, site: Site, send_at: int) -> None:
        """All sources of a region: the daily cap, and the time between two messages, in the order of the decisions."""
        place = node.region, site.name
        profile = node.sites.profile(site.provider)
        if profile.rate_total is not None:
            apart = send_at - self._last_together.get(place, -(1 << 60))
            assert apart >= profile.rate_total.period_s * NS / profile.rate_total.count - 1, (place, apart)
            self._last_together[place] = send_at
        if profile.daily_cap_total is not None:
            day = (*place, site.day)
            self._days[day] = self._days.get(day, 0) + 1
            assert self._days[day] <= profile.daily_cap_total, (day, self._days[day])

    def _check_hour(self, key: tuple[str, str], send_at: int) -> None:
        """A sliding hour holds no more than the largest hourly cap that was in force in it."""
        cap = self._hourly[key]
        hour = self._hours.setdefault(key, deque())
        hour.append((send_at, cap))
        while hour[0][0] <= send_at - HOUR_NS:
            hour.popleft()
        if cap < NO_CAP:
            assert len(hour) <= max(limit for _, limit in hour), (key, len(hour), cap)

    def returned(self, node: Node, rows: list[tuple[int, int]]) -> None:
        """(site number, source) of each message that was not sent."""
        for number, source in rows:
            site = node.sites.site(number)
            key = node.sites.sources[source].name, site.name
            self._days[*key, site.day] -= 1
            if site.cap_total is not None:
                self._days[node.region, site.name, site.day] -= 1
            self._hours[key].pop()
            self._sent[key].pop()

    def stepped(self, now_ns: int) -> None:
        self._check_starvation(now_ns)
        for sent in self._sent.values():
            del sent[:-1]

    def _check_starvation(self, now_ns: int) -> None:
        """No starvation: while mail waits that free sources may carry, one of them sends as its rate allows.

        Whose mail it carries is a matter of lanes and fair shares: tests/property/test_scheduler.py.
        """
        for index, node in enumerate(self.simulation.nodes):
            for (number, site), flow in self.simulation.flows[index].items():
                traffic = self.simulation.plan.traffic[number]
                place = index, f"{number}/{site}"
                waits = node.is_up and node.sites.known(site) and self._has_due(node, flow)
                stream = int(Stream.parse(traffic.stream))
                rows = node.paths.explain(site, stream, traffic.tenant, self._now_ms()) if waits else []
                free = {str(row["source"]) for row in rows if row["eligible"]}
                # one that is gone may have been the one whose turn it was (a tenant's own come first)
                before = self._free_ns.get(place, {})
                since = before if before.keys() <= free else {}
                self._free_ns[place] = {name: since.get(name, now_ns) for name in free}
                if not free:
                    continue
                at = node.sites.site(node.sites.number(site))
                over_ns = []
                for source, named in node.sites.sources.items():
                    if named.name in free:
                        sent = self._sent.get((named.name, site))
                        sent_ns = sent[-1][0] if sent else 0
                        since_ns = max(sent_ns, self._free_ns[place][named.name])
                        over_ns.append(now_ns - since_ns - self._pace(node, at, source))
                if node.sites.profile(at.provider).rate_total is not None:
                    # whose turn it is among sources that share a rate is chance: one of them has sent
                    last_ns = self._last_together.get((node.region, site), 0)
                    over_ns.append(now_ns - max(last_ns, *self._free_ns[place].values()))
                assert min(over_ns) <= 4 * STEP_S * NS, (place, flow.depth, rows)

    def _has_due(self, node: Node, flow: Flow) -> bool:
        """Whether mail waits that could go now, in the scheduler or before it."""
        if flow.waiting or (flow.number >= 0 and node.scheduler.ready(flow.number)):
            return True
        return bool(flow.retries) and flow.retries[0][0] <= self._now_ms()

    def _pace(self, node: Node, site: Site, source: int) -> int:
        """The longest interval that was in force since the source's last message: a promise made then is kept."""
        key = node.sites.sources[source].name, site.name
        self._slowest[key] = max(self._slowest.get(key, 0), node.sites.pace(site, source)[0])
        return self._slowest[key]

    def _now_ms(self) -> int:
        return self.simulation.clock.wall_ms()


def check_no_flapping(simulation: Simulation) -> None:
    """Within any minimum stay: one removal and one return at most."""
    stay_s = simulation.config.reputation.removed_stay
    found: dict[tuple[str, str], list[tuple[float, str]]] = {}
    for event in simulation.record.events:
        if event["event"] == "reputation":
            found.setdefault((event["source"], event["site"]), []).append((event["at_s"], event["state"]))
    for key, rows in found.items():
        removals = [at for at, state in rows if state == State.REMOVED]
        assert all(b - a >= stay_s - 1 for a, b in pairwise(removals)), (key, rows)
        for (at, state), (later, after) in pairwise(rows):
            if state == State.REMOVED:
                assert after == State.PROBATION
                assert later - at >= stay_s - 1, (key, rows)


class ClockSetter(Referee):
    """Sets the clock now and then; asks for the limits only, because what lasts until a time may then last longer."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._rng = random.Random(seed)
        self._stepped_ms = 0
        self.steps = 0

    def _check_starvation(self, now_ns: int) -> None:
        if self._rng.random() > 0.01:
            return
        by_s = self._rng.choice((-1, 1)) * self._rng.choice((1, 120, 3_600, 50_000, DAY_S, 3 * DAY_S))
        if self._stepped_ms + by_s * 1000 < -(now_ns // 1_000_000):
            return  # a message is not older than the simulation
        self._stepped_ms += by_s * 1000
        self.simulation.clock.step_wall(by_s * 1000)
        self.steps += 1

    def _check_day(self, site: Site) -> None:
        pass

    def _check_suspended(self, node: Node, names: tuple[str, str], site: str) -> None:
        pass


def run(seed: int, referee: Referee) -> Simulation:
    logging.getLogger("engine.region").setLevel(logging.CRITICAL)
    simulation = Simulation(parse_plan(random_plan(seed)), watch=referee)
    referee.simulation = simulation
    simulation.run()  # raises if a message is lost or doubled
    assert referee.decisions > 0
    return simulation


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + DAYS))
def test_a_random_day(seed: int) -> None:
    check_no_flapping(run(seed, Referee()))


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + max(1, DAYS // 5)))
def test_a_random_day_on_which_the_clock_is_set(seed: int) -> None:
    referee = ClockSetter(seed)
    run(seed, referee)
    assert referee.steps > 0


def test_a_region_that_dies_with_a_batch_at_midnight() -> None:
    """Mail for both days comes just before it. What may have gone out after midnight is of the new day."""
    referee = Referee()
    last_step_s = DAY_S - STEP_S
    plan = {
        "name": "midnight",
        "duration": f"{DAY_S + 3 * STEP_S}s",
        "tick": f"{STEP_S}s",
        "report": f"{STEP_S}s",
        "samples": 10,
        "sources": [{"name": "s", "region": "eu", "count": 2, "first_ip": "192.0.2.1"}],
        "traffic": [
            {
                "name": "t",
                "per_day": 10_000_000,
                "begins": f"{last_step_s}s",
                "shares": {"google": 1},
                "unknown": 0.0,
                "complaints": 0.0,
            }
        ],
        "events": [{"kind": "restart", "at": f"{last_step_s}s", "region": "eu"}],
        "fleet": {
            "providers": {"google": {"rate": "unlimited", "daily_cap": 3_000, "daily_cap_total": 5_000}}
        },
    }
    simulation = Simulation(parse_plan(plan), watch=referee)
    referee.simulation = simulation
    simulation.run()
    first_day = simulation.plan.start_ms // DAY_MS
    assert [referee.of_day("eu", "google", first_day + day) for day in range(2)] == [BATCH, 5_000]

"""What held a trial back, from the counters that the regions give in their snapshots.

Each interval between two snapshots that had mail waiting is asked which limits were met in it. Rates, connections,
caps and suspensions are known by the scheduler's waits; credits by a pool that is full while more is queued; the spool
by the time its writer was busy. CPU, the client and the rate that was asked for are judged over the whole trial.
"""

from collections.abc import Mapping
from typing import Any

from engine.config.schema import LimitsConfig
from engine.trial.figures import ActorUsage, Limit

MET = 0.1  # a limit that was met less is not named
BUSY = 0.85  # of one core: about all that a process can use
ASKED = 0.97  # of the rate that was asked for

WAITS = {
    "rate": ("waits_rate", "messages waited for a source's rate (providers.NAME.rate, shaping, warm-up)"),
    "connections": (
        "waits_window",
        "every connection of the sources had all that it may carry (max_connections, limits.window_per_connection)",
    ),
    "daily caps": ("waits_daily", "sources had used their daily cap (daily_cap, warm-up)"),
    "suspensions": ("waits_suspended", "sources were suspended or out of the rotation"),
}
CREDITS = "a pool held as many unsettled messages as it may (limits.pool_credits): the receiver or the pool was slower"
SPOOL = "the spool's writer was busy: the disk's syncs and the index"
ASKED_FOR = "the rate that was asked for (--rate) was kept: the fleet could have done more"


class LimitWatch:
    """Takes snapshots in order."""

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits
        self._last: dict[str, Mapping[str, Any]] = {}
        self._intervals = 0
        self._met = dict.fromkeys((*WAITS, "credits"), 0)
        self._waits = dict.fromkeys(WAITS, 0)
        self._busy_s: dict[str, float] = {}
        self._seconds = 0.0

    def add(self, snapshot: Mapping[str, Any], interval_s: float) -> None:
        """`interval_s`: the time since the snapshot before; the first one is only kept."""
        regions = {name: region for name, region in snapshot["regions"].items() if "counts" in region}
        pairs = [(self._last[name], region) for name, region in regions.items() if name in self._last]
        self._last = regions
        if not any(region["counts"]["queued"] for _, region in pairs):
            return
        self._intervals += 1
        self._seconds += interval_s
        met = set()
        for before, now in pairs:
            for name, (counter, _) in WAITS.items():
                waits = _grown(before, now, "scheduler", counter)
                self._waits[name] += waits
                if waits:
                    met.add(name)
            if self._is_full(now):
                met.add("credits")
            region = str(now["region"])
            busy_s = _grown(before, now, "spool", "busy_ms") / 1000
            self._busy_s[region] = self._busy_s.get(region, 0.0) + busy_s
        for name in met:
            self._met[name] += 1

    def _is_full(self, region: Mapping[str, Any]) -> bool:
        held = region["outstanding"].values()
        worthwhile = min(self._limits.batch, max(1, self._limits.pool_credits // 4))
        return region["counts"]["queued"] > sum(held) and any(
            count > self._limits.pool_credits - worthwhile for count in held
        )

    def limits(self) -> list[Limit]:
        """All that are known by counters, also those that were not met."""
        share = {name: met / self._intervals if self._intervals else 0.0 for name, met in self._met.items()}
        found = [
            Limit(name, round(share[name], 3), f"{said}: {self._waits[name]:,} times")
            for name, (_, said) in WAITS.items()
        ]
        found.append(Limit("credits", round(share["credits"], 3), CREDITS))
        busiest = max(self._busy_s.values(), default=0.0)
        found.append(
            Limit("spool", round(min(1.0, busiest / self._seconds), 3) if self._seconds else 0.0, SPOOL)
        )
        return found


def _grown(before: Mapping[str, Any], now: Mapping[str, Any], part: str, counter: str) -> int:
    """By how much a counter grew; a region that was started again counts from zero."""
    old, new = int(before[part].get(counter, 0)), int(now[part].get(counter, 0))
    return new - old if new >= old else new


def cpu_limits(actors: Mapping[str, ActorUsage], machine_busy: float) -> list[Limit]:
    """Actors that had a core to themselves, the client among them, and the machine itself."""
    found = [
        Limit(
            "client" if name == "client" else f"CPU of {name}",
            round(min(1.0, usage.cores), 3),
            "it used one core, and one process can use no more"
            if name != "client"
            else "this command, which makes and submits the mail, used one core: run several, or send campaigns",
        )
        for name, usage in actors.items()
        if usage.cores >= BUSY or name == "client"
    ]
    found.append(Limit("machine", round(machine_busy, 3), "all cores of this machine were busy"))
    return found


def rate_limit(asked: float, submitted_per_s: float) -> Limit:
    share = min(1.0, submitted_per_s / asked) if asked else 0.0
    return Limit("rate asked for", round(share if share >= ASKED else 0.0, 3), ASKED_FOR)


def is_held_back(limit: Limit) -> bool:
    """Whether a limit is worth naming. CPU and spool hold back only when they are nearly used up."""
    by_use = limit.name in ("spool", "client", "machine") or limit.name.startswith("CPU of ")
    return limit.share >= (BUSY if by_use else MET)

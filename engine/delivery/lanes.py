"""The lanes of a pool and the gates they share, found by what a job says: as many as are in use, whatever passes by.

A lane that has nothing to do is forgotten; a gate when no lane uses it, it has no connection, and its pace is no longer
to be remembered; what the sources of a site share when the last gate there goes. Which lane serves a domain is
remembered for `KNOWN_DOMAINS` at most: a provider serves millions.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from engine.delivery.job import Job
from engine.delivery.lane import Lane
from engine.delivery.pacing import Gate, Together
from engine.delivery.pulse import Pulse

KNOWN_DOMAINS = 50_000

LaneKey: TypeAlias = tuple[int, str, Any]  # source, site, route


class Gates(Mapping[tuple[int, str], Gate]):
    """By source and site. `total`: the limit of connections to a site from all sources together, now."""

    def __init__(
        self, *, connections: int, interval_ns: int, total: Callable[[], int], total_interval_ns: int = 0
    ) -> None:
        self._connections = connections
        self._interval_ns = interval_ns
        self._total = total
        self._total_interval_ns = total_interval_ns
        self._gates: dict[tuple[int, str], Gate] = {}
        self._at: Counter[str] = Counter()  # how many gates there are at a site
        self._refused: Counter[int] = Counter()  # by source, at gates that are forgotten
        self.totals: dict[str, Together] = {}

    def of(self, source: int, site: str) -> Gate:
        """The gate, made if there is none."""
        gate = self._gates.get((source, site))
        if gate is None:
            total = self.totals.get(site)
            if total is None:
                total = self.totals[site] = Together(self._total(), self._total_interval_ns)
            gate = self._gates[source, site] = Gate(self._connections, self._interval_ns, total)
            self._at[site] += 1
        return gate

    def share_anew(self) -> None:
        """The pool's part of what all sources share has changed."""
        for total in self.totals.values():
            total.limit = self._total()

    def sweep(self, now_ns: int) -> None:
        """Forget the gates where nothing is to be remembered."""
        idle = [
            key for key, gate in self._gates.items() if not (gate.users or gate.open or gate.next_ns > now_ns)
        ]
        for source, site in idle:
            self._refused[source] += self._gates.pop((source, site)).refused
            self._at[site] -= 1
        free = [site for site, total in self.totals.items() if not self._at[site] and total.next_ns <= now_ns]
        for site in free:
            del self._at[site], self.totals[site]

    def take_pulses(self) -> list[Pulse]:
        """What the gates have measured since the last time."""
        found = (gate.meter.take(source, site) for (source, site), gate in self._gates.items())
        return [pulse for pulse in found if pulse is not None]

    def refused(self) -> Counter[int]:
        """How often there was no room for a session, by source."""
        found = self._refused.copy()
        for (source, _), gate in self._gates.items():
            found[source] += gate.refused
        return found

    def __getitem__(self, key: tuple[int, str]) -> Gate:
        return self._gates[key]

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return iter(self._gates)

    def __len__(self) -> int:
        return len(self._gates)


class Lanes(Mapping[LaneKey, Lane]):
    """By source, site and route. `make` makes one."""

    def __init__(self, make: Callable[[int, str, Any], Lane]) -> None:
        self._make = make
        self._lanes: dict[LaneKey, Lane] = {}
        self._by_domain: dict[tuple[int, str, str, int], Lane] = {}

    def known(self, job: Job, route: Any) -> Lane | None:
        """The lane that served this source, site and domain last, if it still has that very route."""
        lane = self._by_domain.get((job.source, job.site, job.domain, job.tls_wish))
        return lane if lane is not None and lane.route is route and not lane.is_closed else None

    def of(self, job: Job, route: Any) -> Lane:
        """The lane for a job with that route, made if there is none."""
        key = (job.source, job.site, route)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = self._make(*key)
        lane.route = route
        if len(self._by_domain) >= KNOWN_DOMAINS:
            self._by_domain.clear()
        self._by_domain[job.source, job.site, job.domain, job.tls_wish] = lane
        return lane

    def forget(self, key: LaneKey) -> None:
        """The lane is not used."""
        self._lanes.pop(key).close()
        if not self._lanes:
            self._by_domain.clear()

    def known_domains(self) -> int:
        return len(self._by_domain)

    def __getitem__(self, key: LaneKey) -> Lane:
        return self._lanes[key]

    def __iter__(self) -> Iterator[LaneKey]:
        return iter(self._lanes)

    def __len__(self) -> int:
        return len(self._lanes)

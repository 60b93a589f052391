"""The allowances of the region's sources: what their owners said last, enforced in the scheduler and kept on disk.

They hold until the owner says something else. A daily cap is granted anew each UTC day as it was, so a dead owner
means a warm-up that waits. A source in warm-up is closed at a site that its owner has not spoken about yet.

The last source of a stream never leaves the rotation silently: see engine/reputation/floor.py.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

import msgpack

from engine.config.reputation import ReputationConfig
from engine.region.sites import Site, Sites, Terms
from engine.region.suspensions import StateStore
from engine.reputation.allowance import EVERYWHERE, Allowance, both, decode_allowances, encode_allowances
from engine.reputation.floor import Breach, Candidate, find_breaches
from engine.values.stream import Stream

CLOSED = Terms(weight=0)
FULL = 1000


class Allowances:
    """See the module docstring. Sources are numbers here; `seen` is the last event of each that is on disk."""

    def __init__(self, *, sites: Sites, spool: StateStore, config: ReputationConfig) -> None:
        self._sites = sites
        self._spool = spool
        self._config = config
        self._held: dict[int, dict[str, Allowance]] = {source: {} for source in sites.sources}
        self._dedicated = {
            number: source.tenancy.tenant
            for number, source in sites.sources.items()
            if source.tenancy.kind == "dedicated"
        }
        self._closed: set[tuple[int, str]] = set()
        self._breaches: dict[str, list[Breach]] = {}
        self._untold: dict[str, list[Breach]] = {}  # those found when a site came up
        self.seen: dict[int, int] = dict.fromkeys(sites.sources, 0)
        self._dirty: set[int] = set()

    def _key(self, source: int) -> str:
        return f"allowances/{self._sites.sources[source].name}"

    def restore(self) -> None:
        """Load the last words of the owners; they are applied as the sites come up."""
        for source in self._held:
            state = self._spool.get_state(self._key(source))
            if state is not None:
                self.seen[source], rows = msgpack.unpackb(state)
                self._held[source] = {a.site: a for a in decode_allowances(rows)}

    def save(self) -> None:
        """Write what has changed."""
        for source in self._dirty:
            rows = encode_allowances(self._held[source].values())
            self._spool.put_state(self._key(source), msgpack.packb((self.seen[source], rows)))
        self._dirty.clear()

    # -- what holds

    def of(self, source: int, site: str) -> Allowance:
        held = self._held[source]
        found = held.get(site)
        everywhere = held.get(EVERYWHERE)
        if found is None:
            return Allowance(site) if everywhere is None else replace(everywhere, site=site)
        return found if everywhere is None else both(found, everywhere)

    def _terms(self, source: int, site: str) -> Terms:
        if (source, site) in self._closed:
            return CLOSED
        found = self.of(source, site)
        terms = Terms(
            weight=found.weight,
            rate=found.rate,
            connections=found.at_once(),
            interval_us=found.interval_us,
            daily_cap=found.daily_cap,
            daily_used=found.daily_used,
            used_day=found.used_day,
        )
        if self.is_kept(source, site):
            trickle_us = round(self._config.probation.interval * 1e6)
            # its share of the rate is none, as for every removed source: the trickle is the limit instead
            interval_us = max(trickle_us, found.interval_us)
            terms = replace(terms, weight=FULL, rate=FULL, connections=1, interval_us=interval_us)
        return terms

    def terms_for(self, site: str) -> dict[int, Terms]:
        """A site is about to come up: the terms of every source there."""
        for number, source in self._sites.sources.items():
            if source.warmup is not None and site not in self._held[number]:
                self._closed.add((number, site))
        found = self._find_breaches(site)
        if found:
            self._breaches[site] = found
            self._untold[site] = found
        return {number: self._terms(number, site) for number in self._sites.sources}

    def forget(self, site: str) -> None:
        """The site is not in use any more; what its sources' owners have said about it stays."""
        self._closed -= {(number, site) for number in self._sites.sources}
        self._breaches.pop(site, None)
        self._untold.pop(site, None)

    def is_closed(self, source: int, site: str) -> bool:
        """A source in warm-up about which its owner has not spoken yet."""
        return (source, site) in self._closed

    def is_kept(self, source: int, site: str) -> bool:
        """The last source of a stream, which trickles although it is out of the rotation."""
        return any(breach.kept == source for breach in self._breaches.get(site, ()))

    def waiting(self, source: int) -> list[str]:
        """Sites at which a source is closed until its owner has spoken."""
        return sorted(site for number, site in self._closed if number == source)

    # -- the owners' words

    def take(
        self, source: int, allowances: Iterable[Allowance], *, full: bool, reported: Collection[str]
    ) -> list[tuple[str, Breach]]:
        """An owner has answered a report about the sites `reported`. Returns breaches of the floor that are news."""
        held = self._held[source]
        before = dict(held)
        if full:
            held.clear()
        for allowance in allowances:
            if allowance == Allowance(allowance.site):
                held.pop(allowance.site, None)
            else:
                held[allowance.site] = allowance
        opened = {(source, site) for site in reported} & self._closed
        self._closed -= opened
        if full and self._sites.sources[source].warmup is not None:
            # an owner forgets the sites that it has long not been asked about: it has not said that they are free
            lost = before.keys() - held.keys() - {EVERYWHERE, *reported}
            self._closed |= {(source, site) for site in lost if self._sites.known(site)}
        changed = {site for site in {*before, *held} if before.get(site) != held.get(site)}
        if changed:
            self._dirty.add(source)
        touched = changed | {site for _, site in opened}
        if EVERYWHERE in changed:
            touched |= {site.name for site in self._sites.opened()}
        news = [(name, breach) for name, breaches in self._untold.items() for breach in breaches]
        self._untold.clear()
        for name in sorted(touched):
            if name != EVERYWHERE and self._sites.known(name):
                site = self._sites.site(self._sites.number(name))
                news += [(name, breach) for breach in self._check_floor(site)]
                self._sites.change(site, source, self._terms(source, name))
        return news

    def events_seen(self, source: int, number: int) -> None:
        if number > self.seen[source]:
            self.seen[source] = number
            self._dirty.add(source)

    def _check_floor(self, site: Site) -> list[Breach]:
        """Whether a stream has lost its last source at a site; changes who trickles. Returns the new breaches."""
        found = self._find_breaches(site.name)
        before = self._breaches.pop(site.name, [])
        if found:
            self._breaches[site.name] = found
        kept = {b.kept for b in before} ^ {b.kept for b in found}
        for number in sorted(number for number in kept if number is not None):
            self._sites.change(site, number, self._terms(number, site.name))
        lost = {(breach.stream, breach.whose) for breach in before}
        return [breach for breach in found if (breach.stream, breach.whose) not in lost]

    def _find_breaches(self, site: str) -> list[Breach]:
        candidates = [
            Candidate(
                number,
                frozenset(Stream.parse(str(stream)) for stream in source.streams),
                serves=self.of(number, site).weight > 0,
                score=self.of(number, site).score,
                classes=self._sites.serving[number].serves | self._sites.serving[number].lends,
                tenant=self._dedicated.get(number, ""),
            )
            for number, source in self._sites.sources.items()
        ]
        return find_breaches(candidates, self._config.floor)

    def breaches(self) -> Iterator[tuple[str, Breach]]:
        """The sites where a stream has no source in the rotation now."""
        for site, found in self._breaches.items():
            for breach in found:
                yield site, breach

    def listing(self) -> list[dict[str, object]]:
        """Allowances that are not the default, for status pages."""
        rows = []
        for source, held in self._held.items():
            for allowance in held.values():
                rows.append(
                    {
                        "source": self._sites.sources[source].name,
                        "site": allowance.site,
                        "state": allowance.state,
                        "score": allowance.score,
                        "weight": allowance.weight,
                        "rate": allowance.rate,
                        "connections": allowance.connections,
                        "adapted": allowance.adapted,
                        "daily_cap": allowance.daily_cap,
                        "reason": allowance.reason,
                    }
                )
        return rows

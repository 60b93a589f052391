"""The sites of a region by number, and the limits of each source at a site.

A limit is the smaller of what the site's profile says and what the source's owner allows (`Terms`). The scheduler
knows numbers only. A site's limits are set when the first message for it appears. A cell whose past this incarnation
does not know starts full (`fresh=False`): after a restart a rate is never granted twice, at the price of one emission
interval of waiting.

A site that no flow has used for `idle_s` is forgotten, and the longest idle ones before that when there are more than
`MAX_IDLE`. Nothing that matters goes with it: today's counts, suspensions and allowances are kept elsewhere by the
site's name, and its rates start full again when the next message for it appears.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice

from engine.config.schema import FleetConfig
from engine.config.units import MAX_SECONDS
from engine.providers.profiles import Profile
from engine.region.numbers import HeldNumbers, Numbering
from engine.reputation.serving import find_serving
from engine.values.quality import Quality
from engine.values.stream import Stream
from native.scheduler import Scheduler

NS_PER_S = 1_000_000_000
DAY_MS = 86_400_000
ALL = -1  # in place of a source's number: all sources together
IDLE_S = 300.0
MAX_IDLE = 10_000
LONGEST_NS = round(MAX_SECONDS * NS_PER_S)  # between two messages, whatever share of a rate is left
MOST_UNDER_WAY = 1 << 31
TENANCY_CODES = {"shared": 0, "dedicated": 1, "hybrid": 2}


@dataclass(frozen=True, slots=True)
class Terms:
    """What a source's owner allows at a site, beside the profile: engine/reputation/allowance.py, `Allowance`."""

    weight: int = 1000
    rate: int = 1000
    connections: int = 0
    interval_us: int = 0
    daily_cap: int = -1
    daily_used: int = 0
    used_day: int = 0


FREE = Terms()


@dataclass(frozen=True, slots=True)
class Counts:
    """What is known of the UTC day number `day` at a site, by source, `ALL` together: messages `used` of the caps, and
    those that a former incarnation may have `under_way` still."""

    day: int
    used: Mapping[int, int] = field(default_factory=dict)
    under_way: Mapping[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class Site:
    """A destination with limits of its own. `caps`: messages per UTC day, of the sources that have a cap;
    `cap_total`: of all together. `inherited`: messages that are not in the scheduler and may be under way still, so
    that they count for the next day too; `carried`: of whom that has been written to disk (engine/region/daily.py).

    `paces`: (interval_ns, connections) of the sources whose limits are not those of the profile; the pool keeps them.
    `flows`: how many of the scheduler's flows go there.
    """

    number: int
    name: str
    provider: str
    pool: int
    day: int = 0
    sources: list[int] = field(default_factory=list)
    caps: dict[int, int] = field(default_factory=dict)
    cap_total: int | None = None
    paces: dict[int, tuple[int, int]] = field(default_factory=dict)
    flows: int = 0
    inherited: dict[int, int] = field(default_factory=dict)
    carried: set[int] = field(default_factory=set)

    def is_capped(self, source: int) -> bool:
        """Whether a source, or all together (`ALL`), may send so many a day only."""
        return self.cap_total is not None if source == ALL else source in self.caps


class Sites:
    """The sites in use, and their limits in the scheduler."""

    def __init__(
        self,
        *,
        config: FleetConfig,
        region: str,
        profiles: dict[str, Profile],
        scheduler: Scheduler,
        idle_s: float = IDLE_S,
    ) -> None:
        self._config = config
        self._profiles = profiles
        self._scheduler = scheduler
        self._idle_ns = round(idle_s * NS_PER_S)
        self._numbers = HeldNumbers()
        self.tenants = HeldNumbers()
        self.campaigns = HeldNumbers()
        self.pools = Numbering()
        self._netblocks = Numbering()
        self._sites: dict[int, Site] = {}
        # sites without flows: since when, monotonic ns; the longest idle first
        self._idle: dict[int, int] = {}
        self._day = 0
        self._qualities: dict[str, Quality] = {}
        self.sources = {
            number: source for number, source in enumerate(config.sources) if source.region == region
        }
        self._add_sources()

    def _add_sources(self) -> None:
        for number, source in self.sources.items():
            kind, tenant = source.tenancy_of()
            streams = sum({1 << int(Stream.parse(str(stream))) for stream in source.streams})
            self._scheduler.set_source(
                number,
                netblock=self._netblocks.number(str(source.netblock)),
                streams=streams,
                tenancy=TENANCY_CODES[kind],
                tenant=self.tenants.hold(tenant) if tenant else 0,  # for ever, as the next
            )
        for name, tenant_config in self._config.tenants.items():
            self._scheduler.tenant_weight(self.tenants.hold(name), tenant_config.weight)
        self._set_serving()

    # -- classes of tenants

    def quality_of(self, tenant: str) -> Quality:
        return self._qualities.get(tenant, Quality.NEW)

    def set_quality(self, tenant: str, quality: Quality) -> None:
        """A tenant's class: from now on its mail goes over the sources that serve that class."""
        if quality is self.quality_of(tenant):
            return
        number = self.tenants.hold(tenant)
        self._scheduler.set_class(number, int(quality))
        if tenant in self._qualities:
            self.tenants.release(number)  # held since it had a class of its own
        self._qualities[tenant] = quality
        if quality is Quality.NEW:
            del self._qualities[tenant]
            self.tenants.release(number)
        if any(source.tenancy_of() == ("hybrid", tenant) for source in self.sources.values()):
            self._set_serving()

    def _set_serving(self) -> None:
        self.serving = find_serving(self.sources, self.quality_of)
        for number, serving in self.serving.items():
            self._scheduler.set_serves(number, serving.serves, serving.lends)

    def profile(self, provider: str) -> Profile:
        return self._profiles.get(provider) or self._profiles["default"]

    def site(self, number: int) -> Site:
        return self._sites[number]

    def known(self, name: str) -> bool:
        return name in self._numbers

    def number(self, name: str) -> int:
        """The number of a site that is known."""
        return self._numbers.number(name)

    def opened(self) -> list[Site]:
        return list(self._sites.values())

    def __len__(self) -> int:
        return len(self._sites)

    def open(
        self,
        name: str,
        provider: str,
        *,
        now_ns: int,
        counts: Counts,
        terms: Mapping[int, Terms],
    ) -> Site:
        """Return the site, with its limits set if it is new. `terms` has the owner's word per source number."""
        if name in self._numbers:
            return self._sites[self._numbers.number(name)]
        number = self._numbers.hold(name)
        profile = self.profile(provider)
        site = Site(
            number=number,
            name=name,
            provider=profile.name,
            pool=self.pools.number(profile.name),
            day=counts.day,
            sources=list(self.sources),
            inherited=dict(counts.under_way),
        )
        self._sites[number] = site
        self._idle[number] = now_ns
        self._scheduler.add_site(number, site.pool)
        self._set_total(site, profile, counts.used.get(ALL, 0), now_ns)
        for source in site.sources:
            found = terms.get(source, FREE)
            cap = _cap(profile, found)
            left = -1
            over = 0
            if cap is not None:
                site.caps[source] = cap
                told = found.daily_used if found.used_day == counts.day else 0
                left = cap - max(counts.used.get(source, 0), told)
                left, over = max(0, left), min(0, left)
            interval_ns, connections, window = self._limits(profile, found)
            self._set_pace(site, source, profile, interval_ns, connections)
            self._scheduler.set_limit(
                source,
                number,
                interval_ns=interval_ns,
                daily_left=left,
                window=window,
                weight=found.weight,
                fresh=False,
                now_ns=now_ns,
            )
            if over:  # the cap was lowered since: what it rises again by is not left
                self._scheduler.change_daily(source, number, over)
        return site

    # -- what is in use

    def use(self, site: Site) -> None:
        """Another flow goes there."""
        site.flows += 1
        self._idle.pop(site.number, None)

    def leave(self, site: Site, now_ns: int) -> None:
        """One flow less."""
        site.flows -= 1
        if not site.flows:
            self._idle[site.number] = now_ns

    def sweep(self, now_ns: int, limit: int) -> list[Site]:
        """Forget the sites that have been idle for long, at most `limit`; returns them. Their numbers may be others'
        from now on."""
        gone: list[Site] = []
        for number, since_ns in list(islice(self._idle.items(), limit)):
            if now_ns - since_ns < self._idle_ns and len(self._idle) <= MAX_IDLE:
                break
            del self._idle[number]
            if not self._scheduler.drop_site(number):
                self._idle[number] = now_ns
                continue
            gone.append(self._sites.pop(number))
            self._numbers.release(number)
        return gone

    # -- limits

    def _set_total(self, site: Site, profile: Profile, used: int, now_ns: int) -> None:
        """What all sources together may do at the site."""
        site.cap_total = profile.daily_cap_total
        rate = profile.rate_total
        self._scheduler.set_total(
            site.number,
            interval_ns=0 if rate is None else math.ceil(rate.period_s * NS_PER_S / rate.count),
            daily_left=-1 if site.cap_total is None else max(0, site.cap_total - used),
            now_ns=now_ns,
        )

    def change(self, site: Site, source: int, terms: Terms) -> None:
        """The owner of a source allows something else at a site from now on."""
        profile = self.profile(site.provider)
        interval_ns, connections, window = self._limits(profile, terms)
        self._set_pace(site, source, profile, interval_ns, connections)
        self._scheduler.reshape(
            source, site.number, interval_ns=interval_ns, window=window, weight=terms.weight
        )
        cap = _cap(profile, terms)
        before = site.caps.get(source)
        if cap == before:
            return
        if cap is None:
            del site.caps[source]
            self._scheduler.set_daily_left(source, site.number, -1)
        elif before is None:
            site.caps[source] = cap
            told = terms.daily_used if terms.used_day == site.day else 0
            used = told + self._scheduler.outstanding(source, site.number)
            self._scheduler.set_daily_left(source, site.number, max(0, cap - used))
        else:
            site.caps[source] = cap
            self._scheduler.change_daily(source, site.number, cap - before)

    def _limits(self, profile: Profile, terms: Terms) -> tuple[int, int, int]:
        """(interval_ns, connections, window) of a source at a site of that profile."""
        interval_ns = 0
        if profile.rate is not None:
            interval_ns = -(
                -round(profile.rate.period_s * NS_PER_S * 1000) // (profile.rate.count * terms.rate)
            )
        interval_ns = min(LONGEST_NS, max(interval_ns, terms.interval_us * 1000))
        connections = profile.max_connections
        if terms.connections:
            connections = min(connections, terms.connections)
        if profile.rate is None:
            # without a rate there is nothing to take a share of but the connections
            connections = max(1, min(connections, profile.max_connections * terms.rate // 1000))
        # enough messages outstanding to keep each connection busy over a round trip
        return interval_ns, connections, self._window(connections)

    def _window(self, connections: int) -> int:
        return min(MOST_UNDER_WAY, max(1, connections) * self._config.limits.window_per_connection)

    def _set_pace(
        self, site: Site, source: int, profile: Profile, interval_ns: int, connections: int
    ) -> None:
        if (interval_ns, connections) == self._limits(profile, FREE)[:2]:
            site.paces.pop(source, None)
        else:
            site.paces[source] = interval_ns, connections

    def window(self, site: Site, source: int) -> int:
        """Messages that a source may have under way to a site."""
        return self._window(self.pace(site, source)[1])

    def pace(self, site: Site, source: int) -> tuple[int, int]:
        """(interval_ns between messages, 0 for none; connections) of a source at a site."""
        return site.paces.get(source) or self._limits(self.profile(site.provider), FREE)[:2]

    def new_day(self, now_ms: int) -> None:
        """Grant the daily caps anew when a later UTC day has begun; a clock set back grants nothing.

        What is under way may be sent on the new day, so it counts for that one, too. Call this before anything that
        may have been sent after midnight is settled: then it is under way still.
        """
        day = now_ms // DAY_MS
        if day <= self._day:
            return
        self._day = day
        for site in self._sites.values():
            if site.day < day:
                site.day = day
                inherited, site.inherited = site.inherited, {}
                for source, cap in site.caps.items():
                    self._scheduler.renew_daily(source, site.number, max(0, cap - inherited.get(source, 0)))
                if site.cap_total is not None:
                    total = max(0, site.cap_total - inherited.get(ALL, 0))
                    self._scheduler.renew_total(site.number, total)

    def answered_before(self, midnight_ms: int, site: Site, source: int) -> None:
        """A message that midnight met under way had been answered before it: it does not count for the day that began
        then. (Of all sources together it does: that count is not corrected.)"""
        if midnight_ms == site.day * DAY_MS and source in site.caps:
            self._scheduler.change_daily(source, site.number, 1)

    def under_way(self, site: Site, source: int) -> int:
        """Messages of a source, or of all (`ALL`), that were taken and not answered yet."""
        numbers = site.sources if source == ALL else (source,)
        here = sum(self._scheduler.outstanding(number, site.number) for number in numbers)
        return here + site.inherited.get(source, 0)

    def granted(self) -> dict[str, dict[str, int]]:
        """Messages handed out today, of every source that has a cap at a site, and of all together (""), where they
        have one: names of source and site."""
        found: dict[str, dict[str, int]] = {}
        for site in self._sites.values():
            if site.cap_total is not None:
                found.setdefault("", {})[site.name] = self.used_today(site, ALL)
            for source in site.caps:
                found.setdefault(self.sources[source].name, {})[site.name] = self.used_today(site, source)
        return found

    def used_today(self, site: Site, source: int) -> int:
        """Of a source that has a cap at the site, or of all together (`ALL`) if they have one."""
        if source == ALL:
            left = self._scheduler.total_left(site.number)
            assert left is not None
            assert site.cap_total is not None
            return site.cap_total - left
        left = self._scheduler.daily_left(source, site.number)
        assert left is not None
        return site.caps[source] - left


def _cap(profile: Profile, terms: Terms) -> int | None:
    """The smaller of the profile's cap and the owner's."""
    caps = [
        cap
        for cap in (profile.daily_cap, terms.daily_cap if terms.daily_cap >= 0 else None)
        if cap is not None
    ]
    return min(caps, default=None)

"""Numbers for names: sites, pools, tenants, campaigns; and the limits that a site's profile puts on each source.

The scheduler knows numbers only. A site's limits are set when the first message for it appears. A cell whose past
this incarnation does not know starts full (`fresh=False`): after a restart a rate is never granted twice, at the
price of one emission interval of waiting.
"""

from dataclasses import dataclass, field

from engine.config.schema import FleetConfig
from engine.providers.profiles import Profile
from engine.values.stream import Stream
from native.scheduler import Scheduler

NS_PER_S = 1_000_000_000
DAY_MS = 86_400_000
TENANCY_CODES = {"shared": 0, "dedicated": 1, "hybrid": 2}


class Numbering:
    """A bijection between names and small dense numbers."""

    __slots__ = ("_names", "_numbers")

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []

    def number(self, name: str) -> int:
        found = self._numbers.get(name)
        if found is None:
            found = self._numbers[name] = len(self._names)
            self._names.append(name)
        return found

    def name(self, number: int) -> str:
        return self._names[number]

    def __contains__(self, name: str) -> bool:
        return name in self._numbers

    def __len__(self) -> int:
        return len(self._names)


@dataclass(slots=True)
class Site:
    """A destination with limits of its own. `daily_cap` is None when the profile sets none."""

    number: int
    name: str
    provider: str
    pool: int
    daily_cap: int | None
    day: int = 0
    sources: list[int] = field(default_factory=list)


class Sites:
    """The sites this region has met, and their limits in the scheduler."""

    def __init__(
        self,
        *,
        config: FleetConfig,
        region: str,
        profiles: dict[str, Profile],
        scheduler: Scheduler,
    ) -> None:
        self._config = config
        self._profiles = profiles
        self._scheduler = scheduler
        self._numbers = Numbering()
        self.tenants = Numbering()
        self.campaigns = Numbering()
        self.pools = Numbering()
        self._netblocks = Numbering()
        self._sites: list[Site] = []
        self.sources = {
            number: source for number, source in enumerate(config.sources) if source.region == region
        }
        self._add_sources()

    def _add_sources(self) -> None:
        for number, source in self.sources.items():
            kind, tenant = source.tenancy_of()
            streams = sum(1 << int(Stream.parse(str(stream))) for stream in source.streams)
            self._scheduler.set_source(
                number,
                netblock=self._netblocks.number(str(source.netblock)),
                streams=streams,
                tenancy=TENANCY_CODES[kind],
                tenant=self.tenants.number(tenant) if tenant else 0,
            )
        for name, tenant_config in self._config.tenants.items():
            self._scheduler.tenant_weight(self.tenants.number(name), tenant_config.weight)

    def profile(self, provider: str) -> Profile:
        return self._profiles.get(provider) or self._profiles["default"]

    def site(self, number: int) -> Site:
        return self._sites[number]

    def known(self, name: str) -> bool:
        return name in self._numbers

    def number(self, name: str) -> int:
        """The number of a site that is known."""
        return self._numbers.number(name)

    def capped(self) -> list[Site]:
        return [site for site in self._sites if site.daily_cap is not None]

    def open(self, name: str, provider: str, *, now_ns: int, now_ms: int, used: dict[int, int]) -> Site:
        """Return the site, with its limits set if it is new. `used` has today's count per source number."""
        number = self._numbers.number(name)
        if number < len(self._sites):
            return self._sites[number]
        profile = self.profile(provider)
        site = Site(
            number=number,
            name=name,
            provider=profile.name,
            pool=self.pools.number(profile.name),
            daily_cap=profile.daily_cap,
            day=now_ms // DAY_MS,
            sources=list(self.sources),
        )
        self._sites.append(site)
        self._scheduler.add_site(number, site.pool)
        interval_ns = 0
        if profile.rate is not None:
            interval_ns = -(-round(profile.rate.period_s * NS_PER_S) // profile.rate.count)
        window = self._window(profile)
        for source in site.sources:
            left = -1 if site.daily_cap is None else max(0, site.daily_cap - used.get(source, 0))
            self._scheduler.set_limit(
                source,
                number,
                interval_ns=interval_ns,
                daily_left=left,
                window=window,
                fresh=False,
                now_ns=now_ns,
            )
        return site

    def _window(self, profile: Profile) -> int:
        """Outstanding messages of one source at one site: enough to keep each connection busy over a round trip."""
        return max(1, profile.max_connections) * self._config.limits.window_per_connection

    def new_day(self, now_ms: int) -> None:
        """Grant the daily caps anew when a later UTC day has begun; a clock set back grants nothing."""
        day = now_ms // DAY_MS
        for site in self.capped():
            if site.day < day and site.daily_cap is not None:
                site.day = day
                for source in site.sources:
                    self._scheduler.renew_daily(source, site.number, site.daily_cap)

    def used_today(self, site: Site, source: int) -> int:
        left = self._scheduler.daily_left(source, site.number)
        assert site.daily_cap is not None
        assert left is not None
        return site.daily_cap - left

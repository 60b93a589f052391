"""Which sources may carry a message to a site now, and why the others may not: for `sendfleet trace`.

The answer is built when it is asked for, from what is enforced: the configuration, the allowances, the suspensions and
the scheduler's counts. The one thing it does not know is how far a source's rate is used up at this moment: a source
whose rate is the only obstacle is named as one that may carry the message, soon.
"""

from collections.abc import Iterable

from engine.region.allowances import Allowances
from engine.region.sites import ALL, DAY_MS, Site, Sites
from engine.region.suspensions import ALL_SOURCES, Suspensions
from engine.reputation.serving import bit_of
from engine.values.stream import Stream
from native.scheduler import Scheduler

NEVER = 1 << 47


class Paths:
    """See the module docstring."""

    def __init__(
        self, *, sites: Sites, suspensions: Suspensions, allowances: Allowances, scheduler: Scheduler
    ) -> None:
        self._sites = sites
        self._suspensions = suspensions
        self._allowances = allowances
        self._scheduler = scheduler

    def explain(self, site: str, stream: int, tenant: str, now_ms: int) -> list[dict[str, object]]:
        """A row for every source of the region: {"source", "eligible", "reasons": [text, ...]}."""
        rows: list[dict[str, object]] = []
        for number in self._sites.sources:
            reasons = self._static(number, stream, tenant) + self._dynamic(number, site, now_ms)
            name = self._sites.sources[number].name
            rows.append({"source": name, "eligible": not reasons, "reasons": reasons})
        return rows

    def may_carry(self, stream: int, tenant: str) -> list[int]:
        """The sources that mail of a stream and tenant can go over at all."""
        return [number for number in self._sites.sources if not self._static(number, stream, tenant)]

    def blocked_until(self, site: str, sources: Iterable[int], now_ms: int) -> int:
        """Until when none of these sources can send to a site (unix milliseconds), as far as is known now; 0: one can
        now, or soon. NEVER: there is none, or nobody knows."""
        return min([self._blocked_until(number, site, now_ms) for number in sources], default=NEVER)

    def _blocked_until(self, number: int, name: str, now_ms: int) -> int:
        until = 0
        for who in (ALL_SOURCES, self._sites.sources[number].name):
            found = self._suspensions.of(who, name)
            if found is not None and found.until_ms > now_ms:
                until = max(until, found.until_ms)
        if self._allowances.is_closed(number, name):
            return until  # its owner's first word comes soon
        if self._allowances.of(number, name).weight == 0 and not self._allowances.is_kept(number, name):
            return NEVER
        if self._sites.known(name) and self._is_used_up(number, self._sites.site(self._sites.number(name))):
            until = max(until, (now_ms // DAY_MS + 1) * DAY_MS)
        return until

    def _is_used_up(self, number: int, site: Site) -> bool:
        """Whether today's cap of the source, or of all together, leaves nothing."""
        if site.cap_total is not None and self._sites.used_today(site, ALL) >= site.cap_total:
            return True
        return number in site.caps and self._sites.used_today(site, number) >= site.caps[number]

    def waits_by_plan(self, name: str, sources: Iterable[int], now_ms: int, slow_ns: int) -> bool:
        """Whether mail for a known site waits for tomorrow's cap, or for its turn at a pace of one message in `slow_ns`
        or longer: a source has that, and the others cannot send either."""
        site = self._sites.site(self._sites.number(name))
        is_planned = False
        for number in sources:
            if self._is_used_up(number, site):
                is_planned = True
            elif self._blocked_until(number, name, now_ms) <= now_ms:
                if self._sites.pace(site, number)[0] < slow_ns:
                    return False
                is_planned = True
        return is_planned

    def held_by(self, name: str, sources: Iterable[int], now_ms: int) -> str:
        """What mail for a site waits for at the sources that can send to it: `connections` if each has at least half of
        what it may have under way, `rate` if one that has not is paced; "" if it is neither."""
        if not self._sites.known(name):
            return ""
        site = self._sites.site(self._sites.number(name))
        is_paced = self._sites.profile(site.provider).rate_total is not None
        is_busy = True
        for number in sources:
            if self._blocked_until(number, name, now_ms) > now_ms:
                continue
            if self._scheduler.outstanding(number, site.number) * 2 < self._sites.window(site, number):
                is_busy = False
                is_paced = is_paced or self._sites.pace(site, number)[0] > 0
        return "connections" if is_busy else "rate" if is_paced else ""

    def _static(self, number: int, stream: int, tenant: str) -> list[str]:
        source = self._sites.sources[number]
        reasons = []
        if stream not in {int(Stream.parse(str(one))) for one in source.streams}:
            reasons.append(f"does not serve the stream {Stream(stream)}")
        kind, owner = source.tenancy_of()
        if kind == "dedicated" and owner != tenant:
            reasons.append(f"dedicated to the tenant {owner}")
        elif owner != tenant and not self._serves(number, stream, tenant):
            reasons.append(
                f"does not serve tenants of the class {self._sites.quality_of(tenant)}, as {tenant} is"
            )
        return reasons

    def _serves(self, number: int, stream: int, tenant: str) -> bool:
        """Whether a source that is not the tenant's own carries its mail, as the scheduler has it."""
        bit = bit_of(stream, self._sites.quality_of(tenant))
        serving = self._sites.serving
        if serving[number].serves & bit:
            return True
        has_other = any(
            serving[other].serves & bit or source.tenancy.tenant == tenant
            for other, source in self._sites.sources.items()
            if str(Stream(stream)) in source.streams
        )
        return bool(serving[number].lends & bit) and not has_other

    def _dynamic(self, number: int, name: str, now_ms: int) -> list[str]:
        source = self._sites.sources[number]
        reasons = []
        for who in (ALL_SOURCES, source.name):
            found = self._suspensions.of(who, name)
            if found is not None and found.until_ms > now_ms:
                whose = "the site is" if who == ALL_SOURCES else "is"
                reasons.append(
                    f"{whose} suspended for {(found.until_ms - now_ms) / 1000:.0f} s: {found.reason}"
                )
        if self._allowances.is_closed(number, name):
            reasons.append("waits for its owner's first word about this site (warm-up)")
            return reasons
        held = self._allowances.of(number, name)
        if held.weight == 0 and not self._allowances.is_kept(number, name):
            reasons.append(f"out of the rotation ({held.state}): {held.reason}")
        if self._sites.known(name):
            reasons += self._counts(number, self._sites.site(self._sites.number(name)))
        return reasons

    def _counts(self, number: int, site: Site) -> list[str]:
        reasons = []
        if site.cap_total is not None and self._sites.used_today(site, ALL) >= site.cap_total:
            reasons.append(f"today's cap of {site.cap_total} for all sources is used up")
        if number in site.caps and self._sites.used_today(site, number) >= site.caps[number]:
            reasons.append(f"today's cap of {site.caps[number]} is used up")
        window = self._sites.window(site, number)
        outstanding = self._scheduler.outstanding(number, site.number)
        if outstanding >= window:
            reasons.append(f"{outstanding} messages are under way, allowed are {window}")
        return reasons

"""Which regions the submission host name leads to, decided without I/O and without a clock of its own.

A region leaves the records after it was down for `down_after`, and comes back after it was healthy for `up_after`,
or at once if the records would otherwise lead to too few. Never fewer than `min_regions` stay: when no more are
healthy, those that answer at least, and of these or the others those that were healthy last. An address family that the
records had does not vanish either while a region of it is configured.

What the zone holds is learned by looking, so a restarted Fleet goes on from there, and another's change is undone. An
update is confirmed by looking too: a lost answer does no harm. Updates keep `interval`, refused ones wait longer and
longer. A server that lags behind is reported and not updated again: it has to fetch the zone.

Times are seconds of one monotonic clock.
"""

import ipaddress
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum

from engine.config.dns_failover import DnsFailoverConfig

FIRST_LOOK_S = 0.5  # after an update; then twice as long each time, up to `check`
MAX_BACKOFF_S = 300.0


@dataclass(frozen=True, slots=True)
class Records:
    """The addresses of the name, and their TTL in seconds."""

    addresses: frozenset[str]
    ttl_s: int

    def of_version(self, version: int) -> list[str]:
        return sorted(a for a in self.addresses if ipaddress.ip_address(a).version == version)


class Step(Enum):
    """What is to be done now."""

    WAIT = "wait"
    LOOK = "look"
    PUBLISH = "publish"


class Published(Enum):
    """How an update ended. UNKNOWN: no answer, it may have been made. REFUSED: it was not."""

    DONE = "done"
    REFUSED = "refused"
    UNKNOWN = "unknown"


@dataclass(slots=True)
class _Region:
    is_healthy: bool = False
    since_s: float = -math.inf
    last_healthy_s: float = -math.inf


@dataclass(slots=True)
class DnsStatus:
    """For people: what should be there, what is, and what is wrong."""

    wanted: list[str] = field(default_factory=list)
    regions: list[str] = field(default_factory=list)
    is_confirmed: bool = False
    lagging: dict[str, str] = field(default_factory=dict)
    problem: str = ""
    updates: int = 0


class DnsPlan:
    """See the module docstring. Calls come from one task."""

    def __init__(self, config: DnsFailoverConfig) -> None:
        self._config = config
        self._ttl_s = int(config.ttl)
        self._regions = {name: _Region() for name in config.addresses}
        self._members: set[str] | None = None  # None: the zone was not looked at yet
        self._present: Records | None = None
        self._known = False
        self._idle: frozenset[str] = frozenset()
        self._families: set[int] = set()
        self._look_at_s = -math.inf
        self._look_wait_s = FIRST_LOOK_S
        self._publish_at_s = -math.inf
        self._refusals = 0
        self._claimed = False  # a server said that it had made the update; not seen yet
        self.status = DnsStatus()

    def observe(self, now_s: float, healthy: Collection[str], idle: Collection[str] = ()) -> None:
        """The regions that are healthy now, and those of the others that answer at least."""
        self._idle = frozenset(idle)
        for name, region in self._regions.items():
            is_healthy = name in healthy
            if is_healthy != region.is_healthy or not self._known:
                region.is_healthy, region.since_s = is_healthy, now_s
            if is_healthy:
                region.last_healthy_s = now_s
        self._known = True
        self._choose(now_s)

    def _choose(self, now_s: float) -> None:
        if self._members is None or not self._known:
            return
        healthy = {name for name, region in self._regions.items() if region.is_healthy}
        if not self._members:
            self._members |= healthy  # the name is new: nothing is published before a region is healthy
            if not healthy:
                return
        for name in healthy:
            if now_s - self._regions[name].since_s >= self._config.up_after:
                self._members.add(name)
        down = {
            name
            for name, region in self._regions.items()
            if not region.is_healthy and now_s - region.since_s >= self._config.down_after
        }
        kept = self._members - down
        if kept - healthy and len(kept & healthy) < self._config.min_regions:
            kept |= self._members & self._idle  # who stays has just ceased to be healthy, and may be worse
        missing = self._config.min_regions - len(kept)
        if missing > 0:
            # healthy ones that are not in yet, then those that answer, those in the records, those healthy last
            spare = sorted(
                set(self._regions) - kept,
                key=lambda n: (
                    n in healthy,
                    n in self._idle,
                    n in (self._members or ()),
                    self._regions[n].last_healthy_s,
                ),
                reverse=True,
            )
            kept |= set(spare[:missing])
        self._members = kept
        self.status.regions = sorted(kept)
        self.status.wanted = sorted(self.wanted().addresses)

    def wanted(self) -> Records:
        """What the zone should hold; never empty once the zone was looked at."""
        members = self._members or set()
        addresses = {a for name in members for a in self._config.addresses[name]}
        for version in self._families - {ipaddress.ip_address(a).version for a in addresses}:
            addresses |= self._last_of(version)
        return Records(frozenset(addresses), self._ttl_s)

    def _last_of(self, version: int) -> set[str]:
        """Addresses of a family from the region that was healthy last, so that the family does not vanish."""
        for name in sorted(self._regions, key=lambda n: self._regions[n].last_healthy_s, reverse=True):
            found = {a for a in self._config.addresses[name] if ipaddress.ip_address(a).version == version}
            if found:
                return found
        return set()

    def step(self, now_s: float) -> Step:
        """What to do now."""
        if self._present is None or self._members is None:
            return Step.LOOK if now_s >= self._look_at_s else Step.WAIT
        wanted = self.wanted()
        if self._known and wanted.addresses and self._present != wanted and now_s >= self._publish_at_s:
            return Step.PUBLISH
        return Step.LOOK if now_s >= self._look_at_s else Step.WAIT

    def looked(self, now_s: float, primary: Records | str, authorities: Mapping[str, Records | str]) -> None:
        """What the server that takes updates holds, and what each authoritative server answers; a text is a failure."""
        if isinstance(primary, str):
            self.status.problem = primary
            self.status.is_confirmed = False
            self._present = None
            self._wait_for_look(now_s)
            return
        if self._members is None:
            self._members = {
                name for name, own in self._config.addresses.items() if set(own) & primary.addresses
            }
            self._choose(now_s)
        ours = {ipaddress.ip_address(a).version for own in self._config.addresses.values() for a in own}
        self._families |= {ipaddress.ip_address(a).version for a in primary.addresses} & ours
        self._present = primary
        wanted = self.wanted()
        self.status.lagging = {
            server: found if isinstance(found, str) else f"gives {_shown(found)}"
            for server, found in authorities.items()
            if found != wanted
        }
        if primary == wanted:
            self._refusals = 0
            self.status.problem = ""
        elif self._claimed:
            self.status.problem = f"the update was made, they say, but the server gives {_shown(primary)}"
        self._claimed = False
        self.status.is_confirmed = primary == wanted and not self.status.lagging
        if self.status.is_confirmed:
            self._look_wait_s = self._config.check
        self._wait_for_look(now_s)

    def published(self, now_s: float, result: Published, reason: str) -> None:
        """How the update ended; it is looked at in any case."""
        wait_s = self._config.interval
        self.status.is_confirmed = False
        if result is Published.DONE:
            self.status.updates += 1
            self.status.problem = ""
            self._claimed = True
            self._look_wait_s = FIRST_LOOK_S
            self._look_at_s = now_s
        else:
            wait_s = min(self._config.interval * 2**self._refusals, max(MAX_BACKOFF_S, self._config.interval))
            self._refusals = min(self._refusals + 1, 20)
            self.status.problem = reason
            self._look_wait_s = FIRST_LOOK_S
            self._wait_for_look(now_s)
        self._publish_at_s = now_s + wait_s

    def _wait_for_look(self, now_s: float) -> None:
        self._look_at_s = now_s + self._look_wait_s
        self._look_wait_s = min(self._look_wait_s * 2, self._config.check)


def why_it_stays(config: DnsFailoverConfig, region: str) -> str:
    """Why the addresses of a region that is down never all leave the records; "" if they do."""
    if config.min_regions >= len(config.addresses):
        return (
            f"dns_failover.min_regions is {config.min_regions}, and there are {len(config.addresses)} regions"
        )
    others = {
        ipaddress.ip_address(a).version for n, own in config.addresses.items() if n != region for a in own
    }
    alone = {ipaddress.ip_address(a).version for a in config.addresses[region]} - others
    return "".join(f"region {region} alone has IPv{version} addresses" for version in sorted(alone)[:1])


def _shown(records: Records) -> str:
    return f"{', '.join(sorted(records.addresses)) or 'no address'} with a TTL of {records.ttl_s} s"

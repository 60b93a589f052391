"""What is enforced at the sites of a region, joined in one place: the limits of the profiles, the words of the sources'
owners, suspensions, today's counts, the classes of the tenants; and the observer that tells the owners what happened.

A region has one, and so has each node of the simulator and whatever test wants the real thing.
"""

from collections.abc import Callable, Iterable
from typing import Protocol

from engine.config.schema import FleetConfig
from engine.providers.profiles import Profile
from engine.region.allowances import Allowances
from engine.region.daily import counts_on_disk, settled_counts
from engine.region.observer import EventStore, Observer
from engine.region.paths import Paths
from engine.region.ports import SourcePort
from engine.region.sites import Site, Sites
from engine.region.source_numbers import SourceNumbers
from engine.region.suspensions import PROVISIONAL_MS, StateStore, Suspensions
from engine.region.tenants import Tenants
from engine.shaping.rules import GENERIC_BLOCK
from engine.values.clock import Clock
from native.scheduler import Scheduler


class Store(StateStore, EventStore, Protocol):
    """The part of the spool that is used here."""


class Enforcement:
    """See the module docstring. `wake`: something that was parked may go now."""

    def __init__(
        self,
        *,
        config: FleetConfig,
        region: str,
        profiles: dict[str, Profile],
        scheduler: Scheduler,
        store: Store,
        clock: Clock,
        sources: SourcePort,
        wake: Callable[[], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self.sites = Sites(config=config, region=region, profiles=profiles, scheduler=scheduler)
        self.suspensions = Suspensions(
            scheduler=scheduler,
            sites=self.sites,
            spool=store,
            clock=clock,
            longest_ms=_longest_ms(profiles.values()),
        )
        self.allowances = Allowances(sites=self.sites, spool=store, config=config.reputation)
        self.tenants = Tenants(config=config, sites=self.sites, spool=store, events=store, clock=clock)
        names = [source.name for source in config.sources]
        self.numbers = SourceNumbers(names=names, store=store, clock=clock)
        self.observer = Observer(
            region=region,
            sites=self.sites,
            suspensions=self.suspensions,
            allowances=self.allowances,
            tenants=self.tenants,
            numbers=self.numbers,
            events=store,
            clock=clock,
            sources=sources,
            wake=wake,
        )
        self.paths = Paths(
            sites=self.sites, suspensions=self.suspensions, allowances=self.allowances, scheduler=scheduler
        )

    def restore(self) -> None:
        """Load what was in force before the restart; it is applied as the sites come up."""
        self.numbers.restore()
        self.suspensions.restore()
        self.allowances.restore()
        self.tenants.restore()

    def open(self, name: str, provider: str) -> Site:
        """The site of that name. If it is new, everything that holds there is put into the scheduler."""
        if self.sites.known(name):
            return self.sites.site(self.sites.number(name))
        now_ms = self._clock.wall_ms()
        site = self.sites.open(
            name,
            provider,
            now_ns=self._clock.monotonic_ns(),
            counts=counts_on_disk(self.sites, name, provider, self._store.get_state, now_ms),
            terms=self.allowances.terms_for(name),
        )
        self.suspensions.apply_to(site)
        return site

    def sweep(self, limit: int) -> None:
        """Forget sites that have long been out of use, at most `limit`."""
        for site in self.sites.sweep(self._clock.monotonic_ns(), limit):
            self.allowances.forget(site.name)
            for key, value in settled_counts(self.sites, site).items():
                self._store.put_state(key, value.to_bytes(8, "big"))


def _longest_ms(profiles: Iterable[Profile]) -> int:
    """The longest time for which something may be suspended."""
    rules = [GENERIC_BLOCK, *(rule for profile in profiles for rule in profile.automation)]
    return max(PROVISIONAL_MS, *(round(rule.duration * 1000) for rule in rules))

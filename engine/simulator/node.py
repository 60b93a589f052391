"""One region of a simulation: the engine's own scheduler, sites, suspensions, allowances, observer and source owners.

Nothing of them is copied or replaced. What a region gets from elsewhere is simple here: the spool's state is a dict of
the same keys and bytes, an owner's actor is its engine object behind the same encoded messages, and the pools are the
loop of engine/simulator/simulation.py. `restart` throws everything away but the stored bytes, as a crash does.
"""

import asyncio
from typing import Any

import msgpack

from engine.config.schema import FleetConfig
from engine.providers.profiles import Profile
from engine.region.daily import counts_of
from engine.region.enforcement import Enforcement
from engine.region.sites import Site
from engine.reputation.allowance import decode_summary, encode_answer
from engine.reputation.source import SourceOwner
from engine.values.clock import Clock
from engine.warmup.warmup import LONG_TAIL, provider_of
from native.scheduler import Scheduler

KEPT_EVENTS = 20_000


class Store:
    """The state part of a spool, in memory, and its outbox."""

    def __init__(self) -> None:
        self.state: dict[str, bytes] = {}
        self.events: list[tuple[int, str, dict[str, Any]]] = []
        self.dropped_events = 0

    def get_state(self, key: str) -> bytes | None:
        return self.state.get(key)

    def put_state(self, key: str, value: bytes) -> None:
        self.state[key] = value

    def note_events(self, events: list[tuple[int, str, dict[str, Any]]]) -> None:
        room = KEPT_EVENTS - len(self.events)
        self.events += events[:room]
        self.dropped_events += max(0, len(events) - room)


class Node:
    """See the module docstring. `horizon_ns` is how far ahead the scheduler grants: the simulation's step."""

    def __init__(
        self,
        *,
        config: FleetConfig,
        region: str,
        profiles: dict[str, Profile],
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
        seed: int,
        horizon_ns: int,
    ) -> None:
        self._config = config
        self.region = region
        self._profiles = profiles
        self._clock = clock
        self._loop = loop
        self._seed = seed
        self._horizon_ns = horizon_ns
        self.store = Store()
        self.owners: dict[str, SourceOwner] = {}
        self.is_up = True
        self.starts = 0
        self._begin()

    def _begin(self) -> None:
        """As Region.__init__ and Region.start do it."""
        self.starts += 1
        self.scheduler = Scheduler(seed=self._seed + self.starts, horizon_ns=self._horizon_ns)
        self.enforcement = Enforcement(
            config=self._config,
            region=self.region,
            profiles=self._profiles,
            scheduler=self.scheduler,
            store=self.store,
            clock=self._clock,
            sources=self,
            wake=lambda: None,
        )
        self.sites = self.enforcement.sites
        self.suspensions = self.enforcement.suspensions
        self.allowances = self.enforcement.allowances
        self.tenants = self.enforcement.tenants
        self.observer = self.enforcement.observer
        self.paths = self.enforcement.paths
        self.enforcement.restore()

    def restart(self) -> None:
        """The region's process has died and starts again from what is stored. Its sources' owners live on."""
        self._begin()

    def restart_owner(self, source: str) -> None:
        """An owner's process has died: it loads its state when it is asked again."""
        self.owners.pop(source, None)

    def open(self, name: str) -> Site:
        """The site of that name, as Region opens it at the first message for it."""
        provider = provider_of(name)
        return self.enforcement.open(name, provider if provider in self._profiles else LONG_TAIL)

    def keep_counts(self, cells: list[tuple[Site, int]]) -> None:
        """As a dispatch does before its batch is handed over."""
        for key, value in counts_of(self.sites, cells, self._clock.wall_ms()).items():
            self.store.put_state(key, value.to_bytes(8, "big"))

    def exchange(self) -> None:
        """Report to the owners and apply their answers, now."""
        self._loop.run_until_complete(self.observer.exchange())

    # -- the port to the sources' owners, as actors/egress_ip.py is

    async def observe(self, source: str, summary: bytes) -> bytes:
        owner = self.owner(source)
        decoded = decode_summary(summary)
        answer = owner.observe(decoded)
        if owner.is_due_to_save(decoded.at_ms):
            owner.saved(decoded.at_ms)
            self.store.put_state(f"source/{source}", msgpack.packb(owner.to_state()))
        return encode_answer(answer)

    def owner(self, source: str) -> SourceOwner:
        found = self.owners.get(source)
        if found is None:
            state = self.store.get_state(f"source/{source}")
            if state is None:
                found = SourceOwner(self._config, source)
            else:
                found = SourceOwner.from_state(self._config, source, msgpack.unpackb(state))
            self.owners[source] = found
        return found

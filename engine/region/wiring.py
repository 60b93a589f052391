"""What a region consists of, and how the parts are joined: who has whom, and who is told of what.

Nothing happens here: the region (engine/region/region.py) starts the parts, calls them, and ends them.
"""

import asyncio
import random
import struct
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from engine.bounces.classifier import shipped_classifier
from engine.bounces.judge import Judge
from engine.bounces.unknown import STATE_KEY as UNKNOWN_REPLIES
from engine.bounces.unknown import UnknownReplies
from engine.config.schema import FleetConfig
from engine.providers.profiles import load_profiles
from engine.region.attaching import Attaching
from engine.region.awaiting import AwaitedDispatch, awaited
from engine.region.cancelling import Cancelling
from engine.region.cover import Cover
from engine.region.depth import Depth
from engine.region.dispatch import Dispatcher
from engine.region.enforcement import Enforcement
from engine.region.expiry import Expiry
from engine.region.figures import RegionFigures
from engine.region.flows import Flows
from engine.region.handing import Handing, HandoverPort, NoHandover
from engine.region.held import HeldMail
from engine.region.intake import Intake
from engine.region.late import LateReports
from engine.region.listings import Listings
from engine.region.notices import Notices
from engine.region.outcomes import Outcomes
from engine.region.outgoing import PeerLink
from engine.region.ports import AddressQuestions, PoolLauncher, SourcePort
from engine.region.resting import Resting
from engine.region.retry import schedule_of
from engine.region.routing import Routing
from engine.region.settling import Settling
from engine.region.tally import FlowTally
from engine.region.waits import Waits
from engine.region.windows import Windows
from engine.routing.router import Router
from engine.spool.store import Spool
from engine.suppression.spread import NoPeers, PeerPort, Spread
from engine.tls.ledger import TlsLedger
from engine.values.clock import Clock
from engine.values.stream import Stream
from native.scheduler import Scheduler

SLOW = 1 / 3  # of the time after which a stall is an alert: a pace that is slower proves nothing in it


@dataclass(frozen=True, slots=True)
class RegionPorts:
    """What a region is given: see engine/region/ports.py."""

    launcher: PoolLauncher
    sources: SourcePort
    peers: PeerPort = NoPeers()  # noqa: RUF009 - it has no state
    resolver: AddressQuestions | None = None  # for block lists; without it none is asked
    link: PeerLink | None = None  # for copies in other regions; None without `replicas`
    handover: HandoverPort = NoHandover()  # noqa: RUF009 - it has no state


class Parts:
    """See the module docstring. `spawn` starts a background task of the region."""

    def __init__(
        self,
        *,
        config: FleetConfig,
        name: str,
        spool: Spool,
        router: Router,
        ports: RegionPorts,
        clock: Clock,
        seed: int,
        cores: int,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._spool = spool
        self._clock = clock
        self.scheduler = Scheduler(seed=seed)
        self.enforcement = Enforcement(
            config=config,
            region=name,
            profiles=load_profiles(config.providers),
            scheduler=self.scheduler,
            store=spool,
            clock=clock,
            sources=ports.sources,
            wake=self._wake_pools,
        )
        self.sites = self.enforcement.sites
        self.observer = self.enforcement.observer
        self.tenants = self.enforcement.tenants
        streams = frozenset(
            int(Stream.parse(str(stream)))
            for source in self.sites.sources.values()
            for stream in source.streams
        )
        retry = {int(stream): schedule_of(config, stream) for stream in Stream}
        self.flows = Flows(scheduler=self.scheduler, sites=self.sites)
        self.listings: Listings | None = None
        if ports.resolver is not None:
            self.listings = Listings(
                config=config.blocklists,
                sites=self.sites,
                resolver=ports.resolver,
                store=spool,
                events=spool,
                clock=clock,
                tell=self.observer.note_listed,
            )
        self.tally = FlowTally(place_of=self._place_of, provider=self.sites.pools.name)
        self.cover: Cover | None = None
        if config.fleet.replicas and ports.link is not None:
            self.cover = Cover(
                config=config,
                name=name,
                spool=spool,
                clock=clock,
                link=ports.link,
                spawn=spawn,
                ready=self._offer,
                forget=self._forget,
                leased=self._wake_pools,
            )
        self.resting: Resting | None = None
        if self.cover is None:
            self.resting = Resting(
                name=name,
                numbers={region.name: region.number for region in config.regions},
                spool=spool,
                offer=self._offer,
                wake=self._wake_pools,
            )
        self.windows = Windows(
            index=spool,
            scheduler=self.scheduler,
            clock=clock,
            limits=config.limits,
            flows=self.flows,
            want_route=lambda domain: self.routing.want(domain),
            expire=lambda keys: self.outcomes.expire(keys),
            wake_pool=self._wake_pool,
        )
        self.handing = Handing(
            config=config,
            name=name,
            spool=spool,
            clock=clock,
            port=ports.handover,
            cover=self.cover,
            is_waiting=self.is_waiting,
            scheduler=self.scheduler,
            windows=self.windows,
            paths=self.enforcement.paths,
            sites=self.sites,
            waits=Waits(flows=self.flows, windows=self.windows, sites=self.sites),
            is_full=self._is_full,
            offer=self._offer,
            wake=self._wake_pools,
            spawn=spawn,
        )
        self.intake = Intake(
            config=config,
            name=name,
            spool=spool,
            clock=clock,
            streams=streams,
            retry=retry,
            cover=self.cover,
            offer=self._offer,
            gate=self.handing,
            accepted=self.tally.accepted,
        )
        self.dispatcher = Dispatcher(
            scheduler=self.scheduler,
            windows=self.windows,
            sites=self.sites,
            spool=AwaitedDispatch(spool, self._stopped),
            launcher=ports.launcher,
            clock=clock,
            limits=config.limits,
            epoch=spool.epoch,
            spawn=spawn,
            lost=lambda name, ids: self.outcomes.lost(name, ids),
            attach=lambda name, port, has_died: self.attaching.attach(name, port, has_died),
            cores=cores,
            term=self.term,
        )
        self.expiry = Expiry(
            index=spool,
            scheduler=self.scheduler,
            expire=lambda keys: self.outcomes.expire(keys),
            freed=self._wake_pools,
        )
        self.tls = TlsLedger(spool, clock)
        self.judge = Judge(shipped_classifier(), UnknownReplies(spool.get_state(UNKNOWN_REPLIES)))
        settling = Settling(
            config=config,
            spool=spool,
            windows=self.windows,
            site_name=lambda flow: self.sites.site(self.scheduler.site_of(flow)).name,
            judge=self.judge,
            retry=retry,
            rng=random.Random(seed),
        )
        self.outcomes = Outcomes(
            scheduler=self.scheduler,
            sites=self.sites,
            windows=self.windows,
            spool=spool,
            settling=settling,
            observer=self.observer,
            tenants=self.tenants,
            tls=self.tls,
            tally=self.tally,
            cover=self.cover,
            clock=clock,
            finished=self.dispatcher.finished,
            spawn=spawn,
        )
        self.attaching = Attaching(epoch=spool.epoch, windows=self.windows, outcomes=self.outcomes)
        self.routing = Routing(
            router=router,
            windows=self.windows,
            enforcement=self.enforcement,
            outcomes=self.outcomes,
            has_lease=self.has_lease,
            spawn=spawn,
        )
        self.depth = Depth(
            spool=spool,
            clock=clock,
            place_of=self._place_of,
            in_flight=self.dispatcher.in_flight,
            provider=self.sites.pools.name,
            held=HeldMail(
                windows=self.windows,
                scheduler=self.scheduler,
                sites=self.sites,
                paths=self.enforcement.paths,
                clock=clock,
                slow_s=config.alerts.stall.after * SLOW,
            ),
        )
        self.figures = RegionFigures(
            spool=spool,
            tally=self.tally,
            depth=self.depth,
            dispatcher=self.dispatcher,
            tls=self.tls,
            allowances=self.enforcement.allowances,
            cover=self.cover,
            is_waiting=self.is_waiting,
            clock=clock,
        )
        self.late = LateReports(
            store=spool,
            act=lambda *about: awaited(spool.report_sent(*about)),
            classifier=shipped_classifier(),
            config=config.suppression,
            observer=self.observer,
            tenants=self.tenants,
        )
        self.notices = Notices(
            spool,
            submit=self.intake.accept_own,
            expire_ms={number: schedule.expire_ms for number, schedule in retry.items()},
            streams=streams,
            reporter=config.ingress.name or next(s.ehlo for s in config.sources if s.region == name),
            clock=clock,
        )
        self.cancelling = Cancelling(
            scheduler=self.scheduler,
            windows=self.windows,
            spool=spool,
            is_offered=self.handing.is_offered,
            settled=self._stopped,
        )
        self.spread = Spread(spool, name, [r.name for r in config.regions if r.name != name], ports.peers)

    def _offer(self, due_keys: Sequence[bytes]) -> None:
        """These are due now or later."""
        if due_keys:
            self.windows.offer(sorted(due_keys), self._clock.wall_ms())

    def _forget(self, ids: Sequence[int]) -> None:
        """Another region owns these now. What a pool has of them it gives back, because the lease is another."""
        self.scheduler.remove(struct.pack(f"<{len(ids)}Q", *ids))

    def _stopped(self, ids: list[int]) -> None:
        """These were settled as cancelled, or as suppressed when they were to be dispatched."""
        if self.cover is not None:
            self.cover.settled(ids)

    def is_waiting(self) -> bool:
        """It has kept copies, keeps none any more, and Fleet has not said that all may go on."""
        return self.resting is not None and bool(self.resting.number)

    def has_lease(self) -> bool:
        """Whether what waits here is this region's to settle. False: another may own it, and have sent it."""
        return not self.is_waiting() if self.cover is None else self.cover.may_dispatch()

    def term(self) -> int | None:
        """The epoch under which mail may be handed to pools; 0 in a fleet without copies. None: not now."""
        if self.handing.holds_dispatch() or self.is_waiting():
            return None
        if self.cover is None:
            return 0
        return self.cover.term if self.cover.may_dispatch() else None

    def _is_full(self, site: str) -> bool:
        """Whether the pool of a site has no room for more."""
        if not self.sites.known(site):
            return False
        return self.dispatcher.is_full(self.sites.site(self.sites.number(site)).pool)

    def _wake_pool(self, pool: int) -> None:
        self.dispatcher.wake(pool)

    def _wake_pools(self) -> None:
        self.dispatcher.wake_all()

    def _place_of(self, queue: bytes) -> tuple[int, int]:
        """The stream and the pool (-1: no route yet) of a spool queue, by its number's four bytes."""
        number = int.from_bytes(queue, "big")
        known = self.windows.get(number)
        return (self._spool.known_queue(number)[1], -1) if known is None else (known.stream, known.pool)

"""A region: accepts mail onto disk, decides when and from where it goes, settles what became of it.

Owns the spool (as its single writer), the scheduler, the windows and the dispatcher. Does not know how a pool runs,
what a socket is, or that Ray exists.

Order of durable steps for one message: accepted (receipt after the sync) -> in-flight record -> on the wire ->
settled. A crash between two of them loses nothing: after a restart what was in flight is due again, with the mark
that it may have been sent (contract, promise 3).
"""

import asyncio
import logging
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.bounces.classifier import shipped_classifier
from engine.bounces.judge import Judge
from engine.bounces.signal import decode_signal
from engine.bounces.unknown import STATE_KEY as UNKNOWN_REPLIES
from engine.bounces.unknown import UnknownReplies
from engine.config.schema import FleetConfig
from engine.delivery.wire import decode_resume
from engine.failover.handover import Reply as HandoverReply
from engine.failover.handover import Request as HandoverRequest
from engine.failover.messages import Beat, BeatReply
from engine.failover.messages import Message as PeerMessage
from engine.metrics.catalogue import Point
from engine.providers.profiles import load_profiles
from engine.region.awaiting import AwaitedDispatch, awaited
from engine.region.background import Background
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
from engine.region.ports import AddressQuestions, PoolLauncher, PoolName, SourcePort
from engine.region.retry import schedule_of
from engine.region.routing import Routing
from engine.region.settling import Settling
from engine.region.tally import FlowTally
from engine.region.windows import Windows
from engine.routing.route import Failure
from engine.routing.router import Router
from engine.spool.store import Spool
from engine.suppression.spread import NoPeers, PeerPort, Spread
from engine.tls.ledger import TlsLedger
from engine.values.clock import Clock
from engine.values.ids import format_id
from engine.values.quality import Quality
from engine.values.stream import Stream
from engine.values.suppression import checked, decode_rows, encode_rows
from native.scheduler import Scheduler

log = logging.getLogger(__name__)

TICK_S = 0.05
BOOKS_S = 5.0
SLOW = 1 / 3  # of the time after which a stall is an alert: a pace that is slower proves nothing in it
SWEEP = 500  # queues, flows and sites that are looked at in one tick


@dataclass(frozen=True, slots=True)
class RegionPorts:
    """What a region is given: see engine/region/ports.py."""

    launcher: PoolLauncher
    sources: SourcePort
    peers: PeerPort = NoPeers()  # noqa: RUF009 - it has no state
    resolver: AddressQuestions | None = None  # for block lists; without it none is asked
    link: PeerLink | None = None  # for copies in other regions; None without `replicas`
    handover: HandoverPort = NoHandover()  # noqa: RUF009 - it has no state


class Region:
    """One region (or shard of a region). All methods run on one event loop."""

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
        cores: int = 1,
    ) -> None:
        self._config = config
        self.name = name
        self._spool = spool
        self._router = router
        self._ports = ports
        self._clock = clock
        self._rng = random.Random(seed)
        self._background = Background(name)
        self._scheduler = Scheduler(seed=seed)
        self._enforcement = Enforcement(
            config=config,
            region=name,
            profiles=load_profiles(config.providers),
            scheduler=self._scheduler,
            store=spool,
            clock=clock,
            sources=ports.sources,
            wake=self._wake_pools,
        )
        self._sites = self._enforcement.sites
        self._observer = self._enforcement.observer
        self._tenants = self._enforcement.tenants
        streams = frozenset(
            int(Stream.parse(str(stream)))
            for source in self._sites.sources.values()
            for stream in source.streams
        )
        self._retry = {int(stream): schedule_of(config, stream) for stream in Stream}
        self._flows = Flows(scheduler=self._scheduler, sites=self._sites)
        self._listings: Listings | None = None
        if ports.resolver is not None:
            self._listings = Listings(
                config=config.blocklists,
                sites=self._sites,
                resolver=ports.resolver,
                store=spool,
                events=spool,
                clock=clock,
                tell=self._observer.note_listed,
            )
        self._tally = FlowTally(place_of=self._place_of, provider=self._sites.pools.name)
        self._cover: Cover | None = None
        if config.fleet.replicas and ports.link is not None:
            self._cover = Cover(
                config=config,
                name=name,
                spool=spool,
                clock=clock,
                link=ports.link,
                spawn=self._background.spawn,
                ready=self._offer,
                forget=self._forget,
                leased=self._wake_pools,
            )
        self._windows = Windows(
            index=spool,
            scheduler=self._scheduler,
            clock=clock,
            limits=config.limits,
            flows=self._flows,
            want_route=lambda domain: self._routing.want(domain),
            expire=lambda keys: self._outcomes.expire(keys),
            wake_pool=self._wake_pool,
        )
        self._handing = Handing(
            config=config,
            name=name,
            spool=spool,
            clock=clock,
            port=ports.handover,
            cover=self._cover,
            scheduler=self._scheduler,
            windows=self._windows,
            paths=self._enforcement.paths,
            sites=self._sites,
            offer=self._offer,
            wake=self._wake_pools,
            spawn=self._background.spawn,
        )
        self._intake = Intake(
            config=config,
            name=name,
            spool=spool,
            clock=clock,
            streams=streams,
            retry=self._retry,
            cover=self._cover,
            offer=self._offer,
            gate=self._handing,
            accepted=self._tally.accepted,
        )
        self._dispatcher = Dispatcher(
            scheduler=self._scheduler,
            windows=self._windows,
            sites=self._sites,
            spool=AwaitedDispatch(spool, self._stopped),
            launcher=ports.launcher,
            clock=clock,
            limits=config.limits,
            epoch=spool.epoch,
            spawn=self._background.spawn,
            lost=lambda name, ids: self._outcomes.lost(name, ids),
            cores=cores,
            term=self._term,
        )
        self._expiry = Expiry(
            index=spool,
            scheduler=self._scheduler,
            expire=lambda keys: self._outcomes.expire(keys),
            freed=self._wake_pools,
        )
        self.tls = TlsLedger(spool, clock)
        self._judge = Judge(shipped_classifier(), UnknownReplies(spool.get_state(UNKNOWN_REPLIES)))
        self._settling = Settling(
            config=config,
            spool=spool,
            windows=self._windows,
            site_name=lambda flow: self._sites.site(self._scheduler.site_of(flow)).name,
            judge=self._judge,
            retry=self._retry,
            rng=self._rng,
        )
        self._outcomes = Outcomes(
            scheduler=self._scheduler,
            sites=self._sites,
            windows=self._windows,
            spool=spool,
            settling=self._settling,
            observer=self._observer,
            tenants=self._tenants,
            tls=self.tls,
            tally=self._tally,
            cover=self._cover,
            clock=clock,
            finished=self._dispatcher.finished,
            spawn=self._background.spawn,
        )
        self._routing = Routing(
            router=router,
            windows=self._windows,
            enforcement=self._enforcement,
            outcomes=self._outcomes,
            spawn=self._background.spawn,
        )
        self._depth = Depth(
            spool=spool,
            clock=clock,
            place_of=self._place_of,
            in_flight=self._dispatcher.in_flight,
            provider=self._sites.pools.name,
            held=HeldMail(
                windows=self._windows,
                scheduler=self._scheduler,
                sites=self._sites,
                paths=self._enforcement.paths,
                clock=clock,
                slow_s=config.alerts.stall.after * SLOW,
            ),
        )
        self._figures = RegionFigures(
            spool=spool,
            tally=self._tally,
            depth=self._depth,
            dispatcher=self._dispatcher,
            tls=self.tls,
            allowances=self._enforcement.allowances,
            cover=self._cover,
            clock=clock,
        )
        self._late = LateReports(
            store=spool,
            act=lambda *about: awaited(spool.report_sent(*about)),
            classifier=shipped_classifier(),
            config=config.suppression,
            observer=self._observer,
            tenants=self._tenants,
        )
        self._notices = Notices(
            spool,
            submit=self._intake.accept_own,
            expire_ms={number: schedule.expire_ms for number, schedule in self._retry.items()},
            streams=streams,
            reporter=config.ingress.name or next(s.ehlo for s in config.sources if s.region == name),
            clock=clock,
        )
        self._cancelling = Cancelling(
            scheduler=self._scheduler,
            windows=self._windows,
            spool=spool,
            is_offered=self._handing.is_offered,
            settled=self._stopped,
        )
        self._spread = Spread(spool, name, [r.name for r in config.regions if r.name != name], ports.peers)

    # -- life

    async def start(self) -> None:
        """Recover from the spool, attach the pools that outlived us, and begin to send."""
        for number, domain, stream, tenant, campaign, first_due_ms in self._spool.waiting_queues():
            self._windows.learn(number, domain, stream, tenant, campaign, first_due_ms)
        self._enforcement.restore()
        if self._listings is not None:
            self._listings.restore()
            self._background.spawn(self._listings.run())
        for name in await self._ports.launcher.survivors():
            try:
                await self._attach(name)
            except ConnectionError as error:
                # it has died since; what it held is on disk, marked by the spool's recovery
                log.warning("region %s: pool %s did not survive: %s", self.name, name, error)
        self._dispatcher.adopt()
        self._background.spawn(self._tick())
        self._background.spawn(self._observer.run())
        self._background.spawn(self._spread.run())
        self._background.spawn(self._notices.run())
        self._background.spawn(self._keep_books())
        self._background.spawn(self._depth.run())
        if self._cover is not None:
            self._background.spawn(self._cover.run())
        await self._handing.start()
        self._background.spawn(self._handing.run())

    async def _attach(self, name: PoolName) -> None:
        """Settle what a pool that outlived us has done meanwhile, and leave it what it has on the wire."""
        died = asyncio.Event()
        port = await self._ports.launcher.launch(name, lambda name: self._survivor_died(name, died))
        state = decode_resume(await port.resume(self._spool.epoch))
        await self._outcomes.settle_outcomes(state.outcomes, state.batch_numbers)
        await port.acknowledge(state.sequence)
        if not died.is_set():
            self._dispatcher.attach(name, port, state.sources)
            self._windows.hold(str(name), state.in_progress)

    def _survivor_died(self, name: PoolName, died: asyncio.Event) -> None:
        died.set()
        self._dispatcher.pool_died(name)

    async def pause(self) -> None:
        """Hand nothing more to pools; returns when nothing is on its way to one. Their outcomes are still settled."""
        await self._dispatcher.pause()

    async def stop(self) -> None:
        """Stop sending and leave everything on disk. The spool is closed by whoever opened it."""
        self._dispatcher.paused = True
        await self._background.stop()
        if self._cover is not None:
            self._cover.close()
        self._keep_unknown_replies()
        self._tenants.save(now=True)
        self.tls.save(now=True)

    def check(self) -> None:
        """Raise RegionFailed if a background task has failed."""
        self._background.check()

    async def wait_failed(self) -> None:
        """Return when a background task has failed: nothing but another start from the spool helps then."""
        await self._background.wait_failed()

    async def _tick(self) -> None:
        while True:
            self._sites.new_day(self._clock.wall_ms())
            self._windows.tick()
            self._expiry.tick(self._clock.wall_ms(), self._clock.monotonic_ns())
            self._sweep()
            await asyncio.sleep(TICK_S)

    def _sweep(self) -> None:
        """Forget what has nothing waiting and nothing on the wire: a region lives for years and meets every domain."""
        self._windows.sweep(SWEEP)
        self._flows.sweep(self._clock.monotonic_ns(), SWEEP)
        self._enforcement.sweep(SWEEP)

    def _keep_unknown_replies(self) -> None:
        if self._judge.unknown.is_dirty:
            self._spool.put_state(UNKNOWN_REPLIES, self._judge.unknown.encode())

    async def _keep_books(self) -> None:
        while True:
            await asyncio.sleep(BOOKS_S)
            self._keep_unknown_replies()
            self.tls.save()

    # -- mail in, outcomes back

    async def accept(self, header: bytes, blob: bytes, *, again: bool = False) -> bytes:
        """Accept a batch (engine/values/submission.py). The answer is a receipt: what it names is on disk.

        `again`: another region may have accepted it before. RegionAway: nothing is promised.
        """
        self.check()
        return await self._intake.accept(header, blob, again=again)

    async def put_campaign(self, record: bytes) -> int:
        """Store a campaign's template (msgpack of CampaignRecord's fields); returns its number here."""
        self.check()
        return await self._intake.put_campaign(record)

    def progress(self, tenant: str, campaign: str) -> list[int]:
        """Numbers of the campaign's chunks that are safe in this region."""
        return self._intake.progress(tenant, campaign)

    async def accept_chunk(self, data: bytes) -> bytes:
        """Accept a campaign chunk: msgpack [campaign_no, number, digest, field_names, recipients, fields]."""
        self.check()
        return await self._intake.accept_chunk(data)

    async def settle(self, report: bytes) -> int:
        """Settle a pool's report on disk; returns its sequence number, which the pool may then forget."""
        self.check()
        return await self._outcomes.settle(report)

    # -- failover

    def _offer(self, due_keys: Sequence[bytes]) -> None:
        """These are due now or later."""
        if due_keys:
            self._windows.offer(sorted(due_keys), self._clock.wall_ms())

    def _forget(self, ids: Sequence[int]) -> None:
        """Another region owns these now. What a pool has of them it gives back, because the lease is another."""
        self._scheduler.remove(struct.pack(f"<{len(ids)}Q", *ids))

    def _stopped(self, ids: list[int]) -> None:
        """These were settled as cancelled, or as suppressed when they were to be dispatched."""
        if self._cover is not None:
            self._cover.settled(ids)

    def _term(self) -> int | None:
        """The epoch under which mail may be handed to pools; 0 in a fleet without copies. None: not now."""
        if self._handing.holds_dispatch():
            return None
        if self._cover is None:
            return 0
        return self._cover.term if self._cover.may_dispatch() else None

    async def drain(self, on: bool) -> bool:
        """Begin or end draining; on disk when this returns. False: it was so already. ValueError: nobody to give to."""
        self.check()
        return await self._handing.drain(on)

    async def hand_over(self, request: HandoverRequest) -> HandoverReply | None:
        """A peer's request about messages that it hands over; None: it is to ask again."""
        self.check()
        return await self._handing.answer(request)

    @property
    def condition(self) -> str:
        """`up`, `draining`, `drained` or `returning`."""
        return str(self._handing.status()["condition"])

    def beat(self, beat: Beat) -> BeatReply | None:
        self.check()
        return None if self._cover is None else self._cover.beat(beat)

    def hear(self, sender: str, messages: Sequence[PeerMessage]) -> None:
        """Messages of the failover protocol from another region."""
        if self._cover is not None:
            self._cover.receive(sender, messages)

    def _wake_pool(self, pool: int) -> None:
        self._dispatcher.wake(pool)

    def _wake_pools(self) -> None:
        self._dispatcher.wake_all()

    # -- what comes back later

    async def report(self, data: bytes) -> str:
        """An authenticated bounce or complaint (engine/bounces/signal.py); the answer is its effect, on disk."""
        self.check()
        return str(await self._late.take(decode_signal(data)))

    # -- suppression

    async def suppress(self, data: bytes, *, spread: bool) -> int:
        """Take rows into the suppression list; how many changed something. `spread`: pass them on to the peers.

        ValueError: a row that begins here names no address or list; nothing was changed.
        """
        self.check()
        rows = decode_rows(data)
        if spread:
            rows = [checked(row) for row in rows]
        return await awaited(self._spool.suppress(rows, log=spread))

    async def unsubscribe(self, data: bytes) -> int:
        """An authenticated request of a recipient: its row and event; the peers hear of it."""
        self.check()
        rows = decode_rows(data)
        events = [
            (
                row.at_ms,
                "unsubscribe",
                {
                    "id": format_id(row.message_id),
                    "recipient": row.address,
                    "tenant": row.tenant,
                    "stream": "" if row.stream < 0 else str(Stream(row.stream)),
                },
            )
            for row in rows
        ]
        return await awaited(self._spool.suppress(rows, log=True, events=events))

    async def repeat_suppressions(self, to: str) -> None:
        """A peer whose disk is new asks for the whole list. ValueError: it is no peer."""
        self.check()
        await awaited(self._spread.repeat(to))

    def suppressions(self, after: bytes, limit: int) -> tuple[bytes, bytes]:
        """A page of the list behind `after` (b"": the first), and where the next one begins (b"": that was all)."""
        following, rows = self._spool.suppressions(after, limit)
        return following, encode_rows(rows)

    def suppressions_of(self, address: str) -> bytes:
        """Every row of one address."""
        return encode_rows(self._spool.suppressions_of(address))

    # -- looking in

    def status(self, message_id: int) -> dict[str, object] | None:
        return self._spool.status(message_id)

    async def trace(
        self, message_id: int, recipient: str, stream: int, tenant: str
    ) -> dict[str, object] | None:
        """Where a message stands, the site it goes to, and which sources may carry it now; None if it was never
        accepted here. The last three are used for a message that is not queued any more (its events name them)."""
        status = self._spool.status(message_id)
        if status is None:
            return None
        found: dict[str, object] = {"status": status, "region": self.name, "site": "", "paths": []}
        record = self._spool.message(message_id)
        if record is not None:
            recipient = record.recipient
            try:
                _, stream, tenant, _ = self._spool.queue(record.queue)
            except KeyError as error:
                return {**found, "route": str(error.args[0])}
        if not recipient:
            return found
        route = await self._router.route(recipient.rpartition("@")[2])
        if isinstance(route, Failure):
            return {**found, "route": str(route.reply)}
        paths = self._enforcement.paths.explain(route.site, stream, tenant, self._clock.wall_ms())
        return {**found, "site": route.site, "provider": route.provider, "paths": paths}

    async def cancel(self, ids: Sequence[int]) -> int:
        """Cancel queued messages that are not on the wire; returns how many were."""
        return await self._cancelling.cancel(ids)

    def review(self, source: str, site: str) -> None:
        """An operator has given an order to a source's owner about a site: it takes effect with the next report,
        which leaves at once."""
        self._observer.review(source, site)

    def move_tenant(self, tenant: str, quality: str) -> bool:
        """An operator puts a tenant into a class; whether that changes anything. ValueError: not allowed."""
        changed = self._tenants.order(tenant, Quality.parse(quality))
        if changed:
            self._dispatcher.wake_all()
        return changed

    def _place_of(self, queue: bytes) -> tuple[int, int]:
        """The stream and the pool (-1: no route yet) of a spool queue, by its number's four bytes."""
        number = int.from_bytes(queue, "big")
        known = self._windows.get(number)
        return (self._spool.known_queue(number)[1], -1) if known is None else (known.stream, known.pool)

    def figures(self) -> list[Point]:
        """For metrics and alerts (engine/metrics/catalogue.py)."""
        return self._figures.points(self._enforcement.suspensions.in_force())

    def pool_names(self) -> list[PoolName]:
        """The processes of pools that run."""
        return self._dispatcher.pool_names()

    async def note_alerts(self, rows: Sequence[tuple[int, str, dict[str, Any]]]) -> None:
        """Put alerts that began or ended into the outbox: on disk when this returns."""
        await awaited(self._spool.note_events(list(rows)))

    def snapshot(self) -> dict[str, object]:
        """Counts and gauges for status pages and benches."""
        cover = {} if self._cover is None else {"failover": self._cover.status()}
        return {
            **cover,
            "hand_over": self._handing.status(),
            "region": self.name,
            "epoch": self._spool.epoch,
            "tls": self.tls.listing(),
            "counts": self._spool.counts(),
            "outstanding": self._dispatcher.outstanding(),
            "batches": self._dispatcher.batches(),
            "pool_busy": self._dispatcher.busy(),
            "spool": self._spool.sizes(),
            "spool_queues": len(self._windows),
            "backlogged_queues": self._windows.backlogged(),
            "unrouted_domains": self._windows.unrouted_domains(),
            "sites": len(self._sites),
            "campaigns": len(self._sites.campaigns),
            "scheduler": self._scheduler.stats(),
            "suspensions": self._enforcement.suspensions.listing(),
            "allowances": self._enforcement.allowances.listing(),
            "granted": self._sites.granted(),
            "tenants": self._tenants.listing(),
            "blocklists": self._listings.listing() if self._listings is not None else {},
            "remembered": self._spool.remembered(),
            "suppression": {"rows": self._spool.suppression_rows(), "waiting": self._spread.waiting()},
        }

"""A region: accepts mail onto disk, decides when and from where it goes, settles what became of it.

Owns the spool (as its single writer), the scheduler, the windows and the dispatcher. Does not know how a pool runs,
what a socket is, or that Ray exists.

Order of durable steps for one message: accepted (receipt after the sync) -> in-flight record -> on the wire ->
settled. A crash between two of them loses nothing: after a restart what was in flight is due again, with the mark
that it may have been sent (contract, promise 3).
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from engine.bounces.signal import decode_signal
from engine.bounces.unknown import STATE_KEY as UNKNOWN_REPLIES
from engine.config.schema import FleetConfig
from engine.failover.handover import Reply as HandoverReply
from engine.failover.handover import Request as HandoverRequest
from engine.failover.messages import Beat, BeatReply, Behind
from engine.failover.messages import Message as PeerMessage
from engine.metrics.catalogue import Point
from engine.region.awaiting import awaited
from engine.region.background import Background
from engine.region.leaving import Rest
from engine.region.ports import PoolName, RegionAway
from engine.region.wiring import Parts, RegionPorts
from engine.routing.route import Failure
from engine.routing.router import Router
from engine.spool.store import Spool
from engine.values.clock import Clock
from engine.values.ids import format_id
from engine.values.quality import Quality
from engine.values.stream import Stream
from engine.values.suppression import checked, decode_rows, encode_rows

log = logging.getLogger(__name__)

TICK_S = 0.05
BOOKS_S = 5.0
ATTACH_AGAIN_S = 0.2
SWEEP = 500  # queues, flows and sites that are looked at in one tick


class Region:
    """One region (or shard of a region). All methods run on one event loop.

    What it consists of and how that is joined: engine/region/wiring.py.
    """

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
        self.name = name
        self._spool = spool
        self._router = router
        self._ports = ports
        self._clock = clock
        self._background = Background(name)
        self.parts = Parts(
            config=config,
            name=name,
            spool=spool,
            router=router,
            ports=ports,
            clock=clock,
            seed=seed,
            cores=cores,
            spawn=self._background.spawn,
        )
        self.tls = self.parts.tls

    # -- life

    async def start(self) -> None:
        """Recover from the spool, attach the pools that outlived us, and begin to send."""
        parts, spawn = self.parts, self._background.spawn
        if parts.cover is not None:
            await awaited(self._spool.end_rest())  # before anybody can call this region dead
        for number, domain, stream, tenant, campaign, first_due_ms in self._spool.waiting_queues():
            parts.windows.learn(number, domain, stream, tenant, campaign, first_due_ms)
        parts.enforcement.restore()
        if parts.listings is not None:
            parts.listings.restore()
            spawn(parts.listings.run())
        for name in await self._ports.launcher.survivors():
            await self._attach(name)
        parts.dispatcher.adopt()
        spawn(self._tick())
        spawn(parts.observer.run())
        spawn(parts.spread.run())
        spawn(parts.notices.run())
        spawn(self._keep_books())
        spawn(parts.depth.run())
        if parts.cover is not None:
            spawn(parts.cover.run())
        await parts.handing.start()
        spawn(parts.handing.run())

    async def _attach(self, name: PoolName) -> None:
        """Settle what a pool that outlived us has done meanwhile, and leave it what it has on the wire.

        As long as it lives it is asked: what it says to somebody else, or later, is not listened to.
        """
        died = asyncio.Event()
        port = await self._ports.launcher.launch(name, lambda name: self._survivor_died(name, died))
        while not died.is_set():
            try:
                state = await self.parts.attaching.attach(name, port, died.is_set)
            except (ConnectionError, TimeoutError) as error:
                log.warning("region %s: pool %s is not attached: %s", self.name, name, error)
                await asyncio.sleep(ATTACH_AGAIN_S)
                continue
            if not died.is_set():
                self.parts.dispatcher.attach(name, port, state.sources)
                return
        # what it held is on disk, marked by the spool's recovery
        log.warning("region %s: pool %s did not survive", self.name, name)
        self.parts.windows.release_all(str(name))

    def _survivor_died(self, name: PoolName, died: asyncio.Event) -> None:
        died.set()
        self.parts.dispatcher.pool_died(name)

    async def pause(self) -> None:
        """Hand nothing more to pools; returns when nothing is on its way to one. Their outcomes are still settled."""
        await self.parts.dispatcher.pause()

    async def stop(self, rest: int = 0) -> None:
        """Stop sending and leave everything on disk. The spool is closed by whoever opened it.

        `rest`: the number of a stop of the whole fleet, whose Fleet has ended: what the regions are told then holds
        until the next start (engine/spool/rest.py). 0: others go on.
        """
        self.parts.dispatcher.paused = True
        await self._background.stop()
        cover = self.parts.cover
        if cover is not None:
            cover.close()
            if rest and cover.machine.is_at_rest():
                await awaited(self._spool.save_rest(rest))
        self._keep_unknown_replies()
        self.parts.tenants.save(now=True)
        self.tls.save(now=True)

    def rest(self) -> Rest:
        """Whether this region waits, with copies on its disk and none to be kept."""
        return Rest() if self.parts.resting is None else self.parts.resting.rest()

    async def drop_copies(self) -> None:
        """The first step out of that waiting, to be done by all before any takes the second, `begin_alone`."""
        if self.parts.resting is not None:
            await self.parts.resting.drop_copies()

    async def begin_alone(self) -> None:
        if self.parts.resting is not None:
            await self.parts.resting.begin_alone()

    def check(self) -> None:
        """Raise RegionFailed if a background task has failed."""
        self._background.check()

    async def wait_failed(self) -> None:
        """Return when a background task has failed: nothing but another start from the spool helps then."""
        await self._background.wait_failed()

    async def _tick(self) -> None:
        while True:
            self.parts.sites.new_day(self._clock.wall_ms())
            self.parts.windows.tick()
            if self._has_lease():  # otherwise a peer may own what waits here, and have sent it
                self.parts.expiry.tick(self._clock.wall_ms(), self._clock.monotonic_ns())
            self._sweep()
            await asyncio.sleep(TICK_S)

    def _has_lease(self) -> bool:
        return self.parts.has_lease()

    def _sweep(self) -> None:
        """Forget what has nothing waiting and nothing on the wire: a region lives for years and meets every domain."""
        self.parts.windows.sweep(SWEEP)
        self.parts.flows.sweep(self._clock.monotonic_ns(), SWEEP)
        self.parts.enforcement.sweep(SWEEP)

    def _keep_unknown_replies(self) -> None:
        if self.parts.judge.unknown.is_dirty:
            self._spool.put_state(UNKNOWN_REPLIES, self.parts.judge.unknown.encode())

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
        return await self.parts.intake.accept(header, blob, again=again)

    async def put_campaign(self, record: bytes) -> int:
        """Store a campaign's template (msgpack of CampaignRecord's fields); returns its number here."""
        self.check()
        return await self.parts.intake.put_campaign(record)

    def progress(self, tenant: str, campaign: str) -> dict[int, bytes]:
        """Numbers and digests of the campaign's chunks that are safe in this region."""
        return self.parts.intake.progress(tenant, campaign)

    async def accept_chunk(self, data: bytes, *, again: bool = False) -> bytes:
        """Accept a campaign chunk (engine/region/intake.py)."""
        self.check()
        return await self.parts.intake.accept_chunk(data, again=again)

    async def settle(self, report: bytes) -> int:
        """Settle a pool's report on disk; returns its sequence number, which the pool may then forget."""
        self.check()
        return await self.parts.outcomes.settle(report)

    # -- failover

    async def drain(self, on: bool) -> bool:
        """Begin or end draining; on disk when this returns. False: it was so already. ValueError: nobody to give to."""
        self.check()
        return await self.parts.handing.drain(on)

    async def hand_over(self, request: HandoverRequest) -> HandoverReply | None:
        """A peer's request about messages that it hands over; None: it is to ask again."""
        self.check()
        return await self.parts.handing.answer(request)

    @property
    def condition(self) -> str:
        """`up`, `draining`, `drained` or `returning`; `refusing`: up, but there is no standby for what it would accept,
        or it was called dead and has not returned. `waiting`: up, and it sends nothing before all may go on without
        copies."""
        condition = str(self.parts.handing.status()["condition"])
        cover = self.parts.cover
        if condition == "up" and self.parts.is_waiting():
            return "waiting"
        return "refusing" if condition == "up" and cover is not None and cover.refusal() else condition

    def beat(self, beat: Beat) -> BeatReply | Behind | None:
        self.check()
        return None if self.parts.cover is None else self.parts.cover.beat(beat)

    def hear(self, sender: str, messages: Sequence[PeerMessage]) -> None:
        """Messages of the failover protocol from another region."""
        if self.parts.cover is not None:
            self.parts.cover.receive(sender, messages)

    # -- what comes back later

    async def report(self, data: bytes) -> str:
        """An authenticated bounce or complaint (engine/bounces/signal.py); the answer is its effect, on disk."""
        self.check()
        return str(await self.parts.late.take(decode_signal(data)))

    # -- suppression

    async def suppress(self, data: bytes, *, spread: bool) -> int:
        """Take rows into the suppression list; how many changed something. `spread`: pass them on to the peers.

        ValueError: a row that begins here names no address or list; nothing was changed.
        """
        self.check()
        rows = decode_rows(data)
        if spread:
            now_ms = self._clock.wall_ms()
            rows = [checked(row, now_ms) for row in rows]
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
        await awaited(self.parts.spread.repeat(to))

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
        paths = self.parts.enforcement.paths.explain(route.site, stream, tenant, self._clock.wall_ms())
        return {**found, "site": route.site, "provider": route.provider, "paths": paths}

    async def cancel(self, ids: Sequence[int]) -> int:
        """Cancel queued messages that are not on the wire; returns how many were.

        RegionAway: none is; another region may own them now.
        """
        if not self._has_lease():
            raise RegionAway(f"region {self.name}: no lease: another may own these messages")
        return await self.parts.cancelling.cancel(ids)

    def review(self, source: str, site: str) -> None:
        """An operator has given an order to a source's owner about a site: it takes effect with the next report,
        which leaves at once."""
        self.parts.observer.review(source, site)

    def move_tenant(self, tenant: str, quality: str) -> bool:
        """An operator puts a tenant into a class; whether that changes anything. ValueError: not allowed."""
        changed = self.parts.tenants.order(tenant, Quality.parse(quality))
        if changed:
            self.parts.dispatcher.wake_all()
        return changed

    def figures(self) -> list[Point]:
        """For metrics and alerts (engine/metrics/catalogue.py)."""
        return self.parts.figures.points(self.parts.enforcement.suspensions.in_force())

    def pool_names(self) -> list[PoolName]:
        """The processes of pools that run."""
        return self.parts.dispatcher.pool_names()

    async def note_alerts(self, rows: Sequence[tuple[int, str, dict[str, Any]]]) -> None:
        """Put alerts that began or ended into the outbox: on disk when this returns."""
        await awaited(self._spool.note_events(list(rows)))

    def snapshot(self) -> dict[str, object]:
        """Counts and gauges for status pages and benches."""
        parts = self.parts
        cover = {} if parts.cover is None else {"failover": parts.cover.status()}
        return {
            **cover,
            "hand_over": parts.handing.status(),
            "waits_for_all": parts.is_waiting(),
            "region": self.name,
            "epoch": self._spool.epoch,
            "tls": self.tls.listing(),
            "counts": self._spool.counts(),
            "outstanding": parts.dispatcher.outstanding(),
            "batches": parts.dispatcher.batches(),
            "pool_busy": parts.dispatcher.busy(),
            "spool": self._spool.sizes(),
            "spool_queues": len(parts.windows),
            "backlogged_queues": parts.windows.backlogged(),
            "unrouted_domains": parts.windows.unrouted_domains(),
            "sites": len(parts.sites),
            "campaigns": len(parts.sites.campaigns),
            "scheduler": parts.scheduler.stats(),
            "suspensions": parts.enforcement.suspensions.listing(),
            "allowances": parts.enforcement.allowances.listing(),
            "granted": parts.sites.granted(),
            "tenants": parts.tenants.listing(),
            "blocklists": parts.listings.listing() if parts.listings is not None else {},
            "remembered": self._spool.remembered(),
            "suppression": {"rows": self._spool.suppression_rows(), "waiting": parts.spread.waiting()},
        }

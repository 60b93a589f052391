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
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import msgpack

from engine.bounces.classifier import shipped_classifier
from engine.bounces.judge import Judge
from engine.bounces.signal import decode_signal
from engine.bounces.unknown import STATE_KEY as UNKNOWN_REPLIES
from engine.bounces.unknown import UnknownReplies
from engine.config.schema import FleetConfig
from engine.delivery.wire import decode_report, decode_resume
from engine.failover.messages import Beat, BeatReply
from engine.failover.messages import Message as PeerMessage
from engine.providers.profiles import load_profiles
from engine.region.admission import Admission
from engine.region.cover import Cover, PeerLink
from engine.region.dispatch import Dispatcher
from engine.region.enforcement import Enforcement
from engine.region.expiry import Expiry
from engine.region.flows import Flows
from engine.region.late import LateReports
from engine.region.notices import Notices
from engine.region.ports import PoolLauncher, PoolName, RegionFailed, SourcePort
from engine.region.retry import schedule_of
from engine.region.settling import POOL_DIED, Settling
from engine.region.windows import Windows
from engine.routing.route import Failure, Route
from engine.routing.router import Router
from engine.spool.batches import (
    AcceptBatch,
    AcceptResult,
    CampaignRecord,
    ChunkBatch,
    Settlement,
)
from engine.spool.store import Spool
from engine.suppression.spread import NoPeers, PeerPort, Spread
from engine.tls.ledger import TlsLedger
from engine.values.address import AddressError, parse_address
from engine.values.clock import Clock
from engine.values.ids import format_id
from engine.values.message import ItemError, Receipt
from engine.values.outcome import FINAL_KINDS, Outcome, OutcomeKind, Scope
from engine.values.quality import Quality
from engine.values.reply import Reply
from engine.values.stream import Stream
from engine.values.submission import MalformedBatch, batch_key_of, decode_submission, encode_receipt
from engine.values.suppression import checked, decode_rows, encode_rows
from native.scheduler import Scheduler

log = logging.getLogger(__name__)
T = TypeVar("T")

TICK_S = 0.05
BOOKS_S = 5.0
UNROUTABLE_BATCH = 500
KEY_OF_ANOTHER = "stands for a message to other recipients: a new message needs a new key"
SWEEP = 500  # queues, flows and sites that are looked at in one tick


@dataclass(frozen=True, slots=True)
class RegionPorts:
    """What a region is given: see engine/region/ports.py."""

    launcher: PoolLauncher
    sources: SourcePort
    peers: PeerPort = NoPeers()  # noqa: RUF009 - it has no state
    link: PeerLink | None = None  # for copies in other regions; None without `replicas`


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
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._failed = asyncio.Event()
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
        self._admission = Admission(
            limits=config.limits,
            streams=streams,
            expire_ms={number: schedule.expire_ms for number, schedule in self._retry.items()},
        )
        self._streams = streams
        self._flows = Flows(scheduler=self._scheduler, sites=self._sites)
        self._windows = Windows(
            index=spool,
            scheduler=self._scheduler,
            clock=clock,
            limits=config.limits,
            flows=self._flows,
            want_route=self._want_route,
            expire=self._expire,
            wake_pool=self._wake_pool,
        )
        self._dispatcher = Dispatcher(
            scheduler=self._scheduler,
            windows=self._windows,
            sites=self._sites,
            spool=_AwaitedSpool(spool, self._stopped),
            launcher=ports.launcher,
            clock=clock,
            limits=config.limits,
            epoch=spool.epoch,
            spawn=self._spawn,
            lost=self._lost,
            cores=cores,
            term=self._term,
        )
        self._expiry = Expiry(
            index=spool, scheduler=self._scheduler, expire=self._expire, freed=self._wake_pools
        )
        self.tls = TlsLedger(spool, clock)
        self._judge = Judge(shipped_classifier(), UnknownReplies(spool.get_state(UNKNOWN_REPLIES)))
        self._settling = Settling(
            config=config,
            spool=spool,
            windows=self._windows,
            site_name=self._site_name,
            judge=self._judge,
            retry=self._retry,
            rng=self._rng,
        )
        self._late = LateReports(
            store=spool,
            act=lambda id_, flag, event, rows: _wrap(spool.report_sent(id_, flag, event, rows)),
            classifier=shipped_classifier(),
            config=config.suppression,
            observer=self._observer,
            tenants=self._tenants,
        )
        self._notices = Notices(
            spool,
            submit=self._accept_own,
            expire_ms={number: schedule.expire_ms for number, schedule in self._retry.items()},
            streams=streams,
            reporter=config.ingress.name or next(s.ehlo for s in config.sources if s.region == name),
            clock=clock,
        )
        self._spread = Spread(spool, name, [r.name for r in config.regions if r.name != name], ports.peers)

        self._cover: Cover | None = None
        if config.fleet.replicas and ports.link is not None:
            self._cover = Cover(
                config=config,
                name=name,
                spool=spool,
                clock=clock,
                link=ports.link,
                spawn=self._spawn,
                ready=self._offer,
                forget=self._forget,
                leased=self._dispatcher.wake_all,
            )

    # -- life

    async def start(self) -> None:
        """Recover from the spool, attach the pools that outlived us, and begin to send."""
        for number, domain, stream, tenant, campaign, first_due_ms in self._spool.queues():
            if first_due_ms is not None:
                self._windows.learn(number, domain, stream, tenant, campaign, first_due_ms)
        self._enforcement.restore()
        for name in await self._ports.launcher.survivors():
            try:
                await self._attach(name)
            except ConnectionError as error:
                # it has died since; what it held is on disk, marked by the spool's recovery
                log.warning("region %s: pool %s did not survive: %s", self.name, name, error)
        self._dispatcher.adopt()
        self._spawn(self._tick())
        self._spawn(self._observer.run())
        self._spawn(self._spread.run())
        self._spawn(self._notices.run())
        self._spawn(self._keep_books())
        if self._cover is not None:
            self._spawn(self._cover.run())

    async def _attach(self, name: PoolName) -> None:
        """Settle what a pool that outlived us has done meanwhile, and leave it what it has on the wire."""
        died = asyncio.Event()
        port = await self._ports.launcher.launch(name, lambda name: self._survivor_died(name, died))
        state = decode_resume(await port.resume(self._spool.epoch))
        await self._settle_outcomes(state.outcomes, state.batch_numbers)
        await port.acknowledge(state.sequence)
        if not died.is_set():
            self._dispatcher.attach(name, port, state.sources)
            self._windows.hold(str(name), state.in_progress)

    def _survivor_died(self, name: PoolName, died: asyncio.Event) -> None:
        died.set()
        self._dispatcher.pool_died(name)

    async def stop(self) -> None:
        """Stop sending and leave everything on disk. The spool is closed by whoever opened it."""
        self._dispatcher.paused = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._cover is not None:
            self._cover.close()
        self._keep_unknown_replies()
        self._tenants.save(now=True)
        self.tls.save(now=True)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A background task that fails makes the region fail: its supervisor restarts it from the spool."""
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and self._failure is None:
            self._failure = task.exception()
            self._failed.set()
            log.critical("region %s: a background task failed", self.name, exc_info=self._failure)

    def check(self) -> None:
        """Raise RegionFailed if a background task has failed."""
        if self._failure is not None:
            raise RegionFailed(f"region {self.name} has failed: {self._failure!r}") from self._failure

    async def wait_failed(self) -> None:
        """Return when a background task has failed: nothing but another start from the spool helps then."""
        await self._failed.wait()

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

    async def _keep_books(self) -> None:
        while True:
            await asyncio.sleep(BOOKS_S)
            self._keep_unknown_replies()
            self.tls.save()

    # -- mail in

    async def accept(self, header: bytes, blob: bytes, *, again: bool = False) -> bytes:
        """Accept a batch (engine/values/submission.py). The answer is a receipt: what it names is on disk.

        `again`: another region may have accepted it before. RegionAway: nothing is promised.
        """
        self.check()
        submission = decode_submission(header, len(blob))
        now_ms = self._clock.wall_ms()
        admitted = self._admission.admit(submission, now_ms)
        ids: list[Sequence[int]] = [()] * len(submission.items)
        errors = admitted.errors
        repeated = False
        suppressed: tuple[int, ...] = ()
        degraded = False
        if admitted.items:
            batch = AcceptBatch(batch_key=submission.batch_key, items=admitted.items, blob=blob)
            if self._cover is not None:
                result, degraded = await self._accept_covered(batch.batch_key, batch, again=again)
            else:
                result = await _wrap(self._spool.accept(batch))
            repeated = result.repeated
            suppressed = tuple(result.suppressed)
            if len(result.ids) != len(admitted.items):
                raise MalformedBatch(f"batch key: it stands for another batch, of {len(result.ids)} messages")
            for position, item, item_ids in zip(admitted.positions, admitted.items, result.ids, strict=True):
                ids[position] = item_ids
                if not len(item_ids):
                    errors.append(ItemError(position, "key", item.key[:80], KEY_OF_ANOTHER))
            if self._cover is None:
                self._offer(result.due_keys)
        return encode_receipt(
            Receipt(
                region=self.name,
                ids=tuple(tuple(item) for item in ids),
                errors=tuple(sorted(errors, key=lambda error: error.index)),
                repeated=repeated,
                suppressed=suppressed,
                degraded=degraded,
            )
        )

    async def _accept_own(self, batch: AcceptBatch) -> None:
        """Accept mail that the region itself writes."""
        result = await _wrap(self._spool.accept(batch))
        self._offer(result.due_keys)
        if self._cover is not None:
            self._cover.owns([int.from_bytes(key[10:], "big") for key in result.due_keys])

    async def _accept_covered(
        self, key: bytes, batch: AcceptBatch | ChunkBatch, *, again: bool
    ) -> tuple[AcceptResult, bool]:
        """Accept a batch whose receipt waits for a copy. It becomes due through `_offer`, when that is safe."""
        assert self._cover is not None
        done = await self._cover.accept(key, batch, again=again)
        if done.result is not None:
            return done.result, done.degraded
        # another region has accepted it, or another call for the same batch, whose caller has gone
        known = await _wrap(self._cover.look_up(key))
        spans = done.spans if known is None else known.spans
        runs = [range(first, first + count) for first, count in spans]
        if isinstance(batch, ChunkBatch):
            return AcceptResult([(id_,) for run in runs for id_ in run], [], repeated=True), done.degraded
        return AcceptResult(runs, [], repeated=True), done.degraded

    def _offer(self, due_keys: Sequence[bytes]) -> None:
        """These are due now or later."""
        if due_keys:
            self._windows.offer(sorted(due_keys), self._clock.wall_ms())

    def _forget(self, ids: Sequence[int]) -> None:
        """Another region owns these now. What a pool has of them it gives back, because the lease is another."""
        self._scheduler.remove(struct.pack(f"<{len(ids)}Q", *ids))

    def _stopped(self, ids: list[int]) -> None:
        """These were settled as suppressed when they were to be dispatched."""
        if self._cover is not None:
            self._cover.settled(ids)

    def _term(self) -> int | None:
        """The epoch under which mail may be handed to pools; 0 in a fleet without copies, None without a lease."""
        if self._cover is None:
            return 0
        return self._cover.term if self._cover.may_dispatch() else None

    def beat(self, beat: Beat) -> BeatReply | None:
        self.check()
        return None if self._cover is None else self._cover.beat(beat)

    def hear(self, sender: str, message: PeerMessage) -> None:
        """A message of the failover protocol from another region."""
        if self._cover is not None:
            self._cover.receive(sender, message)

    async def put_campaign(self, record: bytes) -> int:
        """Store a campaign's template (msgpack of CampaignRecord's fields); returns its number here."""
        self.check()
        campaign = CampaignRecord(**msgpack.unpackb(record))
        if campaign.stream not in self._streams:
            raise ValueError(f"stream {Stream(campaign.stream)}: no source of region {self.name} serves it")
        link = self._config.unsubscribe.link(campaign.tenant, str(Stream(campaign.stream)))
        if link is None and "unsubscribe_url" in str(campaign.template):
            raise ValueError(
                f"campaign {campaign.campaign!r}: its template has unsubscribe_url, but unsubscribe.links has no "
                f"entry for the stream {Stream(campaign.stream)} of tenant {campaign.tenant!r}"
            )
        return await _wrap(self._spool.put_campaign(campaign))

    def progress(self, tenant: str, campaign: str) -> list[int]:
        """Numbers of the campaign's chunks that are safe in this region."""
        return sorted(self._spool.campaign_progress(tenant, campaign))

    async def accept_chunk(self, data: bytes) -> bytes:
        """Accept a campaign chunk: msgpack [campaign_no, number, digest, field_names, recipients, fields]."""
        self.check()
        campaign_no, number, digest, _, recipients, fields = msgpack.unpackb(data)
        campaign = self._spool.campaign(campaign_no)
        now_ms = self._clock.wall_ms()
        good: list[int] = []
        addresses: list[str] = []
        domains: list[str] = []
        errors: list[ItemError] = []
        for index, recipient in enumerate(recipients):
            try:
                address = parse_address(recipient)
            except AddressError as error:
                errors.append(ItemError(index, "recipient", recipient[:80], str(error)))
                continue
            good.append(index)
            addresses.append(address.text)
            domains.append(address.domain)
        chunk = ChunkBatch(
            campaign_no=campaign_no,
            number=number,
            digest=digest,
            recipients=addresses,
            domains=domains,
            fields=[fields[index] for index in good],
            due_ms=now_ms,
            expires_ms=now_ms + self._retry[campaign.stream].expire_ms,
            tenant=campaign.tenant,
            stream=campaign.stream,
        )
        degraded = False
        if self._cover is not None:
            key = batch_key_of("chunk", campaign.tenant, campaign.campaign, str(number), digest)
            result, degraded = await self._accept_covered(key, chunk, again=False)
        else:
            result = await _wrap(self._spool.accept_chunk(chunk))
            self._offer(result.due_keys)
        ids: list[tuple[int, ...]] = [()] * len(recipients)
        for index, item_ids in zip(good, result.ids, strict=True):
            ids[index] = tuple(item_ids)
        return encode_receipt(
            Receipt(
                region=self.name,
                ids=tuple(ids),
                errors=tuple(errors),
                repeated=result.repeated,
                suppressed=tuple(result.suppressed),
                degraded=degraded,
            )
        )

    # -- routes

    def _wake_pool(self, pool: int) -> None:
        self._dispatcher.wake(pool)

    def _wake_pools(self) -> None:
        self._dispatcher.wake_all()

    def _want_route(self, domain: str) -> None:
        cached = self._router.cached(domain)
        if isinstance(cached, Route):
            # not inside the caller's loop: windows are being changed there
            asyncio.get_running_loop().call_soon(self._routed, domain, cached)
        else:
            self._spawn(self._resolve(domain))

    async def _resolve(self, domain: str) -> None:
        found = await self._router.route(domain)
        if isinstance(found, Failure):
            await self._settle_unroutable(domain, found)
        else:
            self._routed(domain, found)

    def _routed(self, domain: str, route: Route) -> None:
        self._windows.routed(domain, route, self._enforcement.open(route.site, route.provider))

    async def _settle_unroutable(self, domain: str, failure: Failure) -> None:
        kind = OutcomeKind.BOUNCED if failure.kind == "bounced" else OutcomeKind.DEFERRED
        while keys := self._windows.take_unroutable(domain, failure, UNROUTABLE_BATCH):
            await self._settle_keys(keys, kind, Scope.DOMAIN, failure.reply)

    async def _settle_keys(
        self, keys: Sequence[bytes], kind: OutcomeKind, scope: Scope, reply: Reply
    ) -> None:
        """Settle messages that no pool has now."""
        now_ms = self._clock.wall_ms()
        settlements = []
        for key in keys:
            outcome = Outcome(int.from_bytes(key[10:], "big"), kind, scope, reply, 0xFFFF, "", now_ms)
            settlements.append(self._settling.settlement(key, outcome, 0, now_ms))
        await self._commit(settlements)

    def _expire(self, keys: list[bytes]) -> None:
        now_ms = self._clock.wall_ms()
        self._windows.settling(
            [int.from_bytes(key[10:], "big") for key in keys]
        )  # until the task has begun, too
        self._spawn(self._commit([Settlement(key, self._expired(key, now_ms), 0) for key in keys]))

    def _expired(self, key: bytes, now_ms: int) -> Outcome:
        """A message has run out of time while it waited: its last answer, if it ever had one, is the reason."""
        id_ = int.from_bytes(key[10:], "big")
        record = self._spool.message(id_)
        reply, host, source = EXPIRED_UNTRIED, "", 0xFFFF
        if record is not None and record.last is not None:
            _, code, enhanced, text, host, source = record.last
            reply = Reply(code, enhanced, text)
        return Outcome(id_, OutcomeKind.EXPIRED, Scope.MESSAGE, reply, source, host, now_ms)

    # -- outcomes

    async def settle(self, report: bytes) -> int:
        """Settle a pool's report on disk; returns its sequence number, which the pool may then forget."""
        self.check()
        decoded = decode_report(report)
        if decoded.epoch < self._spool.epoch:
            return decoded.sequence  # written for the former incarnation: `resume` has told us all of it
        if decoded.notices:
            self._observer.note_notices(decoded.notices)
        if decoded.findings:
            self.tls.note(decoded.findings)
        await self._settle_outcomes(decoded.outcomes, decoded.batch_numbers)
        return decoded.sequence

    async def _settle_outcomes(self, outcomes: Sequence[Outcome], batch_no: int | Sequence[int]) -> None:
        now_ms = self._clock.wall_ms()
        settlements: list[Settlement] = []
        returned: list[int] = []
        done: list[int] = []
        finished: dict[int, int] = {}
        places: dict[bytes, tuple[int, int, str]] = {}
        for index, outcome in enumerate(outcomes):
            number = batch_no if isinstance(batch_no, int) else batch_no[index]
            id_ = outcome.id
            rerouted = False
            key = self._scheduler.key_of(id_)
            is_ours = key is not None
            if key is None:
                key = self._windows.release(id_) or self._spool.due_key_of(id_)
                if key is None:
                    continue  # settled before: the pool repeats what it has not seen acknowledged
            place = places.get(key[:4])
            if place is None:
                place = places[key[:4]] = self._place_of(key)
            pool, site, tenant = place
            if is_ours and pool >= 0:
                finished[pool] = finished.get(pool, 0) + 1
            if outcome.kind is OutcomeKind.RETURNED and self._spool.message(id_) is not None:
                returned.append(id_)
            else:
                done.append(id_)
                rerouted = self._observer.note(outcome, site)
                self._tenants.note(tenant, outcome)
            settlements.append(self._settling.settlement(key, outcome, number, now_ms, rerouted=rerouted))
        if returned:
            self._scheduler.give_back(struct.pack(f"<{len(returned)}Q", *returned))
        self._scheduler.settle(struct.pack(f"<{len(done)}Q", *done))
        for pool, count in finished.items():
            self._dispatcher.finished(pool, count)
        await self._commit(settlements)

    def _site_name(self, flow: int) -> str:
        return self._sites.site(self._scheduler.site_of(flow)).name

    def _place_of(self, key: bytes) -> tuple[int, int, str]:
        """The pool and the site of a due key's queue, -1 for what is not known, and its tenant."""
        number = int.from_bytes(key[:4], "big")
        queue = self._windows.get(number)
        if queue is None:
            return -1, -1, self._spool.queue(number)[2]
        return queue.pool, -1 if queue.flow < 0 else self._scheduler.site_of(queue.flow), queue.tenant

    async def _commit(self, settlements: list[Settlement]) -> None:
        if not settlements:
            return
        classified = [self._settling.completed(one) for one in settlements]
        ids = [one.outcome.id for one in classified]
        self._windows.settling(ids)
        try:
            result = await _wrap(self._spool.settle(classified))
        finally:
            self._windows.settled(ids)
        if self._cover is not None:
            outcomes = [one.outcome for one in classified if one.outcome.kind is not OutcomeKind.RETURNED]
            self._cover.settled([one.id for one in outcomes if one.kind in FINAL_KINDS])
            self._cover.deferred([one.id for one in outcomes if one.kind not in FINAL_KINDS])
        for key in result.due_keys:
            self._windows.redue(key)

    def _keep_unknown_replies(self) -> None:
        if self._judge.unknown.is_dirty:
            self._spool.put_state(UNKNOWN_REPLIES, self._judge.unknown.encode())

    async def _lost(self, name: PoolName, ids: list[int]) -> None:
        """A process of a pool died holding these: each may have been sent; all are due again at once, marked."""
        now_ms = self._clock.wall_ms()
        reply = Reply(0, "4.3.0", POOL_DIED)
        settlements = []
        for id_ in ids:
            key = self._scheduler.key_of(id_)
            if key is not None:
                outcome = Outcome(
                    id_,
                    OutcomeKind.DEFERRED,
                    Scope.SESSION,
                    reply,
                    0xFFFF,
                    "",
                    now_ms,
                    possible_duplicate=True,
                )
                settlements.append(self._settling.settlement(key, outcome, 0, now_ms))
        self._scheduler.settle(b"".join(id_.to_bytes(8, "little") for id_ in ids))
        await self._commit(settlements)
        self._windows.release_all(str(name))

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
        return await _wrap(self._spool.suppress(rows, log=spread))

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
        return await _wrap(self._spool.suppress(rows, log=True, events=events))

    async def repeat_suppressions(self, to: str) -> None:
        """A peer whose disk is new asks for the whole list. ValueError: it is no peer."""
        self.check()
        await _wrap(self._spread.repeat(to))

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
        record = self._spool.message(message_id)
        if record is not None:
            recipient = record.recipient
            _, stream, tenant, _ = self._spool.queue(record.queue)
        found: dict[str, object] = {"status": status, "region": self.name, "site": "", "paths": []}
        if not recipient:
            return found
        route = await self._router.route(recipient.rpartition("@")[2])
        if isinstance(route, Failure):
            return {**found, "route": str(route.reply)}
        paths = self._enforcement.paths.explain(route.site, stream, tenant, self._clock.wall_ms())
        return {**found, "site": route.site, "provider": route.provider, "paths": paths}

    async def cancel(self, ids: Sequence[int]) -> int:
        """Cancel queued messages that are not on the wire; returns how many were."""
        self._scheduler.remove(b"".join(id_.to_bytes(8, "little") for id_ in ids))
        free = [i for i in ids if not self._scheduler.contains(i) and not self._windows.is_held(i)]
        self._windows.settling(free)
        try:
            cancelled: int = await _wrap(self._spool.cancel(free))
        finally:
            self._windows.settled(free)
        if self._cover is not None:
            self._cover.settled(free)
        return cancelled

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

    def snapshot(self) -> dict[str, object]:
        """Counts and gauges for status pages, metrics and benches."""
        cover = {} if self._cover is None else {"failover": self._cover.status()}
        return {
            **cover,
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
            "remembered": self._spool.remembered(),
            "suppression": {"rows": self._spool.suppression_rows(), "waiting": self._spread.waiting()},
        }


EXPIRED_UNTRIED = Reply(0, "4.4.7", "message expired before it could be sent")


class _AwaitedSpool:
    """The dispatch log as awaitables."""

    def __init__(self, spool: Spool, stopped: Callable[[list[int]], None]) -> None:
        self._spool = spool
        self._stopped = stopped

    async def dispatch(self, batch_no: int, ids: bytes, daily: dict[str, int]) -> list[int]:
        stopped = await _wrap(self._spool.dispatch(batch_no, ids, daily))
        if stopped:
            self._stopped(stopped)
        return stopped


def deliver_on(loop: asyncio.AbstractEventLoop) -> Callable[[list[Callable[[], None]]], None]:
    """The spool's completions of one group commit, run on the loop by one wake-up."""

    def run(callbacks: list[Callable[[], None]]) -> None:
        for callback in callbacks:
            callback()

    def deliver(callbacks: list[Callable[[], None]]) -> None:
        loop.call_soon_threadsafe(run, callbacks)

    return deliver


async def _wrap(future: "Future[T]") -> T:
    """Await a spool future whose completion is already delivered on this loop."""
    if future.done():
        return future.result()
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.add_done_callback(lambda _: None if waiter.done() else waiter.set_result(None))
    await waiter
    return future.result()

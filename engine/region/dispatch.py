"""From the scheduler's decisions to the pools: takes batches, makes them durable, hands them over, within credits.

One feed per pool, which may be several processes (engine/region/resizing.py): what is taken goes to the process that
carries its source. A batch is handed over only after its in-flight record and the daily counters it charges are on
disk, so a crash can never send a message twice without a mark, nor grant a daily cap twice. Batches overlap: while
one record is syncing, the next is taken.

A process that dies is noticed by the launcher (process death, milliseconds). Everything it held goes back to the due
index at once, marked as possibly sent, because its last words are unknown.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

from engine.config.schema import LimitsConfig
from engine.delivery.wire import ENTRY, ID, Header, encode_header
from engine.region.daily import counts_of
from engine.region.feeds import MIN_INTERVAL_S, PoolFeed, Shard
from engine.region.ports import PoolLauncher, PoolName, PoolPort
from engine.region.resizing import Resizer
from engine.region.sites import Sites
from engine.region.windows import Windows
from engine.values.clock import Clock
from native.scheduler import Scheduler

log = logging.getLogger(__name__)

RESEND_DELAY_S = 0.05
LAUNCH_DELAY_S = 0.2
PAUSE_S = 0.01


# engine/region/attaching.py
Attach = Callable[[PoolName, PoolPort, Callable[[], bool]], Awaitable[object]]


class DispatchLog(Protocol):
    """The part of the spool that makes a dispatch durable."""

    def dispatch(self, batch_no: int, ids: bytes, daily: dict[str, int]) -> Awaitable[list[int]]:
        """The answer: ids that must not go out any more, and are settled."""


class Dispatcher:
    """Feeds every pool of a region."""

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        windows: Windows,
        sites: Sites,
        spool: DispatchLog,
        launcher: PoolLauncher,
        clock: Clock,
        limits: LimitsConfig,
        epoch: int,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        lost: Callable[[PoolName, list[int]], Awaitable[None]],
        attach: Attach,
        cores: int,
        term: Callable[[], int | None],
    ) -> None:
        self._scheduler = scheduler
        self._windows = windows
        self._sites = sites
        self._spool = spool
        self._launcher = launcher
        self._clock = clock
        self._limits = limits
        self._epoch = epoch
        self._spawn = spawn
        self._lost = lost
        self._attach = attach
        self._term = term  # the lease's epoch, None without a lease
        self._feeds: dict[int, PoolFeed] = {}
        self._claims: dict[int, dict[int, frozenset[int]]] = {}
        self._has_adopted = False
        self._batch_no = 0
        self._handing_over = 0
        # so many credits must be back before a full process is fed again
        self._worthwhile = min(limits.batch, max(1, limits.pool_credits // 4))
        self._resizer = Resizer(
            scheduler=scheduler,
            sites=sites,
            clock=clock,
            epoch=epoch,
            most=most_shards(limits, cores),
            busy=limits.pool_busy,
            spawn=spawn,
        )
        self.paused = False

    def wake(self, pool: int) -> None:
        """Something changed for this pool: messages became ready, or room was made."""
        feed = self._feed(pool)
        if feed.task is None and self._has_adopted:
            feed.task = self._spawn(self._run(feed))
            self._resizer.watch(feed)
        feed.wake.set()

    def _feed(self, pool: int) -> PoolFeed:
        feed = self._feeds.get(pool)
        if feed is None:
            provider = self._sites.pools.name(pool)
            feed = self._feeds[pool] = PoolFeed(pool, provider, self._sites.sources)
        return feed

    async def pause(self) -> None:
        """Take nothing more; returns when every batch that was taken has been handed over."""
        self.paused = True
        while self._handing_over:
            await asyncio.sleep(PAUSE_S)

    def wake_all(self) -> None:
        for feed in self._feeds.values():
            feed.wake.set()

    # -- processes that outlived the former incarnation

    def attach(self, name: PoolName, port: PoolPort, sources: Sequence[int]) -> None:
        """Feed a process that outlived the former incarnation and carries these sources, once `adopt` is called."""
        pool = self._sites.pools.number(name.provider)
        claims = self._claims.setdefault(pool, {})
        claims[name.shard] = frozenset(sources)
        feed = self._feed(pool)
        while len(feed.shards) <= name.shard:
            feed.shards.append(Shard(feed.provider, len(feed.shards)))
        feed.shards[name.shard].port = port

    def adopt(self) -> None:
        """All that outlived the former incarnation are attached: go on from what they carry.

        Before that no process is started or fed: it may be one that is just being attached.
        """
        self._has_adopted = True
        for pool, claims in self._claims.items():
            self._resizer.adopt(self._feeds[pool], claims)
        self._claims.clear()
        for pool in list(self._feeds):
            self.wake(pool)

    # -- what goes on

    def finished(self, pool: int, count: int) -> None:
        """So many messages of the pool are settled or given back: credits return."""
        feed = self._feeds.get(pool)
        if feed is not None:
            feed.finished(count)
            if self._room(feed):
                feed.wake.set()

    def outstanding(self) -> dict[str, int]:
        """Messages that each process of each pool has."""
        return {
            str(shard.name): self._scheduler.shard_outstanding(feed.number, shard.index)
            for feed in self._feeds.values()
            for shard in feed.shards
        }

    def is_full(self, pool: int) -> bool:
        """Whether no process of a pool has room for a batch worth the call."""
        feed = self._feeds.get(pool)
        return feed is not None and not any(
            shard.port is not None
            and self._limits.pool_credits - self._scheduler.shard_outstanding(pool, shard.index)
            >= self._worthwhile
            for shard in feed.shards
        )

    def in_flight(self) -> Iterator[bytes]:
        """The due keys of the messages that pools have."""
        for feed in self._feeds.values():
            for (id_,) in ID.iter_unpack(self._scheduler.in_flight_of(feed.number)):
                key = self._scheduler.key_of(id_)
                if key is not None:
                    yield key

    def pool_names(self) -> list[PoolName]:
        """The processes that run."""
        return [
            shard.name for feed in self._feeds.values() for shard in feed.shards if shard.port is not None
        ]

    def batches(self) -> dict[str, int]:
        """How many batches each process has been handed."""
        return {str(shard.name): shard.batches for feed in self._feeds.values() for shard in feed.shards}

    def busy(self) -> dict[str, float]:
        """How much of a core each process has lately used, as far as it has been measured."""
        return {
            str(shard.name): round(shard.busy, 3)
            for feed in self._feeds.values()
            for shard in feed.shards
            if shard.cpu is not None
        }

    async def _run(self, feed: PoolFeed) -> None:
        while True:
            await self._pause(feed)
            feed.wake.clear()
            if self.paused:
                continue
            for shard in feed.shards:
                if shard.port is None and shard.starting is None and not shard.is_ending:
                    shard.starting = self._spawn(self._start(feed, shard))
            while self._take(feed):
                await asyncio.sleep(0)

    async def _start(self, feed: PoolFeed, shard: Shard) -> None:
        """Start a process, or find it running, and tell it what it may use; then it is fed."""
        while True:
            deaths = shard.deaths
            try:
                port = await self._launcher.launch(shard.name, self.pool_died)
                await self._attach(shard.name, port, partial(shard.has_died_since, deaths))
                if await self._resizer.tell(feed, shard, port) and shard.deaths == deaths:
                    break
            except (ConnectionError, TimeoutError) as error:
                log.warning("pool %s does not start: %s", shard.name, error)
                await asyncio.sleep(LAUNCH_DELAY_S)
        shard.port = port
        shard.starting = None
        feed.wake.set()

    async def _pause(self, feed: PoolFeed) -> None:
        """Wait until there may be something worth taking: an event or the scheduler's next allowance, and then a
        while for more to gather."""
        if not feed.wake.is_set():
            wake_ns = self._scheduler.next_wake_ns(feed.number) if self._room(feed) else -1
            timeout = None
            if wake_ns >= 0:
                timeout = max(MIN_INTERVAL_S, (wake_ns - self._clock.monotonic_ns()) / 1e9)
            try:
                # not wait_for: in Python 3.11 it can swallow a cancellation that meets the event
                async with asyncio.timeout(timeout):
                    await feed.wake.wait()
            except TimeoutError:
                return
        now_ns = self._clock.monotonic_ns()
        outstanding = sum(
            self._scheduler.shard_outstanding(feed.number, shard.index) for shard in feed.shards
        )
        gather_ns = feed.taken_ns + round(feed.interval_s(now_ns, outstanding) * 1e9) - now_ns
        if gather_ns > 0:
            await asyncio.sleep(gather_ns / 1e9)

    def _room(self, feed: PoolFeed) -> int:
        """How many messages each of the pool's processes can take that has room for a batch worth the call; the others
        are closed meanwhile. 0: there is none."""
        closed = 0
        rooms = []
        for shard in feed.shards:
            room = 0
            if shard.port is not None:
                outstanding = self._scheduler.shard_outstanding(feed.number, shard.index)
                room = self._limits.pool_credits - outstanding
            if room < self._worthwhile:
                closed |= 1 << shard.index
            else:
                rooms.append(room)
        if closed != feed.closed:
            self._scheduler.close_shards(feed.number, closed)
            feed.closed = closed
        return min(rooms, default=0)

    def _take(self, feed: PoolFeed) -> bool:
        """Take one batch and start its way; returns whether another take may yield more at once."""
        term = self._term()
        if term is None or self.paused:
            return False
        room = min(self._limits.batch, self._room(feed))
        if room <= 0:
            return False
        self._sites.new_day(self._clock.wall_ms())
        self._windows.refill(feed.number)
        now_ns = self._clock.monotonic_ns()
        entries = self._scheduler.take(feed.number, now_ns, room)
        if not entries:
            return False
        feed.taken_ns = now_ns
        for shard, part in feed.split(entries):
            shard.batches += 1
            self._batch_no += 1
            self._handing_over += 1
            task = self._spawn(self._hand_over(feed, shard, shard.port, self._batch_no, part, term))
            task.add_done_callback(self._handed_over)
        return len(entries) == room * ENTRY.size

    def _handed_over(self, _: asyncio.Task[None]) -> None:
        self._handing_over -= 1

    async def _hand_over(
        self, feed: PoolFeed, shard: Shard, port: PoolPort | None, batch_no: int, entries: bytes, term: int
    ) -> None:
        assert port is not None, "a process that does not run is closed"
        if shard.port is not port:
            return  # it died since this was taken, and that takes all of its messages back
        ids = b"".join([entries[at : at + ID.size] for at in range(0, len(entries), ENTRY.size)])
        cells = {(entry[2], entry[3]) for entry in ENTRY.iter_unpack(entries)}
        sites = {number: self._sites.site(number) for number, _ in cells}
        capped = ((sites[number], source) for number, source in cells)
        daily = counts_of(self._sites, capped, self._clock.wall_ms())
        paces = {
            (source, number): sites[number].paces[source]
            for number, source in cells
            if source in sites[number].paces
        }
        stopped = await self._spool.dispatch(batch_no, ids, daily)
        if stopped:
            entries = self._without(feed, entries, set(stopped))
            if not entries:
                return
        names = {number: site.name for number, site in sites.items()}
        header = encode_header(Header(batch_no, self._epoch, names, paces, term))
        while True:
            try:
                await port.deliver(header, entries)
                return
            except ConnectionError as error:
                # the pool drops a batch number it has seen, so sending again is safe while it lives
                if shard.port is not port:
                    return
                log.warning("pool %s: hand-over of batch %d: %s", shard.name, batch_no, error)
                await asyncio.sleep(RESEND_DELAY_S)

    def _without(self, feed: PoolFeed, entries: bytes, stopped: set[int]) -> bytes:
        """The entries that go out all the same; of the others the charges are given back."""
        # a pool that died meanwhile has had all of its ids, these too, taken from it
        held = b"".join([ID.pack(id_) for id_ in stopped if self._scheduler.contains(id_)])
        self._scheduler.give_back(held)
        self._scheduler.remove(held)
        self.finished(feed.number, len(held) // ID.size)
        return b"".join(
            [ENTRY.pack(*entry) for entry in ENTRY.iter_unpack(entries) if entry[0] not in stopped]
        )

    # -- death

    def pool_died(self, name: PoolName) -> None:
        """A process of a pool is gone. What it had may have been sent, up to this moment."""
        feed = self._feeds.get(self._sites.pools.number(name.provider))
        shard = None if feed is None else feed.shard(name.shard)
        if feed is None or shard is None:
            return
        if shard.is_ending:  # what the former incarnation had given it may be held for it still
            self._spawn(self._end(shard))
            return
        outstanding = self._scheduler.shard_outstanding(feed.number, shard.index)
        log.warning("pool %s died with %d messages in flight", name, outstanding)
        shard.deaths += 1
        shard.ended()
        self._room(feed)  # nothing is taken for it any more
        self._scheduler.presume_sent(feed.number, shard.index, self._clock.monotonic_ns())
        self._spawn(self._requeue(feed, shard))
        if feed.task is not None:
            feed.wake.set()  # another takes its place meanwhile; it is not fed before `_requeue` has read what is lost

    async def _end(self, shard: Shard) -> None:
        await self._lost(shard.name, [])

    async def _requeue(self, feed: PoolFeed, shard: Shard) -> None:
        # read here, not at the death: its last reports may have been settled meanwhile
        ids = [id_ for (id_,) in ID.iter_unpack(self._scheduler.in_flight_of(feed.number, shard.index))]
        await self._lost(shard.name, ids)
        self.wake(feed.number)


def most_shards(limits: LimitsConfig, cores: int) -> int:
    """Processes that one provider's pool may have on a node: as configured, else all cores but the region's."""
    if limits.pool_shards is None:
        return max(1, cores - 1)
    return min(limits.pool_shards, max(1, cores))

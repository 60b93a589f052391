"""From the scheduler's decisions to the pools: takes batches, makes them durable, hands them over, within credits.

One feed per pool. A batch is handed over only after its in-flight record and the daily counters it charges are on
disk, so a crash can never send a message twice without a mark, nor grant a daily cap twice. Batches overlap: while
one record is syncing, the next is taken.

A pool that dies is noticed by the launcher (process death, milliseconds). Everything it held goes back to the due
index at once, marked as possibly sent, because its last words are unknown.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from engine.config.schema import LimitsConfig
from engine.delivery.wire import ENTRY, ID, Header, encode_header
from engine.region.daily import counts_of
from engine.region.ports import PoolLauncher, PoolName, PoolPort
from engine.region.sites import Sites
from engine.region.windows import Windows
from engine.values.clock import Clock
from native.scheduler import Scheduler

log = logging.getLogger(__name__)

MIN_INTERVAL_S = 0.002
# A call between actors costs as much as many messages, so batches gather while a pool has work: it is fed again when a
# quarter of what it holds should be done, at the latest after BUSY_INTERVAL_S.
BUSY_SHARE = 0.25
BUSY_INTERVAL_S = 0.05
RATE_SPAN_NS = 100_000_000
RESEND_DELAY_S = 0.05
LAUNCH_DELAY_S = 0.2


class DispatchLog(Protocol):
    """The part of the spool that makes a dispatch durable."""

    def dispatch(self, batch_no: int, ids: bytes, daily: dict[str, int]) -> Awaitable[list[int]]:
        """The answer: ids that must not go out any more, and are settled."""


class PoolFeed:
    """One pool as its region sees it."""

    __slots__ = (
        "_finished",
        "_rate",
        "_since_ns",
        "batches",
        "deaths",
        "name",
        "number",
        "outstanding",
        "port",
        "taken_ns",
        "task",
        "wake",
    )

    def __init__(self, number: int, name: PoolName) -> None:
        self.number = number
        self.name = name
        self.port: PoolPort | None = None
        self.outstanding = 0
        self.batches = 0
        self.deaths = 0
        self.wake = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.taken_ns = 0
        self._finished = 0
        self._rate = 0.0
        self._since_ns = 0

    def finished(self, count: int) -> None:
        self.outstanding -= count
        self._finished += count

    def interval_s(self, now_ns: int) -> float:
        """How long to let messages gather, by what the pool holds and how fast it has lately been."""
        span_ns = now_ns - self._since_ns
        if span_ns >= RATE_SPAN_NS:
            self._rate = (self._rate + self._finished * 1e9 / span_ns) / 2
            self._finished = 0
            self._since_ns = now_ns
        if self._rate <= 0.0:
            return MIN_INTERVAL_S
        return min(BUSY_INTERVAL_S, max(MIN_INTERVAL_S, BUSY_SHARE * self.outstanding / self._rate))


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
        lost: Callable[[int, list[int]], Awaitable[None]],
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
        self._feeds: dict[int, PoolFeed] = {}
        self._batch_no = 0
        # so many credits must be back before a full pool is fed again
        self._worthwhile = min(limits.batch, max(1, limits.pool_credits // 4))
        self.paused = False

    def wake(self, pool: int) -> None:
        """Something changed for this pool: messages became ready, or room was made."""
        feed = self._feed(pool)
        if feed.task is None:
            feed.task = self._spawn(self._run(feed))
        feed.wake.set()

    def _feed(self, pool: int) -> PoolFeed:
        feed = self._feeds.get(pool)
        if feed is None:
            feed = self._feeds[pool] = PoolFeed(pool, PoolName(self._sites.pools.name(pool)))
        return feed

    def wake_all(self) -> None:
        for feed in self._feeds.values():
            feed.wake.set()

    def deaths(self, name: PoolName) -> int:
        """How often the pool has died under this incarnation."""
        return self._feed(self._sites.pools.number(name.provider)).deaths

    def attach(self, name: PoolName, port: PoolPort, *, deaths: int) -> bool:
        """Feed a pool that outlived the former incarnation; False if it has died since `deaths` was read."""
        feed = self._feed(self._sites.pools.number(name.provider))
        if feed.deaths != deaths:
            return False
        feed.port = port
        self.wake(feed.number)
        return True

    def finished(self, pool: int, count: int) -> None:
        """So many messages of the pool are settled or given back: credits return."""
        feed = self._feeds.get(pool)
        if feed is not None:
            feed.finished(count)
            if self._room(feed) >= self._worthwhile:
                feed.wake.set()

    def outstanding(self) -> dict[str, int]:
        return {str(feed.name): feed.outstanding for feed in self._feeds.values()}

    def batches(self) -> dict[str, int]:
        """How many batches each pool has been handed."""
        return {str(feed.name): feed.batches for feed in self._feeds.values()}

    async def _run(self, feed: PoolFeed) -> None:
        while True:
            await self._pause(feed)
            feed.wake.clear()
            if self.paused:
                continue
            if feed.port is None and not await self._launch(feed):
                feed.wake.set()
                await asyncio.sleep(LAUNCH_DELAY_S)
                continue
            while self._take(feed):
                await asyncio.sleep(0)

    async def _launch(self, feed: PoolFeed) -> bool:
        """Start the feed's pool; False if that failed or it died at once."""
        deaths = feed.deaths
        try:
            port = await self._launcher.launch(feed.name, self.pool_died)
            await port.resume(self._epoch)
        except (ConnectionError, TimeoutError) as error:
            log.warning("pool %s does not start: %s", feed.name, error)
            return False
        if feed.deaths != deaths:
            return False
        feed.port = port
        return True

    async def _pause(self, feed: PoolFeed) -> None:
        """Wait until there may be something worth taking: an event or the scheduler's next allowance, and then a
        while for more to gather."""
        if not feed.wake.is_set():
            wake_ns = self._scheduler.next_wake_ns(feed.number)
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
        gather_ns = feed.taken_ns + round(feed.interval_s(now_ns) * 1e9) - now_ns
        if gather_ns > 0:
            await asyncio.sleep(gather_ns / 1e9)

    def _room(self, feed: PoolFeed) -> int:
        return self._limits.pool_credits - feed.outstanding

    def _take(self, feed: PoolFeed) -> bool:
        """Take one batch and start its way; returns whether another take may yield more at once."""
        self._windows.refill(feed.number)
        room = min(self._limits.batch, self._room(feed))
        if room <= 0 or feed.port is None:
            return False
        entries = self._scheduler.take(feed.number, self._clock.monotonic_ns(), room)
        count = len(entries) // ENTRY.size
        if not count:
            return False
        feed.outstanding += count
        feed.taken_ns = self._clock.monotonic_ns()
        feed.batches += 1
        self._batch_no += 1
        self._spawn(self._hand_over(feed, feed.port, self._batch_no, entries))
        return count == room

    async def _hand_over(self, feed: PoolFeed, port: PoolPort, batch_no: int, entries: bytes) -> None:
        ids = b"".join([entries[at : at + ID.size] for at in range(0, len(entries), ENTRY.size)])
        cells = {(entry[2], entry[3]) for entry in ENTRY.iter_unpack(entries)}
        sites = {number: self._sites.site(number) for number, _ in cells}
        daily = counts_of(self._sites, ((sites[number], source) for number, source in cells))
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
        header = encode_header(Header(batch_no, self._epoch, names, paces))
        while True:
            try:
                await port.deliver(header, entries)
                return
            except ConnectionError as error:
                # the pool drops a batch number it has seen, so sending again is safe while it lives
                if feed.port is not port:
                    return
                log.warning("pool %s: hand-over of batch %d: %s", feed.name, batch_no, error)
                await asyncio.sleep(RESEND_DELAY_S)

    def _without(self, feed: PoolFeed, entries: bytes, stopped: set[int]) -> bytes:
        """The entries that go out all the same; of the others the charges are given back."""
        # a pool that died meanwhile has had all of its ids, these too, taken from it
        held = b"".join([ID.pack(id_) for id_ in stopped if self._scheduler.contains(id_)])
        self._scheduler.give_back(held)
        self._scheduler.remove(held)
        feed.finished(len(held) // ID.size)
        return b"".join(
            [ENTRY.pack(*entry) for entry in ENTRY.iter_unpack(entries) if entry[0] not in stopped]
        )

    def pool_died(self, name: PoolName) -> None:
        feed = self._feeds.get(self._sites.pools.number(name.provider))
        if feed is None:
            return
        log.warning("pool %s died with %d messages in flight", name, feed.outstanding)
        feed.deaths += 1
        feed.port = None
        self._spawn(self._requeue(feed))

    async def _requeue(self, feed: PoolFeed) -> None:
        # read here, not at the death: its last reports may have been settled meanwhile
        ids = [id_ for (id_,) in ID.iter_unpack(self._scheduler.in_flight_of(feed.number))]
        feed.outstanding -= len(ids)
        await self._lost(feed.number, ids)
        self.wake(feed.number)

"""Watches how busy each pool's processes are, starts and ends processes, and moves sources between them.

A (source, site) has its limits in one place: the process that carries the source. So a source moves only when its old
process has neither a message nor a session of it, and takes along until when its pace forbids the next transaction.
Limits that all sources share at a site (connections in total) are divided among the processes: before there is one more
each of the others is down to its smaller part, and the parts grow again only after one has ended.

The loop compares what should be with what is and does the next step; a call that fails or a process that dies changes
what is, and nothing else. Whatever of it a crash of the region interrupts, the processes that outlive it say what they
carry, and the loop goes on from there.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from engine.delivery.wire import Assignment, Holding, decode_holding, encode_assignment
from engine.region.feeds import PoolFeed, Shard
from engine.region.ports import PoolPort
from engine.region.sharding import MAX_SHARDS, Sizing, is_worth, spread
from engine.region.sites import Sites
from engine.values.clock import Clock
from native.scheduler import Scheduler

log = logging.getLogger(__name__)

LOOK_S = 1.0
STEP_S = 0.05
STOP_DEADLINE_S = 10.0
MEMORY = 0.7  # of how much a source has sent, so much still counts a second later


class Resizer:
    """One per region. `most` processes per pool, `busy` of a core makes one full."""

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        sites: Sites,
        clock: Clock,
        epoch: int,
        most: int,
        busy: float,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._scheduler = scheduler
        self._sites = sites
        self._clock = clock
        self._epoch = epoch
        self._most = min(most, MAX_SHARDS)
        self._busy = busy
        self._spawn = spawn
        self._numbers = 0

    def watch(self, feed: PoolFeed) -> None:
        """See to the feed's processes from now on."""
        if feed.watcher is None:
            feed.watcher = self._spawn(self._watch(feed))

    def adopt(self, feed: PoolFeed, claims: dict[int, frozenset[int]]) -> None:
        """The processes that outlived the former incarnation carry these sources, by their number. What nobody claims,
        or two, is held until it is known that nobody has anything of it."""
        feed.of = len(feed.shards)
        for source in feed.owners:
            claiming = [index for index, sources in claims.items() if source in sources]
            feed.owners[source] = claiming[0] if len(claiming) == 1 else None
        feed.plan = spread(feed.owners, {}, len(feed.shards))
        for source, owner in feed.owners.items():
            self._hold(feed, source, owner != feed.plan[source])
            if owner is not None:
                self._scheduler.set_shard(feed.number, source, owner)

    async def tell(self, feed: PoolFeed, shard: Shard, port: PoolPort) -> bool:
        """Tell a process what it may use; False if that has changed meanwhile."""
        carried, of = feed.carried_by(shard), feed.of
        self._numbers += 1
        told = Assignment(self._epoch, self._numbers, tuple(sorted(carried)), shard.index, of)
        deaths = shard.deaths
        holding = decode_holding(await port.assign(encode_assignment(told)))
        if shard.deaths != deaths:
            return False
        self._note(feed, shard, holding)
        shard.told = carried, of
        return shard.told == (feed.carried_by(shard), feed.of)

    def _note(self, feed: PoolFeed, shard: Shard, holding: Holding) -> None:
        shard.left = frozenset(holding.left)
        shard.is_over = holding.is_over
        for source, name, next_ns in holding.paces:
            if self._sites.known(name):
                self._scheduler.not_before(source, self._sites.number(name), next_ns)

    # -- size

    async def _watch(self, feed: PoolFeed) -> None:
        sizing = Sizing(busy=self._busy)
        weights: dict[int, float] = dict.fromkeys(feed.owners, 0.0)
        granted = dict.fromkeys(feed.owners, 0)
        while True:
            await self._settle(feed)
            await asyncio.sleep(LOOK_S)
            taken = 0
            for source, before in granted.items():
                granted[source] = self._scheduler.granted(feed.number, source)
                taken += granted[source] - before
                weights[source] = weights[source] * MEMORY**LOOK_S + granted[source] - before
            count = len(feed.shards)
            if count == 1 and not taken and not self._scheduler.shard_outstanding(feed.number, 0):
                feed.shards[0].cpu = None
                continue
            for shard in feed.shards:
                await self._measure(shard)
            shares = [shard.busy for shard in feed.shards]
            wanted = sizing.look(self._clock.monotonic_ns(), shares, self._most_of(feed))
            if wanted == count:
                continue
            sizing.reset()
            plan = spread(feed.owners, weights, wanted)
            if wanted > count:
                if is_worth(feed.plan, plan, weights):
                    await self._grow(feed, plan)
            else:
                await self._shrink(feed, plan)

    def _most_of(self, feed: PoolFeed) -> int:
        profile = self._sites.profile(feed.provider)
        if profile.rate_total is not None:
            return 1  # who keeps the pace of all sources must see all of them
        return max(1, min(self._most, len(feed.owners), profile.max_connections_total or self._most))

    async def _measure(self, shard: Shard) -> None:
        """How much of a core the process has used since the last look."""
        port, before = shard.port, shard.cpu
        if port is None:
            return
        try:
            now = await port.load()
        except (ConnectionError, TimeoutError) as error:
            log.info("pool %s does not say how busy it is: %s", shard.name, error)
            return
        if shard.port is not port:
            return
        if before is not None and now[1] > before[1]:
            shard.busy = (now[0] - before[0]) / (now[1] - before[1])
        shard.cpu = now

    async def _grow(self, feed: PoolFeed, plan: dict[int, int]) -> None:
        index = len(feed.shards)
        log.info("pool %s: process %d starts, the others are full", feed.provider, index)
        feed.of = index + 1
        await self._settle(feed)  # the others are down to their smaller parts
        feed.shards.append(Shard(feed.provider, index))
        feed.wake.set()
        await self._settle(feed)
        self._move(feed, plan)
        await self._settle(feed)

    async def _shrink(self, feed: PoolFeed, plan: dict[int, int]) -> None:
        last = feed.shards[-1]
        log.info("pool %s ends: the others have time enough", last.name)
        self._move(feed, plan)
        await self._settle(feed)
        if not await self._stop(last):
            return
        feed.shards.pop()
        feed.of = len(feed.shards)
        await self._settle(feed)

    async def _stop(self, shard: Shard) -> bool:
        """End a process that carries nothing; False: not now."""
        port = shard.port
        if port is None:  # it has just died, another is starting in its place
            return False
        shard.is_ending = True
        try:
            await port.stop(STOP_DEADLINE_S)
        except ConnectionError as error:
            log.info("pool %s ended by itself: %s", shard.name, error)
        except TimeoutError as error:
            log.warning("pool %s does not end: %s", shard.name, error)
            shard.is_ending = False
            return False
        shard.ended()
        return True

    # -- sources

    def _move(self, feed: PoolFeed, plan: dict[int, int]) -> None:
        feed.plan = plan
        for source, owner in feed.owners.items():
            if owner != plan[source]:
                self._hold(feed, source, True)

    def _hold(self, feed: PoolFeed, source: int, held: bool) -> None:
        if held != (source in feed.held):
            self._scheduler.hold(feed.number, source, held)
            feed.held.symmetric_difference_update((source,))
            if not held:
                feed.wake.set()

    async def _settle(self, feed: PoolFeed) -> None:
        """Return when every process runs, knows what it carries, and carries what the plan says."""
        while not await self._step(feed):
            await asyncio.sleep(STEP_S)

    async def _step(self, feed: PoolFeed) -> bool:
        is_done = True
        for shard in feed.shards:
            told = feed.carried_by(shard), feed.of
            port = shard.port
            if port is None:
                is_done = False
                feed.wake.set()
            elif shard.told != told or shard.left or shard.is_over:
                try:
                    await self.tell(feed, shard, port)
                except (ConnectionError, TimeoutError) as error:
                    log.info("pool %s has not been told what to carry: %s", shard.name, error)
                is_done &= shard.told == told and not shard.left and not shard.is_over
        for source, owner in feed.owners.items():
            place = feed.plan[source]
            if owner != place:
                is_done = False
                if self._is_free(feed, source):
                    feed.owners[source] = place
                    self._scheduler.set_shard(feed.number, source, place)
            elif (told_to := feed.shards[place].told) is not None and source in told_to[0]:
                self._hold(feed, source, False)
        return is_done

    def _is_free(self, feed: PoolFeed, source: int) -> bool:
        """No process has anything of a source that is to move."""
        if self._scheduler.seat_outstanding(feed.number, source):
            return False
        for shard in feed.shards:
            if shard.port is None:
                continue  # no process, no sessions; one that is starting is fed only after it was told
            if shard.told is None or source in shard.told[0] or source in shard.left:
                return False
        return True

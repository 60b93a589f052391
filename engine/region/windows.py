"""The window of ready messages in memory, over a queue on disk that may be far larger than memory.

A spool queue (recipient domain, stream, tenant, campaign) is ordered on disk by due time. Here each has one small
state: which flow of the scheduler it feeds, up to which due key it has been loaded, and when its next message falls
due. Messages themselves are in memory only while they are ready and their flow has room; the rest is read back from
the due index when the flow runs low.

Invariants: a due key is in the scheduler, or its queue is `backlogged` with a cursor before it, or its queue has a
timer at or before its due time and a cursor before it, or its queue waits for a route, or it has been passed over
because its message is busy (busy.py) and is looked at again when that ends. So nothing that is due is forgotten, and
memory is bounded by `ready_total` plus one state per spool queue that holds messages.

A queue that is neither backlogged nor has a timer rests. When it has rested for `IDLE_S` and holds nothing on disk,
neither waiting nor on the wire, it is forgotten, and its flow with it if no other queue feeds it (flows.py). It is
learnt again from the spool when something is offered for it.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Protocol

from engine.config.schema import LimitsConfig
from engine.region.busy import Busy
from engine.region.flows import Flows
from engine.region.refills import Line, Refills
from engine.region.sites import Site
from engine.routing.route import Failure, Route
from engine.values.clock import Clock
from native.scheduler import Scheduler
from native.wheel import Wheel

log = logging.getLogger(__name__)

KEY_SIZE = 18
REFILL_CHECKS = 32
FAR_MS = 1 << 43  # the year 2248: later ones are looked at then; the wheel counts nanoseconds in 64 bits
IDLE_S = 30.0
MAX_RESTING = 20_000  # more are looked at before they have rested for so long


class DueIndex(Protocol):
    """The part of the spool that is read here: short read transactions."""

    def scan_due(
        self, queue: int, after: bytes | None, until_due_ms: int, limit: int
    ) -> list[tuple[bytes, int]]: ...

    def first_due_after(self, queue: int, after: bytes | None) -> int | None: ...

    def queue(self, number: int) -> tuple[str, int, str, str]:
        """Domain, stream, tenant and campaign; KeyError: they are damaged."""

    def empty_queues(self, numbers: Iterable[int]) -> set[int]:
        """Those of them that hold no message, neither one that waits nor one that is on the wire."""


class SpoolQueue:
    """State of one spool queue in memory."""

    __slots__ = (
        "armed_ms",
        "backlogged",
        "campaign",
        "cursor",
        "domain",
        "flow",
        "head_ms",
        "listed",
        "number",
        "pool",
        "stream",
        "tenant",
        "timer",
    )

    def __init__(self, number: int, domain: str, stream: int, tenant: str, campaign: str) -> None:
        self.number = number
        self.domain = domain
        self.stream = stream
        self.tenant = tenant
        self.campaign = campaign
        self.flow = -1
        self.pool = -1
        self.cursor: bytes | None = None  # everything up to here has been loaded once
        self.backlogged = False  # due messages are on disk that are not in memory
        self.head_ms = 0  # and none of these is older
        self.listed = False  # waits for its refill
        self.armed_ms = 0  # due time of the timer, 0 for none
        self.timer = 0


class Windows:
    """All spool queues of a region, and the refill of the scheduler's flows from them."""

    def __init__(
        self,
        *,
        index: DueIndex,
        scheduler: Scheduler,
        clock: Clock,
        limits: LimitsConfig,
        flows: Flows,
        want_route: Callable[[str], None],
        expire: Callable[[list[bytes]], None],
        wake_pool: Callable[[int], None],
    ) -> None:
        self._index = index
        self._scheduler = scheduler
        self._clock = clock
        self._limits = limits
        self._flows = flows
        self._want_route = want_route
        self._expire = expire
        self._wake_pool = wake_pool
        self._queues: dict[int, SpoolQueue] = {}
        self._resting: dict[int, int] = {}  # since when, monotonic ns; the longest first
        self._unrouted: dict[str, list[SpoolQueue]] = {}
        self._refills = Refills[SpoolQueue]()
        self._wheel = Wheel(clock.wall_ms() * 1_000_000)
        self._busy = Busy()

    def __len__(self) -> int:
        return len(self._queues)

    def get(self, number: int) -> SpoolQueue | None:
        return self._queues.get(number)

    def backlogged(self) -> int:
        """How many routed queues wait for room in memory."""
        return len(self._refills)

    def routed_queues(self) -> Iterator[SpoolQueue]:
        """Queues whose flow is known."""
        return (queue for queue in self._queues.values() if queue.flow >= 0)

    def backlogged_flows(self) -> list[int]:
        """The flows that have more ready than there is room for in memory."""
        return self._refills.flows()

    def ready_since(self, flow: int) -> int | None:
        """Since when what goes next in a flow has been ready (unix ms); None if nothing is."""
        due_ms = self._scheduler.head_due_ms(flow)
        return due_ms if due_ms >= 0 else self._refills.head_ms(flow)

    def unrouted_domains(self) -> int:
        return len(self._unrouted)

    def unrouted_since(self) -> int | None:
        """No mail that waits for a route has been ready for longer (unix ms); None if none waits."""
        return min((queue.head_ms for queues in self._unrouted.values() for queue in queues), default=None)

    def learn(
        self,
        number: int,
        domain: str,
        stream: int,
        tenant: str,
        campaign: str,
        first_due_ms: int | None = None,
    ) -> SpoolQueue:
        """Make a queue known; with `first_due_ms` (recovery) what it holds will be loaded from then on."""
        queue = self._queues.get(number)
        if queue is None:
            queue = self._queues[number] = SpoolQueue(number, domain, stream, tenant, campaign)
        if first_due_ms is not None:
            self._arm(queue, first_due_ms)
        else:
            self._rest(queue)
        return queue

    def _queue(self, number: int) -> SpoolQueue | None:
        """Something has come for this queue: it is known, or learnt from the spool. None: its name is damaged, and what
        it holds stays where it is."""
        queue = self._queues.get(number)
        if queue is not None:
            return queue
        try:
            name = self._index.queue(number)
        except KeyError as error:
            log.error("messages wait and are not sent: %s", error)
            return None
        return self.learn(number, *name)

    def offer(self, due_keys: Iterable[bytes], now_ms: int) -> None:
        """Take in committed due keys, grouped by queue and in order within it."""
        groups: dict[int, list[bytes]] = {}
        for key in due_keys:
            number = int.from_bytes(key[:4], "big")
            group = groups.get(number)
            if group is None:
                groups[number] = [key]
            else:
                group.append(key)
        for number, keys in groups.items():
            queue = self._queue(number)
            if queue is not None:
                self._offer(queue, keys, now_ms)

    def _offer(self, queue: SpoolQueue, keys: Sequence[bytes], now_ms: int) -> None:
        ready = [key for key in keys if int.from_bytes(key[4:10], "big") <= now_ms]
        if len(ready) != len(keys):
            later = min(key for key in keys if _due(key) > now_ms)
            self._rewind(queue, later)
            self._arm(queue, _due(later))
        if not ready:
            return
        is_overdue = 0 < queue.armed_ms <= now_ms  # what fell due in this moment goes before what comes now
        if is_overdue or self._is_behind(queue) or len(ready) > self._room(queue.flow):
            first = min(ready)
            self._rewind(queue, first)
            self._back(queue, min(_due(first), queue.armed_ms) if is_overdue else _due(first))
            return
        free = self._busy.free(ready)
        if free:
            self._add(queue, free)
        self._rest(queue)

    def _is_behind(self, queue: SpoolQueue) -> bool:
        """Whether something that goes before what comes now is on disk still, or there is no route yet."""
        if queue.flow < 0 or queue.backlogged:
            return True
        return bool(queue.campaign) and self._refills.has_line(queue.flow)

    def hold(self, holder: str, ids: Sequence[int]) -> None:
        """These are on the wire in a process that outlived the former incarnation: not to be loaded until released.

        What has been loaded already and waits is taken out of memory; what another process has by now stays its.
        """
        loaded = [key for id_ in ids if (key := self._scheduler.key_of(id_)) is not None]
        self._scheduler.remove(b"".join(id_.to_bytes(8, "little") for id_ in ids))
        self._busy.hold(holder, [id_ for id_ in ids if not self._scheduler.contains(id_)])
        self._busy.free(loaded)  # they are passed over

    def is_held(self, id_: int) -> bool:
        return self._busy.is_held(id_)

    def release(self, id_: int) -> bytes | None:
        """The pool has spoken about an id on hold; returns its due key if it has been passed over meanwhile."""
        return self._busy.release(id_)

    def release_all(self, holder: str) -> None:
        """It will not speak about its ids on hold any more: those passed over become ready."""
        self.restore(self._busy.release_all(holder))

    def restore(self, due_keys: Iterable[bytes]) -> None:
        """These were taken out of memory, or passed over: what is due of them still is taken in again."""
        due_keys = sorted(due_keys)
        still = [key for key in due_keys if self._is_on_disk(key)]
        if still:
            self.offer(still, self._clock.wall_ms())

    def _is_on_disk(self, key: bytes) -> bool:
        number = int.from_bytes(key[:4], "big")
        return any(found == key for found, _ in self._index.scan_due(number, _before(key), _due(key), 1))

    def _add(self, queue: SpoolQueue, keys: Sequence[bytes]) -> None:
        self._scheduler.add(queue.flow, b"".join(keys))
        last = max(keys)
        if queue.cursor is None or last > queue.cursor:
            queue.cursor = last
        self._wake_pool(queue.pool)

    def _room(self, flow: int) -> int:
        room = self._limits.ready_window - self._scheduler.ready(flow)
        return min(room, self._limits.ready_total - self._scheduler.held())

    def _rewind(self, queue: SpoolQueue, key: bytes) -> None:
        """A key at or before the cursor would be skipped by the next refill: move the cursor before it."""
        if queue.cursor is not None and key <= queue.cursor:
            queue.cursor = _before(key)

    def _back(self, queue: SpoolQueue, due_ms: int) -> None:
        """It has messages on disk that are due; none of those that are news is older than `due_ms`."""
        queue.head_ms = min(queue.head_ms, due_ms) if queue.backlogged else due_ms
        queue.backlogged = True
        if queue.flow < 0:
            waiting = self._unrouted.get(queue.domain)
            if waiting is None:
                self._unrouted[queue.domain] = [queue]
                self._want_route(queue.domain)
            elif queue not in waiting:
                waiting.append(queue)
            return
        if not queue.listed:
            queue.listed = True
            self._refills.add(queue)
            self._wake_pool(queue.pool)

    def routed(self, domain: str, route: Route, site: Site) -> None:
        """The domain's site is known: its waiting queues feed their flows from now on."""
        for queue in self._unrouted.pop(domain, ()):
            queue.flow = self._flows.join(site, queue.stream, queue.tenant, queue.campaign)
            queue.pool = site.pool
            self._back(queue, queue.head_ms)

    def take_unroutable(self, domain: str, failure: Failure, limit: int) -> list[bytes]:
        """Due keys of a domain that has no route now, at most `limit`; [] when there are no more.

        The caller settles them (bounce or deferral) and calls again; the queues then wait on their timers.
        """
        now_ms = self._clock.wall_ms()
        keys: list[bytes] = []
        for queue in self._unrouted.get(domain, ()):
            while len(keys) < limit:
                found = self._index.scan_due(queue.number, queue.cursor, now_ms, limit - len(keys))
                if not found:
                    break
                queue.cursor = found[-1][0]
                keys.extend(self._busy.free([key for key, _ in found]))
            if len(keys) >= limit:
                return keys
        if not keys:
            for queue in self._unrouted.pop(domain, ()):
                queue.backlogged = False
                self._arm_next(queue)
        return keys

    def refill(self, pool: int) -> None:
        """Read backlogged queues of a pool from disk while their flows run low."""
        left = REFILL_CHECKS
        for _ in range(min(self._refills.lines(pool), REFILL_CHECKS)):
            line = self._refills.take_turn(pool)
            left -= self._fill(line, left)
            self._refills.end_turn(pool, line)
            if left <= 0:
                return

    def _fill(self, line: Line[SpoolQueue], limit: int) -> int:
        """Read queues of one flow while it runs low; returns how many were, at most `limit`."""
        for count in range(limit):
            room = self._room(line.flow) if line else 0
            is_low = room * 2 >= self._limits.ready_window or self._scheduler.ready(line.flow) == 0
            if room <= 0 or not is_low:
                return count
            queue, until_ms = line.pop()
            if self._load(queue, room, until_ms):
                line.add(queue)
            else:
                queue.listed = False
        return limit

    def _load(self, queue: SpoolQueue, room: int, until_ms: int) -> bool:
        """Load up to `room` messages that were due at `until_ms`; returns whether more are waiting on disk."""
        now_ms = self._clock.wall_ms()
        until_ms = min(now_ms, until_ms)
        read = self._index.scan_due(queue.number, queue.cursor, until_ms, room)
        keys = self._busy.free([key for key, _ in read])
        expired = {key for key, expires_ms in read if expires_ms < now_ms and _due(key) < expires_ms}
        if expired:
            gone = expired.intersection(
                keys
            )  # not what is busy: a survivor may be delivering it at this moment
            keys = [key for key in keys if key not in gone]
            self._expire(sorted(key for key in gone if not self._scheduler.contains(_id(key))))
        if read:
            queue.cursor = read[-1][0]
            queue.head_ms = _due(queue.cursor)
        if keys:
            self._add(queue, keys)
        if len(read) >= room:
            return True
        due_ms = self._index.first_due_after(queue.number, queue.cursor)
        if due_ms is not None and due_ms <= now_ms and until_ms < now_ms:
            queue.head_ms = due_ms
            return True
        queue.backlogged = False
        if due_ms is not None:
            self._arm(queue, due_ms)
        else:
            self._rest(queue)
        return False

    def _arm_next(self, queue: SpoolQueue) -> None:
        due_ms = self._index.first_due_after(queue.number, queue.cursor)
        if due_ms is not None:
            self._arm(queue, due_ms)
        else:
            self._rest(queue)

    def settling(self, ids: Iterable[int]) -> None:
        """Something about these is on its way to the disk: what it says of them until then is not loaded again."""
        self._busy.settling(ids)

    def settled(self, ids: Iterable[int]) -> None:
        """It is on disk, or has failed; those that are deferred come with `redue`."""
        passed_over = self._busy.settled(ids)
        if passed_over:
            self.restore(passed_over)

    def is_settling(self, id_: int) -> bool:
        return self._busy.is_settling(id_)

    def redue(self, due_key: bytes) -> None:
        """A deferred message has got this due key."""
        self.offer((due_key,), self._clock.wall_ms())

    def _arm(self, queue: SpoolQueue, due_ms: int) -> None:
        if queue.armed_ms and queue.armed_ms <= due_ms:
            return
        if queue.armed_ms:
            self._wheel.cancel(queue.timer)
        queue.armed_ms = due_ms
        queue.timer = self._wheel.add(min(due_ms, FAR_MS) * 1_000_000, queue.number)

    def tick(self) -> None:
        """Let the queues whose time has come load what is due."""
        now_ns = self._clock.wall_ms() * 1_000_000
        while True:
            fired = self._wheel.advance(now_ns, 1024)
            if not len(fired):
                return
            for number in fired:
                queue = self._queues[number]
                due_ms, queue.armed_ms = queue.armed_ms, 0
                self._back(queue, due_ms)

    # -- forgetting

    def _rest(self, queue: SpoolQueue) -> None:
        self._resting.pop(queue.number, None)
        self._resting[queue.number] = self._clock.monotonic_ns()

    def resting(self) -> int:
        """How many queues may be forgotten before long."""
        return len(self._resting)

    def sweep(self, limit: int) -> None:
        """Forget queues that have rested for long and hold nothing; at most `limit` are looked at."""
        now_ns = self._clock.monotonic_ns()
        spare = len(self._resting) - MAX_RESTING
        rested: list[SpoolQueue] = []
        for index, (number, since_ns) in enumerate(islice(self._resting.items(), limit)):
            if now_ns - since_ns < IDLE_S * 1e9 and index >= spare:
                break
            rested.append(self._queues[number])
        for queue in rested:
            del self._resting[queue.number]
        idle = [
            queue for queue in rested if not (queue.backlogged or queue.armed_ms)
        ]  # the others rest later
        empty = self._index.empty_queues([queue.number for queue in idle]) if idle else set()
        for queue in idle:
            if queue.number not in empty:
                self._rest(queue)
                continue
            del self._queues[queue.number]
            if queue.flow >= 0:
                self._flows.leave(queue.flow)

    def next_due_ms(self) -> int | None:
        due_ns = self._wheel.next_due_ns()
        return None if due_ns < 0 else -(-due_ns // 1_000_000)


def _due(key: bytes) -> int:
    return int.from_bytes(key[4:10], "big")


def _id(key: bytes) -> int:
    return int.from_bytes(key[10:18], "big")


def _before(key: bytes) -> bytes:
    """The greatest 18-byte string below `key` (there is one: ids start at 1)."""
    return (int.from_bytes(key, "big") - 1).to_bytes(KEY_SIZE, "big")

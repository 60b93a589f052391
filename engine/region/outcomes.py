"""What becomes of messages, onto disk and back into memory: reports of pools, the dead, the expired, the unroutable.

Everything that settles a message in a region comes through here: the scheduler forgets it, the sources' records and the
tenants' count it, one transaction of the spool makes it final or due again, the copies in other regions follow.
"""

import asyncio
import logging
import struct
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from engine.delivery.wire import decode_report
from engine.region.awaiting import awaited
from engine.region.cover import Cover
from engine.region.observer import Observer
from engine.region.ports import PoolName
from engine.region.settling import POOL_DIED, Settling
from engine.region.sites import DAY_MS, Sites
from engine.region.tally import FlowTally
from engine.region.tenants import Tenants
from engine.region.windows import Windows
from engine.spool.batches import Settlement
from engine.spool.errors import SpoolError
from engine.spool.store import Spool
from engine.tls.ledger import TlsLedger
from engine.values.clock import Clock
from engine.values.outcome import FINAL_KINDS, Outcome, OutcomeKind, Scope
from engine.values.reply import Reply
from native.scheduler import Scheduler

UNSAID_S = 60.0  # a pool says again within seconds what could not be written
EXPIRED_UNTRIED = Reply(0, "4.4.7", "message expired before it could be sent")

log = logging.getLogger(__name__)


class Outcomes:
    """See the module docstring. `finished`: so many messages are no longer at that pool."""

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        sites: Sites,
        windows: Windows,
        spool: Spool,
        settling: Settling,
        observer: Observer,
        tenants: Tenants,
        tls: TlsLedger,
        tally: FlowTally,
        cover: Cover | None,
        clock: Clock,
        finished: Callable[[int, int], None],
        spawn: Callable[[Coroutine[Any, Any, None]], Any],
    ) -> None:
        self._scheduler = scheduler
        self._sites = sites
        self._windows = windows
        self._spool = spool
        self._settling = settling
        self._observer = observer
        self._tenants = tenants
        self._tls = tls
        self._tally = tally
        self._cover = cover
        self._clock = clock
        self._finished = finished
        self._spawn = spawn
        self._unwritten: dict[
            int, int
        ] = {}  # what pools say again and again, since the disk is full: when last, in ns

    async def settle_keys(self, keys: Sequence[bytes], kind: OutcomeKind, scope: Scope, reply: Reply) -> None:
        """Settle messages that no pool has now."""
        now_ms = self._clock.wall_ms()
        settlements = []
        for key in keys:
            outcome = Outcome(int.from_bytes(key[10:], "big"), kind, scope, reply, 0xFFFF, "", now_ms)
            settlements.append(self._settling.settlement(key, outcome, 0, now_ms))
        await self._commit(settlements)

    def expire(self, keys: list[bytes]) -> None:
        """Messages whose time has run out while they waited; they are settled soon."""
        now_ms = self._clock.wall_ms()
        ids = [int.from_bytes(key[10:], "big") for key in keys]
        self._windows.settling(ids)
        self._spawn(
            self._commit_expired([Settlement(key, self._expired(key, now_ms), 0) for key in keys], ids)
        )

    async def _commit_expired(self, settlements: list[Settlement], ids: list[int]) -> None:
        try:
            await self._commit(settlements)
        finally:
            self._windows.settled(ids)

    def _expired(self, key: bytes, now_ms: int) -> Outcome:
        """A message has run out of time while it waited: its last answer, if it ever had one, is the reason."""
        id_ = int.from_bytes(key[10:], "big")
        record = self._spool.message(id_)
        reply, host, source = EXPIRED_UNTRIED, "", 0xFFFF
        if record is not None and record.last is not None:
            _, code, enhanced, text, host, source = record.last
            reply = Reply(code, enhanced, text)
        return Outcome(id_, OutcomeKind.EXPIRED, Scope.MESSAGE, reply, source, host, now_ms)

    async def settle(self, report: bytes) -> int:
        """Settle a pool's report on disk; returns its sequence number, which the pool may then forget."""
        decoded = decode_report(report)
        if decoded.epoch < self._spool.epoch:
            return decoded.sequence  # written for the former incarnation: `resume` has told us all of it
        if decoded.notices:
            self._observer.note_notices(decoded.notices)
        if decoded.findings:
            self._tls.note(decoded.findings)
        for pulse in decoded.pulses:
            self._observer.note_pulse(pulse)
        await self.settle_outcomes(decoded.outcomes, decoded.batch_numbers)
        return decoded.sequence

    async def settle_outcomes(self, outcomes: Sequence[Outcome], batch_no: int | Sequence[int]) -> None:
        """Settle what a pool says; `batch_no` of all, or of each: 0 is a batch that is not known."""
        now_ms = self._clock.wall_ms()
        self._sites.new_day(now_ms)
        midnight_ms = now_ms - now_ms % DAY_MS
        settlements: list[Settlement] = []
        returned: list[int] = []
        unsent: list[bytes] = []
        done: list[int] = []
        finished: dict[int, int] = {}
        attempts: dict[int, int] = {}
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
                if is_ours:
                    returned.append(id_)
                else:
                    unsent.append(key)
            else:
                done.append(id_)
                if outcome.at_ms < midnight_ms and is_ours and site >= 0:
                    self._sites.answered_before(midnight_ms, self._sites.site(site), outcome.source)
                attempts[pool] = attempts.get(pool, 0) + 1
                rerouted = self._observer.note(outcome, site)
                self._tenants.note(tenant, outcome)
            settlements.append(self._settling.settlement(key, outcome, number, now_ms, rerouted=rerouted))
        if returned:
            self._scheduler.give_back(struct.pack(f"<{len(returned)}Q", *returned))
        packed = struct.pack(f"<{len(done)}Q", *done)
        self._scheduler.settle(packed)
        # of one that is ready again, a process speaks that was thought to be dead
        self._scheduler.remove(packed)
        for pool, count in finished.items():
            self._finished(pool, count)
        self._tally.attempted(attempts)
        try:
            await self._commit(settlements)
        except SpoolError:  # the pool says it again; the scheduler has forgotten them
            now_ns = self._clock.monotonic_ns()
            self._unwritten.update(dict.fromkeys(done, now_ns))
            raise
        if self._unwritten:
            for id_ in done:
                self._unwritten.pop(id_, None)
        if unsent:  # by a process that outlived the former incarnation: this one has never had them in memory
            self._windows.restore(unsent)

    def _place_of(self, key: bytes) -> tuple[int, int, str]:
        """The pool and the site of a due key's queue, -1 for what is not known, and its tenant."""
        number = int.from_bytes(key[:4], "big")
        queue = self._windows.get(number)
        if queue is None:
            return -1, -1, self._spool.known_queue(number)[2]
        return queue.pool, -1 if queue.flow < 0 else self._scheduler.site_of(queue.flow), queue.tenant

    async def _commit(self, settlements: list[Settlement]) -> None:
        if not settlements:
            return
        classified = [self._settling.completed(one) for one in settlements]
        ids = [one.outcome.id for one in classified]
        self._windows.settling(ids)
        try:
            result = await awaited(self._spool.settle(classified))
        finally:
            self._windows.settled(ids)
        self._tally.settled(classified)
        if self._cover is not None:
            outcomes = [one.outcome for one in classified if one.outcome.kind is not OutcomeKind.RETURNED]
            self._cover.settled([one.id for one in outcomes if one.kind in FINAL_KINDS])
            self._cover.deferred([one.id for one in outcomes if one.kind not in FINAL_KINDS])
        for key in result.due_keys:
            self._windows.redue(key)

    async def lost(self, name: PoolName, ids: list[int]) -> None:
        """A process of a pool died holding these: each may have been sent; all are due again at once, marked."""
        keys = [key for id_ in ids if (key := self._scheduler.key_of(id_)) is not None]
        self._scheduler.settle(b"".join(id_.to_bytes(8, "little") for id_ in ids))
        await self._requeue(keys)
        self._windows.release_all(str(name))
        if self._unwritten:
            self._spawn(self._requeue_unsaid())

    async def _requeue(self, keys: Sequence[bytes]) -> None:
        """Each of these may have been sent by a process that died: due again at once, and marked."""
        now_ms = self._clock.wall_ms()
        self._sites.new_day(now_ms)
        reply = Reply(0, "4.3.0", POOL_DIED)
        settlements = []
        for key in keys:
            id_ = int.from_bytes(key[10:], "big")
            outcome = Outcome(
                id_, OutcomeKind.DEFERRED, Scope.SESSION, reply, 0xFFFF, "", now_ms, possible_duplicate=True
            )
            settlements.append(self._settling.settlement(key, outcome, 0, now_ms))
        await self._commit(settlements)

    async def _requeue_unsaid(self) -> None:
        """A process has died while outcomes could not be written: those that nobody says again were its."""
        while True:
            await asyncio.sleep(UNSAID_S)
            before_ns = self._clock.monotonic_ns() - round(UNSAID_S * 1e9)
            ids = [id_ for id_, said_ns in self._unwritten.items() if said_ns <= before_ns]
            keys = [key for id_ in ids if (key := self._spool.due_key_of(id_)) is not None]
            try:
                await self._requeue(keys)
            except SpoolError as error:
                log.warning("%d messages of a pool that died wait for the disk: %s", len(keys), error)
                continue
            for id_ in ids:
                self._unwritten.pop(id_, None)
            return

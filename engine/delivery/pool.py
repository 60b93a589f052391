"""The pool of one provider on one node: takes batches, sends them, reports what became of each id.

Promises:
- Every id handed over is reported exactly once: as delivered, deferred or bounced after an attempt, or as
  returned if no attempt could begin within `HOLD_S` seconds. Whoever takes the reports sees to it that they
  arrive; rows that are not acknowledged are told again to the next incarnation of the region, by `resume`.
- A connection limit, a rate interval and the messages per connection of the profile are never exceeded.
- A session that waits for the answer to a complete message is never killed before its timeout (RFC 1047): a
  stop waits for it.
- A batch number seen before in an epoch is dropped, so the region may repeat a hand-over. Batches of an older
  epoch are dropped; `resume` with a newer one drops what is not on the wire.
- Memory: what the region's credits allow, bodies only of messages on the wire and of those that are prepared for it,
  up to a bound (engine/delivery/preparation.py); unused lanes are forgotten.
- What is to be signed is never sent unsigned.

Reports leave in batches, `FLUSH_S` after the first row. While the region has not settled one, rows gather for the
next, up to `FLUSH_ROWS` or the next tick: a busy region gets fewer and larger ones. One coarse timer serves all
sessions.
"""

import asyncio
import logging
import math
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from engine.config.signing import DkimConfig
from engine.delivery.ending import LOOK_S, end_sessions
from engine.delivery.figures import pool_stats, session_points
from engine.delivery.form import DEFERRED_HERE
from engine.delivery.job import Job
from engine.delivery.lane import Lane
from engine.delivery.lanes import Gates, Lanes
from engine.delivery.ports import (
    EgressSource,
    LeaseCheck,
    Opener,
    PoolFailed,
    PoolProfile,
    Records,
    Render,
    ReportSink,
    Routes,
)
from engine.delivery.preparation import THREADS, Preparation, Signing
from engine.delivery.reports import Reports
from engine.delivery.tenure import Tenure, give_up, holding
from engine.delivery.unrouted import Unrouted
from engine.delivery.wire import (
    ENTRY,
    ID,
    POSSIBLE_DUPLICATE,
    RELAYED,
    Header,
    OutcomeRow,
    decode_assignment,
    decode_header,
    encode_holding,
    encode_resume,
)
from engine.metrics.catalogue import Point
from engine.smtp.opener import open_session
from engine.smtp.policy import Verdict
from engine.values.clock import Clock
from engine.values.outcome import OutcomeKind, Scope
from engine.values.reply import Reply

log = logging.getLogger(__name__)

HOLD_S = 5.0
TICK_S = 0.25
OPEN_TIMEOUT_S = 30.0
SEEN_BATCHES = 8192

# Seconds by phase of native.transaction: idle, RSET, MAIL, RCPT, DATA, final dot, QUIT, body block
# (RFC 5321 section 4.5.3.2; QUIT is ours: nothing depends on its answer).
TIMEOUTS_S = (0.0, 300.0, 300.0, 300.0, 120.0, 600.0, 5.0, 180.0)

_ABOUT_SOURCE = frozenset({Scope.SOURCE, Scope.NETBLOCK})
_RETURNED = int(OutcomeKind.RETURNED)
_DELIVERED = int(OutcomeKind.DELIVERED)
_RECIPIENT = str(Scope.RECIPIENT)
_SESSION = str(Scope.SESSION)


class PoolEngine:
    """See the module docstring. All methods run on one event loop."""

    def __init__(
        self,
        *,
        profile: PoolProfile,
        reader: Records,
        router: Routes,
        sources: Mapping[int, EgressSource],
        clock: Clock,
        report: ReportSink,
        render: Render,
        rng: random.Random,
        opener: Opener = open_session,
        signer: Signing | None = None,
        signing: DkimConfig | None = None,
        timeouts_s: tuple[float, ...] = TIMEOUTS_S,
        open_timeout_s: float = OPEN_TIMEOUT_S,
        hold_s: float = HOLD_S,
        tick_s: float = TICK_S,
        on_failure: Callable[[], None] = lambda: None,
        cpu_ns: Callable[[], int] = time.thread_time_ns,
        lease: LeaseCheck | None = None,
    ) -> None:
        self.profile = profile
        self.clock = clock
        self.routes = router
        self.opener = opener
        self.rng = rng
        self.open_timeout_s = open_timeout_s
        self.stopping = False
        self.preparation = Preparation(
            read=self._message_of,
            tenant_of=reader.tenant_of,
            is_held=self._is_held,
            signer=signer,
            margin_s=signing.margin if signing is not None else 0.0,
            threads=signing.threads if signing is not None else THREADS,
        )
        self._reader = reader
        self._sources = sources
        self.reports = Reports(report)
        self.tally = self.reports.tally
        self._render = render
        limits_s = (*timeouts_s, profile.transaction_timeout_s)
        self._timeouts_ns = tuple(round(seconds * 1e9) for seconds in limits_s)
        self._hold_ns = round(hold_s * 1e9)
        self._tick_s = tick_s
        self._on_failure = on_failure
        self._cpu_ns = cpu_ns
        self._tenure = Tenure()
        self._lease = lease
        rate = profile.rate
        self._interval_ns = 0 if rate is None else round(rate.period_s * 1e9 / rate.count)
        together = profile.rate_total
        self._epoch = 0
        self._jobs: dict[int, Job] = {}
        self._seen: OrderedDict[tuple[int, int], None] = OrderedDict()
        self._gates = Gates(
            connections=profile.max_connections,
            interval_ns=self._interval_ns,
            total=self._total_limit,
            total_interval_ns=0 if together is None else math.ceil(together.period_s * 1e9 / together.count),
        )
        self._lanes = Lanes(self._new_lane)
        self._unrouted = Unrouted(routes=router, found=self._routed, spawn=self.spawn)
        self._tasks: set[asyncio.Task[None]] = set()
        self._ticker: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None

    # -- the region's side

    async def deliver(self, header: bytes, entries: bytes) -> None:
        """Take a batch over: `entries` as the scheduler packs them. Repeating a batch has no effect."""
        if self._failure is not None:
            raise PoolFailed(f"pool {self.profile.name} has failed: {self._failure!r}") from self._failure
        head = decode_header(header)
        key = (head.epoch, head.batch)
        if head.epoch < self._epoch or key in self._seen:
            return
        self._epoch = self.reports.epoch = head.epoch
        self._seen[key] = None
        if len(self._seen) > SEEN_BATCHES:
            self._seen.popitem(last=False)
        if self._ticker is None:
            self._ticker = asyncio.get_running_loop().create_task(self._tick_forever())
            self._ticker.add_done_callback(self._ended)
        try:
            self._take_over(head, entries)
        except Exception as error:
            self._fail(error)
            raise PoolFailed(f"pool {self.profile.name} has failed: {error!r}") from error

    def _take_over(self, head: Header, entries: bytes) -> None:
        batch, sites = head.batch, head.sites
        unpacked = list(ENTRY.iter_unpack(entries))
        default = self._interval_ns, self.profile.max_connections
        for cell in {(entry[3], entry[2]) for entry in unpacked}:
            gate = self._gates.of(cell[0], sites[cell[1]])
            gate.interval_ns, gate.limit = head.paces.get(cell, default)
        records = self._reader.fetch(b"".join([ID.pack(entry[0]) for entry in unpacked]))
        now_ns = self.clock.monotonic_ns()
        carries = self._tenure.carries
        touched: set[Lane] = set()
        lanes: dict[tuple[int, int, str, int], Lane] = {}
        for (id_, send_at_ns, site_no, source, _, _, _, _), record in zip(unpacked, records, strict=True):
            known = self._jobs.get(id_)
            if known is not None:
                known.batch = batch  # still on the wire from an older epoch: its one outcome is reported here
                continue
            job = Job(
                id_,
                send_at_ns,
                site=sites[site_no],
                source=source,
                batch=batch,
                epoch=self._epoch,
                record=record,
                held_ns=now_ns,
                term=head.term,
            )
            self._jobs[id_] = job
            if record is None or source not in self._sources or not carries(source) or self.stopping:
                self.give_back(job)
                continue
            if isinstance(record, str):  # it cannot be read, and this is why
                self.settle(job, DEFERRED_HERE, Reply(0, "4.3.0", record[:1024]), "", False)
                continue
            place = source, site_no, job.domain, job.tls_wish
            lane = lanes.get(place)
            if lane is None:
                lane = self._lane_of(job)
                if lane is None:
                    continue
                lanes[place] = lane
                touched.add(lane)
            lane.add(job)
        for lane in touched:
            lane.pump()

    async def acknowledge(self, sequence: int) -> None:
        """Reports up to `sequence` are settled on disk."""
        self.reports.acknowledge(sequence)

    async def resume(self, epoch: int) -> bytes:
        """Attach a new incarnation of the region; see wire.py for the answer."""
        if epoch > self._epoch:
            self._epoch = self.reports.epoch = epoch
            self._drop_unsent()
        rows = self.reports.unacknowledged()
        return encode_resume(
            self.reports.sequence, rows, list(self._jobs), sorted(self._tenure.sources or ())
        )

    async def assign(self, assignment: bytes) -> bytes:
        """Carry these sources from now on, with this part of the shared limits (wire.py, Assignment). The answer says
        what is still here of others; asking again looks again."""
        self._tenure.update(decode_assignment(assignment))
        self._gates.share_anew()
        for job in self._unrouted.take(lambda job: not self._tenure.carries(job.source)):
            self.give_back(job)
        give_up(self._tenure, self._lanes)
        return encode_holding(
            holding(
                self._tenure,
                jobs=self._jobs.values(),
                lanes=self._lanes,
                gates=self._gates,
                totals=self._gates.totals.values(),
                now_ns=self.clock.monotonic_ns(),
            )
        )

    async def load(self) -> tuple[int, int]:
        """Processor time that the event loop's thread has used, and the monotonic clock, in nanoseconds."""
        return self._cpu_ns(), self.clock.monotonic_ns()

    async def drain(self, deadline_s: float) -> None:
        """Give back what has not begun, finish what has. Beyond the deadline waits only for final replies."""
        self.stopping = True
        for job in self._unrouted.take_all():
            self.give_back(job)
        await end_sessions(self._lanes, deadline_s=deadline_s, look_s=min(LOOK_S, self._tick_s))
        self.reports.flush()

    async def stop(self, deadline_s: float) -> None:
        """Drain, then end the pool's own tasks."""
        await self.drain(deadline_s)
        tasks = [*self._tasks, *([self._ticker] if self._ticker is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.preparation.stop()

    def figures(self) -> list[Point]:
        """For metrics and alerts (engine/metrics/catalogue.py)."""
        return session_points(self.profile.name, self._sources, self._gates)

    def stats(self) -> dict[str, object]:
        """Counts since the start, and gauges."""
        return pool_stats(
            self.profile.name,
            held=len(self._jobs),
            lanes=self._lanes,
            gates=self._gates,
            preparation=self.preparation,
            reports=self.reports,
        )

    # -- lanes

    def _lane_of(self, job: Job) -> Lane | None:
        """The lane of a job; None while its route is being looked up."""
        route = self.routes.cached(job.domain)
        if job.tls_wish and hasattr(route, "hosts"):
            route = self.routes.wished(route, job.tls_wish)
        lane = self._lanes.known(job, route)
        if lane is not None:
            return lane
        if route is None:
            self._unrouted.add(job)
            return None
        if not hasattr(route, "hosts"):
            self._unroutable(job, route)
            return None
        return self._lanes.of(job, route)

    def _new_lane(self, source: int, site: str, route: Any) -> Lane:
        return Lane(self, source=self._sources[source], route=route, gate=self._gates.of(source, site))

    def _total_limit(self) -> int:
        return self._tenure.part_of(self.profile.max_connections_total or 0)

    def _routed(self, jobs: list[Job], route: Any) -> None:
        """The route of these jobs is known now, or that there is none."""
        touched = set()
        for job in jobs:
            if not hasattr(route, "hosts"):
                self._unroutable(job, route)
                continue
            lane = self._lanes.of(job, self.routes.wished(route, job.tls_wish) if job.tls_wish else route)
            lane.add(job)
            touched.add(lane)
        for lane in touched:
            lane.pump()

    def _unroutable(self, job: Job, failure: Any) -> None:
        kind = OutcomeKind.BOUNCED if failure.kind == "bounced" else OutcomeKind.DEFERRED
        self.settle(job, Verdict(kind, Scope.DOMAIN), failure.reply, "", False)

    def _drop_unsent(self) -> None:
        """Forget what an older incarnation handed over and is not on the wire: the new one has it on disk."""
        for lane in self._lanes.values():
            for job in lane.pending:
                self.preparation.forget(job)
                del self._jobs[job.id]
            lane.pending.clear()
        for job in self._unrouted.take_all():
            del self._jobs[job.id]

    # -- for lanes and sessions

    def _is_held(self, job: Job) -> bool:
        return self._jobs.get(job.id) is job

    def _message_of(self, job: Job) -> bytes:
        """The message as stored or rendered; raises what reading or rendering raises."""
        content = job.record.content
        if len(content) == 2:
            return self._render(job.id, job.record)
        body = self._reader.body(content)
        return body if type(body) is bytes else bytes(body)

    def delivered(self, job: Job, code: int, enhanced: str, text: str, host: str, is_relayed: bool) -> None:
        self._finish(
            job,
            (
                job.id,
                _DELIVERED,
                _RECIPIENT,
                code,
                enhanced,
                text,
                host,
                job.source,
                self.clock.wall_ms(),
                RELAYED if is_relayed else 0,
                job.batch,
            ),
        )

    def settle(self, job: Job, verdict: Verdict, reply: Reply, host: str, possible_duplicate: bool) -> None:
        if verdict.scope in _ABOUT_SOURCE:
            self._recall(job.source, job.site)
        self._finish(
            job,
            (
                job.id,
                int(verdict.kind),
                str(verdict.scope),
                reply.code,
                reply.enhanced,
                reply.text,
                host,
                job.source,
                self.clock.wall_ms(),
                POSSIBLE_DUPLICATE if possible_duplicate else 0,
                job.batch,
            ),
        )

    def _recall(self, source: int, site: str) -> None:
        """The site has refused the source: what has not begun goes back, to be sent over another."""
        for lane in list(self._gates.of(source, site).users):
            if isinstance(lane, Lane):
                lane.give_back_all()

    def may_send(self, job: Job, now_ns: int) -> bool:
        """Whether the region's lease allows a transaction to begin now."""
        return not job.term or (self._lease is not None and self._lease.allows(job.term, now_ns))

    def give_back(self, job: Job) -> None:
        """No attempt was made: the region gets the id and its charge back."""
        self._finish(
            job,
            (job.id, _RETURNED, _SESSION, 0, "", "", "", job.source, self.clock.wall_ms(), 0, job.batch),
        )

    def _finish(self, job: Job, row: OutcomeRow) -> None:
        del self._jobs[job.id]
        self.preparation.forget(job)
        self.reports.add(row)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Nothing works any more: whoever owns the process ends it, and the region starts another."""
        if self._failure is None:
            self._failure = error
            log.critical("pool %s has failed", self.profile.name, exc_info=error)
            self._on_failure()

    def at(self, when_ns: int, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """Call back at a monotonic time, never before it."""
        delay_s = (when_ns - self.clock.monotonic_ns()) / 1e9
        return asyncio.get_running_loop().call_later(max(0.001, math.ceil(delay_s * 1000) / 1000), callback)

    # -- time

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(self._tick_s)
            self.tick()

    def tick(self) -> None:
        """Timeouts, idle sessions, entries held too long, unacknowledged reports, unused lanes."""
        now_ns = self.clock.monotonic_ns()
        self.reports.tick(self.preparation.take_notices(), self._gates.take_pulses())
        for job in self._unrouted.take(lambda job: job.held_ns <= now_ns - self._hold_ns):
            self.give_back(job)
        idle_ns = round(self.profile.idle_timeout_s * 1e9)
        for key, lane in list(self._lanes.items()):
            for session in list(lane.sessions):
                machine = session.machine
                if machine.is_idle and now_ns - session.idle_since_ns >= idle_ns:
                    machine.quit()
                else:
                    machine.tick(now_ns, self._timeouts_ns, self.profile.min_data_rate)
            if lane.pending:
                lane.expire(now_ns - self._hold_ns)
                lane.pump()
            elif lane.is_unused(now_ns):
                self._lanes.forget(key)
        self._gates.sweep(now_ns)

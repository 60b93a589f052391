"""One lane: the jobs of one source for one route, the sessions that carry them, and the opening of more.

A session is opened when jobs are due and no session is free, one at a time per lane: a fast host is served by
few sessions, a slow one gets more, up to the limits of the gate. When no host will talk to us, what waits is
deferred with that answer, and what comes during the backoff too; while other sessions of the lane live, only
the opening pauses.

What waits is prepared (engine/delivery/preparation.py) from the head on: where messages are signed, ahead of the
sessions that will want them; else at the moment they are wanted. A host that lacks 8BITMIME or SMTPUTF8 makes the
lane prepare everything 7-bit from then on.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from engine.delivery.form import Unsendable, WireMessage
from engine.delivery.hosts import Found, NotFound, find_host, unreachable
from engine.delivery.job import PREPARING, Job
from engine.delivery.pacing import Gate
from engine.delivery.ports import EgressSource, Opener, PoolProfile, PoolRoute, Routes
from engine.delivery.preparation import AHEAD, Preparation
from engine.delivery.pulse import ENOUGH, TIMED_SIZE
from engine.delivery.session import Session
from engine.smtp.policy import FailureReason, Phase, Verdict, classify
from engine.tls.tally import Tally
from engine.values.clock import Clock
from engine.values.options import Options
from engine.values.reply import Reply

log = logging.getLogger(__name__)

MAX_TRIES = 3
BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 60.0


class LanePool(Protocol):
    """What a lane needs of its pool."""

    profile: PoolProfile
    clock: Clock
    routes: Routes
    opener: Opener
    rng: random.Random
    open_timeout_s: float
    stopping: bool
    preparation: Preparation
    tally: Tally

    def settle(
        self, job: Job, verdict: Verdict, reply: Reply, host: str, possible_duplicate: bool
    ) -> None: ...
    def delivered(
        self, job: Job, code: int, enhanced: str, text: str, host: str, is_relayed: bool
    ) -> None: ...
    def give_back(self, job: Job) -> None: ...
    def may_send(self, job: Job, now_ns: int) -> bool: ...
    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None: ...
    def at(self, when_ns: int, callback: Callable[[], None]) -> asyncio.TimerHandle: ...


class Lane:
    """See the module docstring."""

    def __init__(self, pool: LanePool, *, source: EgressSource, route: PoolRoute, gate: Gate) -> None:
        self._pool = pool
        self._source = source
        self.route = route
        self.gate = gate
        self.pending: deque[Job] = deque()
        self.sessions: set[Session] = set()
        self.opening = False
        self.is_closed = False
        self._seven_bit = False
        self._ahead = 0  # of `pending`, from its head: those that preparing has begun for, at least
        self._max_recipients = pool.profile.max_recipients
        self._failures = 0
        self._failure: NotFound | None = None
        self._retry_ns = 0
        self._ended_ns = 0  # when a session last ended here
        self._wake: asyncio.TimerHandle | None = None
        gate.join(self)
        self.settle = pool.settle
        self.delivered = pool.delivered
        self.now_ns = pool.clock.monotonic_ns

    # -- from the pool

    def add(self, job: Job) -> None:
        self.pending.append(job)

    def pump(self) -> None:
        """Jobs came, room was made, or time passed: put idle sessions to work, open another if need be."""
        if not self.pending:
            return
        self._prepare_ahead()
        for session in list(self.sessions):
            if session.machine.is_idle:
                session.machine.kick()
                if not self.pending:
                    return
        if self.opening or self._pool.stopping:
            return
        now_ns = self.now_ns()
        if now_ns < self._retry_ns:
            if self._failure is not None and not self.sessions:
                self._defer_all(self._failure)
            return
        if self.sessions and (
            self.gate.earliest_ns(self.pending[0].send_at_ns) > now_ns or self.pending[0].form is PREPARING
        ):
            return
        if not self.gate.has_room():
            self.gate.refused += 1
            self._claim_idle()
            return
        self.gate.acquire()
        self.opening = True
        self._prepare_ahead()
        self._pool.spawn(self._open())

    def expire(self, before_ns: int) -> None:
        """Give back what waits since before that time without having been due to wait."""
        kept: deque[Job] = deque()
        for job in self.pending:
            if max(job.held_ns, job.send_at_ns) <= before_ns:
                self._pool.give_back(job)
            else:
                kept.append(job)
        self.pending = kept

    def give_back_all(self) -> None:
        while self.pending:
            self._pool.give_back(self.pending.popleft())

    def is_unused(self, now_ns: int) -> bool:
        """Nothing here that must be remembered."""
        return not (self.pending or self.sessions or self.opening or now_ns < self._retry_ns)

    def close(self) -> None:
        self.is_closed = True
        self.gate.leave(self)
        if self._wake is not None:
            self._wake.cancel()

    # -- from the sessions

    def is_over_limit(self) -> bool:
        """The limit of connections has been lowered below what is open."""
        return self.gate.open > self.gate.limit or self.gate.total.is_over()

    def take(self, session: Session) -> tuple[list[Job], WireMessage] | None:
        """The next transaction of a session: one job, or several that share one message, and the message.

        None: nothing may begin now, or the message is still being prepared; the session is kicked when it can.
        """
        pending = self.pending
        while pending and not self._pool.stopping:
            now_ns = self.now_ns()
            first = pending[0]
            if not self._pool.may_send(first, now_ns):
                self.give_back_all()
                return None
            start_ns = self.gate.earliest_ns(first.send_at_ns)
            if start_ns > now_ns:
                self._wake_at(start_ns)
                return None
            form = self._form_for(first, session)
            if form is None:
                return None
            if isinstance(form, Unsendable):
                pending.popleft()
                self.settle(first, form.verdict, form.reply, "", False)
                continue
            if session.limits_domains and not session.is_open_to(first.domain):
                session.machine.quit()
                return None
            pending.popleft()
            jobs = [first]
            if form.is_shared and not self.gate.has_rate():
                self._add_recipients(jobs, session, now_ns)
            self._ahead -= len(jobs)
            self.gate.started(now_ns)
            is_timed = self.gate.meter.timed < ENOUGH and len(form.data) <= TIMED_SIZE
            first.begun_ns = now_ns if is_timed else 0
            if self._ahead <= AHEAD // 2:
                self._prepare_ahead()
            return jobs, form
        return None

    def _form_for(self, job: Job, session: Session) -> WireMessage | Unsendable | None:
        """The form in which the session can send the job; None while it is being made."""
        if job.form is None:
            self._prepare(job)
        if isinstance(job.form, WireMessage) and not session.can_send(job.form):
            self._seven_bit = True
            self._pool.preparation.forget(job)
            self._prepare(job)
        form: WireMessage | Unsendable = job.form
        return None if job.form is PREPARING else form

    def _prepare(self, job: Job) -> None:
        job.seven_bit = job.seven_bit or self._seven_bit
        self._pool.preparation.begin(job, self.pump)

    def _add_recipients(self, jobs: list[Job], session: Session, now_ns: int) -> None:
        """More jobs for the same transaction: same message, sender and wishes of the sender."""
        pending = self.pending
        record = jobs[0].record
        most = min(self._max_recipients, session.max_recipients)
        while pending and len(jobs) < most:
            other = pending[0]
            if (
                other.send_at_ns > now_ns
                or other.term != jobs[0].term
                or other.record.content != record.content
                or other.record.sender != record.sender
                # a host without SMTPUTF8 refuses the one and not the other
                or other.record.recipient.isascii() != record.recipient.isascii()
                or other.seven_bit != jobs[0].seven_bit
                or not _same_for_sender(other.record.options, record.options)
                or (session.limits_domains and not session.is_open_to(other.domain))
            ):
                return
            jobs.append(pending.popleft())

    def _prepare_ahead(self) -> None:
        preparation = self._pool.preparation
        if not preparation.is_ahead or not (self.sessions or self.opening):
            return
        self._ahead = 0
        for job in self.pending:
            if job.form is None:
                if self._ahead and not preparation.has_room():
                    return
                self._prepare(job)
            self._ahead += 1
            if self._ahead >= AHEAD:
                return

    def put_back(self, jobs: list[Job], *, tried: bool) -> None:
        """Jobs that the peer has not seen, or wants in smaller portions, at the head of the lane."""
        for job in reversed(jobs):
            if tried:
                job.tries += 1
            if job.tries >= MAX_TRIES:
                verdict = classify(Phase.MAIL, FailureReason.LOST)
                self.settle(job, verdict, Reply(0, "4.4.2", "sessions end before they answer"), "", False)
            elif self._pool.stopping:
                self._pool.give_back(job)
            else:
                self.pending.appendleft(job)

    def answered(self, job: Job) -> None:
        """The transaction that began with the job has had its final reply."""
        if job.begun_ns:
            self.gate.meter.answered(self.now_ns() - job.begun_ns)

    def limit_recipients(self, count: int) -> None:
        self._max_recipients = max(1, min(self._max_recipients, count))

    def ended(self, session: Session, *, useful: bool) -> None:
        self.sessions.discard(session)
        self._ended_ns = self.now_ns()
        self.gate.release()
        self.gate.meter.closed()
        if not useful:
            self._back_off(None)
        asyncio.get_running_loop().call_soon(self._pump_gate)

    # -- within

    def _pump_gate(self) -> None:
        """Room was made: for lanes that share its limits, first those without a session, who lacked one longest."""
        shared = self.gate.total.users if self.gate.total.limit else self.gate.users
        lanes = [lane for lane in shared if isinstance(lane, Lane) and lane.pending]
        for lane in sorted(lanes, key=lambda lane: (bool(lane.sessions), lane._ended_ns)):
            lane.pump()

    def _wake_at(self, when_ns: int) -> None:
        if self._wake is not None:
            self._wake.cancel()
        self._wake = self._pool.at(when_ns, self._woken)

    def _woken(self) -> None:
        self._wake = None
        self.pump()

    def _claim_idle(self) -> None:
        """All connections are taken: end an idle one of a lane that has no use for it."""
        for lane in self.gate.rivals():
            if lane is self or not isinstance(lane, Lane) or lane.pending:
                continue
            for session in lane.sessions:
                if session.machine.is_idle:
                    session.machine.quit()
                    return

    def _back_off(self, failure: NotFound | None) -> None:
        self._failure = failure
        self._failures += 1
        delay_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(self._failures - 1, 10))
        delay_s *= 0.75 + 0.5 * self._pool.rng.random()
        self._retry_ns = self.now_ns() + round(delay_s * 1e9)

    def _defer_all(self, failure: NotFound) -> None:
        while self.pending:
            self.settle(self.pending.popleft(), failure.verdict, failure.reply, failure.host, False)

    async def _open(self) -> None:
        pool = self._pool
        domain = self.pending[0].domain if self.pending else ""
        try:
            try:
                found = await find_host(
                    self.route,
                    self._source,
                    routes=pool.routes,
                    opener=pool.opener,
                    rng=pool.rng,
                    timeout_s=pool.open_timeout_s,
                    domain=domain,
                    tally=pool.tally,
                )
            except OSError as error:
                found = unreachable(self._first_host(), error)
            except Exception as error:
                # whatever a peer or its DNS can provoke that nobody thought of: theirs alone, not the pool's
                log.exception("no session to %s can be opened", self._first_host())
                found = unreachable(self._first_host(), error)
        except BaseException:
            self.opening = False
            self.gate.release()
            raise
        self.opening = False
        if isinstance(found, NotFound):
            self.gate.release()
            self._back_off(found)
            if not self.sessions:
                self._defer_all(found)
            elif 400 <= found.reply.code < 500:
                self.gate.meter.refused()
            return
        self._opened(found)

    def _first_host(self) -> str:
        return self.route.hosts[0].name if self.route.hosts else ""

    def _opened(self, found: Found) -> None:
        self._failures = 0
        self._failure = None
        profile = self._pool.profile
        session = Session(
            self,
            host=found.host,
            opened=found.opened,
            pipelining=profile.pipelining,
            chunking=profile.chunking,
            max_transactions=profile.messages_per_connection,
        )
        self.sessions.add(session)
        self.gate.meter.opened()
        session.machine.attach(found.opened.transport, found.opened.wire)
        if self._pool.stopping:
            session.machine.quit()
        self.pump()


def _same_for_sender(one: Options | None, other: Options | None) -> bool:
    """Whether two recipients can be in one transaction: what stands in MAIL is equal."""
    return one is other or _of_mail(one) == _of_mail(other)


def _of_mail(options: Options | None) -> tuple[int, str, str]:
    return (0, "", "") if options is None else (options.flags, options.ret, options.envid)

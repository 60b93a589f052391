"""The stage between the queue of a lane and the wire: messages are read or rendered, mended and signed.

Reading, rendering and the usual look at the octets happen on the event loop. Whatever takes longer, signatures and
changes of encoding, goes to a few threads in batches: `cryptography` and the canonical forms work without the
interpreter lock, so the loop goes on sending meanwhile.

Promises:
- A message that is to be signed and cannot be is deferred, or bounced where no later attempt could do better; it never
  goes out unsigned. Whatever goes wrong on a thread is such a failure.
- A job is either without a form, PREPARING, or has the form that its session is to send or the reason why it cannot be.
- Bounds: MAX_BYTES of messages being prepared or ready, AHEAD per lane; beyond them a lane prepares the one message
  that it wants to send next.
- A job that has left the pool meanwhile is of no interest any more: its form is dropped.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

from engine.delivery.form import (
    BOUNCED_HERE,
    DEFERRED_HERE,
    Draft,
    Unsendable,
    WireMessage,
    draft_of,
    finished,
    is_ready,
    mended,
    unreadable,
)
from engine.delivery.job import PREPARING, Job
from engine.dkim.signer import SigningError, Unsigned
from engine.values.reply import Reply

log = logging.getLogger(__name__)

AHEAD = 64
BATCH = 16
MAX_BYTES = 64 << 20
THREADS = 2


class Signing(Protocol):
    """engine/dkim/signer.py: Signer."""

    def sign(self, messages: Sequence[Unsigned]) -> list[bytes | SigningError]: ...
    def take_notices(self) -> list[tuple[str, str]]: ...


class _Work:
    """One message on its way through a thread, for one job or several that share its bytes."""

    __slots__ = ("draft", "form", "jobs", "record", "seven_bit", "tenant", "wake")

    def __init__(self, job: Job, draft: Draft, tenant: str, wake: Callable[[], None]) -> None:
        self.jobs = [job]
        self.draft = draft
        self.record = job.record
        self.seven_bit = job.seven_bit
        self.tenant = tenant
        self.wake = wake
        self.form: WireMessage | Unsendable | None = None

    def takes(self, job: Job, wake: Callable[[], None]) -> bool:
        """Whether that job of the same lane has a message with the very same bytes."""
        record, other = self.record, job.record
        return (
            self.draft.is_shared
            and self.wake == wake
            and self.seven_bit == job.seven_bit
            and record.content == other.content
            and record.accepted_ms == other.accepted_ms
            and record.expires_ms == other.expires_ms
        )


class Preparation:
    """See the module docstring. `signer` None: nothing is signed. A signature outlives its message by `margin_s`."""

    def __init__(
        self,
        *,
        read: Callable[[Job], bytes],
        tenant_of: Callable[[Any], str],
        is_held: Callable[[Job], bool],
        signer: Signing | None = None,
        margin_s: float = 0.0,
        threads: int = THREADS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._read = read
        self._tenant_of = tenant_of
        self._is_held = is_held
        self._signer = signer
        self._margin_ms = round(margin_s * 1000)
        self._threads = threads
        self._max_bytes = max_bytes
        self._executor: ThreadPoolExecutor | None = None
        self._queue: deque[_Work] = deque()
        self._running: set[asyncio.Future[None]] = set()
        self._is_starting = False
        self._is_stopped = False
        self.held_bytes = 0
        self.signed = 0
        self.failed = 0

    @property
    def is_ahead(self) -> bool:
        """Whether messages are to be prepared before they are wanted."""
        return self._signer is not None

    @property
    def waiting(self) -> int:
        """Messages that wait for a thread."""
        return len(self._queue)

    def has_room(self) -> bool:
        return self.held_bytes < self._max_bytes

    def begin(self, job: Job, wake: Callable[[], None]) -> None:
        """Give the job its form now, or later: then `wake` is called on the loop."""
        last = self._queue[-1] if self._queue else None
        if last is not None and last.takes(job, wake):
            last.jobs.append(job)
            job.form = PREPARING
            return
        is_rendered = len(job.record.content) == 2
        try:
            draft = draft_of(self._read(job), job.record, is_rendered=is_rendered)
            tenant = "" if self._signer is None else self._tenant_of(job.record)
        except Exception as error:  # one bad message must not stop the others
            log.exception("message %016x cannot be read or rendered", job.id)
            job.form = unreadable(error)
            return
        self._charge(job, len(draft.data))
        if self._signer is None and is_ready(draft, seven_bit=job.seven_bit):
            job.form = finished(draft)
            return
        job.form = PREPARING
        self._queue.append(_Work(job, draft, tenant, wake))
        self._start()

    def forget(self, job: Job) -> None:
        """The job has left, or wants another form."""
        self.held_bytes -= job.charged
        job.charged = 0
        job.form = None

    def take_notices(self) -> list[tuple[str, str]]:
        return [] if self._signer is None else self._signer.take_notices()

    def stop(self) -> None:
        """What is under way ends by itself and is dropped."""
        self._is_stopped = True
        self._queue.clear()
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)

    # -- within

    def _charge(self, job: Job, size: int) -> None:
        self.held_bytes += size - job.charged
        job.charged = size

    def _start(self) -> None:
        """Keep every thread busy. The queue is looked at when the loop has gone round, so batches can gather."""
        if len(self._running) < self._threads and not self._is_starting:
            self._is_starting = True
            asyncio.get_running_loop().call_soon(self._start_batches)

    def _start_batches(self) -> None:
        self._is_starting = False
        if self._is_stopped:
            return
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix="prepare")
        loop = asyncio.get_running_loop()
        while self._queue and len(self._running) < self._threads:
            free = self._threads - len(self._running)
            count = min(BATCH, -(-len(self._queue) // free))
            batch = [self._queue.popleft() for _ in range(count)]
            future = loop.run_in_executor(self._executor, self._prepare, batch)
            self._running.add(future)
            future.add_done_callback(partial(self._done, batch))

    def _done(self, batch: list[_Work], future: asyncio.Future[None]) -> None:
        self._running.discard(future)
        if future.cancelled():
            return
        error = future.exception()
        if error is not None:
            log.error("messages cannot be prepared", exc_info=error)
        wakes: dict[Callable[[], None], None] = {}
        for work in batch:
            form = work.form or _failed(error)
            for job in work.jobs:
                if job.form is not PREPARING or not self._is_held(job):
                    continue
                job.form = form
                if isinstance(form, WireMessage) and job is work.jobs[0]:
                    self._charge(job, len(form.data))
            wakes[work.wake] = None
        self._start_batches()
        for wake in wakes:
            wake()

    # -- on a thread

    def _prepare(self, batch: list[_Work]) -> None:
        todo: list[tuple[_Work, Draft]] = []
        for work in batch:
            draft = mended(work.draft, seven_bit=work.seven_bit)
            if isinstance(draft, Unsendable):
                work.form = draft
            else:
                todo.append((work, draft))
        if self._signer is None:
            for work, draft in todo:
                work.form = finished(draft)
            return
        unsigned = [
            Unsigned(
                draft.head,
                draft.body,
                work.record.accepted_ms // 1000,
                (work.record.expires_ms + self._margin_ms) // 1000,
                work.tenant,
            )
            for work, draft in todo
        ]
        for (work, draft), found in zip(todo, self._signer.sign(unsigned), strict=True):
            if isinstance(found, SigningError):
                self.failed += 1
                work.form = _refused(found)
            else:
                self.signed += bool(found)
                work.form = finished(draft, found)


def _refused(error: SigningError) -> Unsendable:
    text = f"DKIM: {error}"[:1024]
    if error.permanent:
        return Unsendable(BOUNCED_HERE, Reply(0, f"5.{error.enhanced}", text))
    return Unsendable(DEFERRED_HERE, Reply(0, f"4.{error.enhanced}", text))


def _failed(error: BaseException | None) -> Unsendable:
    return Unsendable(DEFERRED_HERE, Reply(0, "4.3.0", f"the message cannot be prepared: {error!r}"[:1024]))

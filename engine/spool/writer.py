"""Group commit: one thread that owns every write transaction of a spool.

Whatever arrives while a commit is syncing goes into the next one. Order within a group: bodies are appended, the
operations run, the body segment is synced, the index is committed (two barriers); only then are the callers told, all
of a group with one wake-up.

A group that runs into a full map is undone, the map is grown, and the group runs again. A commit that fails has an
unknown outcome: the environment is opened again and its group number says whether it went through.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from engine.spool.draft import Draft
from engine.spool.environment import Error, MapFull
from engine.spool.errors import SpoolError, SpoolFailed

log = logging.getLogger(__name__)

MAX_GROUP = 256


@dataclass(slots=True)
class Operation:
    """`run(draft)` makes the change. `prepare`, if given, runs before it, outside the transaction's retries."""

    run: Callable[[Draft], Any]
    future: "Future[Any]"
    after: Callable[[], None] | None = None


class Committer(Protocol):
    """What the writer needs of the store."""

    def begin_group(self) -> Draft: ...
    def commit_group(self, draft: Draft) -> None: ...
    def abort_group(self, draft: Draft) -> None: ...
    def grow(self) -> bool: ...
    def reopen_and_look(self, draft: Draft) -> bool: ...


class GroupWriter:
    """See the module docstring."""

    def __init__(
        self,
        committer: Committer,
        *,
        deliver: Callable[[list[Callable[[], None]]], None],
        step: Callable[[str], None],
    ) -> None:
        self._committer = committer
        self._deliver = deliver
        self._step = step
        self._queue: deque[Operation] = deque()
        self._condition = threading.Condition()
        self._closing = False
        self._failed: BaseException | None = None
        self.groups = 0
        self.operations = 0
        self._thread = threading.Thread(target=self._main, name="spool-writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, run: Callable[[Draft], Any]) -> "Future[Any]":
        future: Future[Any] = Future()
        with self._condition:
            if self._failed is not None:
                future.set_exception(SpoolFailed(str(self._failed)))
                return future
            if self._closing:
                future.set_exception(SpoolError("the spool is closed"))
                return future
            self._queue.append(Operation(run, future))
            self._condition.notify()
        return future

    def close(self) -> None:
        """Commit what is waiting, and end."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _main(self) -> None:
        while True:
            with self._condition:
                while not self._queue and not self._closing:
                    self._condition.wait()
                if not self._queue:
                    return
                group = [self._queue.popleft() for _ in range(min(len(self._queue), MAX_GROUP))]
            try:
                answers = self._commit(group)
            except Exception as error:
                # nothing may be written any more: what waits, and what will come, is answered with the failure
                log.critical("spool writer failed", exc_info=error)
                with self._condition:
                    self._failed = error
                    group += self._queue
                    self._queue.clear()
                answers = [_raiser(operation.future, SpoolFailed(str(error))) for operation in group]
            self.groups += 1
            self.operations += len(group)
            self._deliver(answers)

    def _commit(self, group: list[Operation]) -> list[Callable[[], None]]:
        while True:
            draft = self._committer.begin_group()
            answers: list[Callable[[], None]] = []
            try:
                for operation in group:
                    try:
                        answers.append(_setter(operation.future, operation.run(draft)))
                    except SpoolError as error:
                        answers.append(_raiser(operation.future, error))
                self._step("applied")
                self._committer.commit_group(draft)
            except MapFull as error:
                self._committer.abort_group(draft)
                if self._committer.grow():
                    continue
                if len(group) > 1:
                    half = len(group) // 2
                    return self._commit(group[:half]) + self._commit(group[half:])
                return [_raiser(group[0].future, SpoolError(f"the index is full: {error}"))]
            except Error as error:
                log.error("spool: a commit failed, looking at what is on disk: %s", error)
                if self._committer.reopen_and_look(draft):
                    return answers
                return [_raiser(o.future, SpoolError(f"not written: {error}")) for o in group]
            except BaseException:
                self._committer.abort_group(draft)
                raise
            self._step("committed")
            return answers


def _setter(future: "Future[Any]", result: Any) -> Callable[[], None]:
    return lambda: future.set_result(result)


def _raiser(future: "Future[Any]", error: Exception) -> Callable[[], None]:
    return lambda: future.set_exception(error)

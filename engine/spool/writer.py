"""Group commit: one thread that owns every write transaction of a spool.

Whatever arrives while a commit is syncing goes into the next one. Order within a group: bodies are appended, the
operations run, the body segment is synced, the index is committed (two barriers); only then are the callers told, all
of a group with one wake-up.

What can go wrong, and what is done (an operation may be run again, so it changes nothing but its draft):

    an operation refuses (SpoolError, before its first write)   it is answered with that; the group goes on
    an operation fails otherwise      the group is undone; the operation is answered with its error, those before and
                                      after it are tried again without it
    the map is full                   undone; the map is grown and the group tried again, at the limit in halves; also
                                      if it is the commit that finds it full
    the bodies cannot be synced       undone; operations with bodies are refused, the others tried again
    the commit fails                  its outcome is unknown: the environment is opened again, and its group number
                                      says whether it went through; only then are the callers answered
    that fails too, or the spool is superseded    nothing is written any more: everything is answered with SpoolFailed
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from engine.spool.bodies import SegmentFailed
from engine.spool.draft import Draft
from engine.spool.environment import Error, MapFull
from engine.spool.errors import SpoolError, SpoolFailed, SpoolSuperseded

log = logging.getLogger(__name__)

MAX_GROUP = 256

Answer = Callable[[], None]


@dataclass(slots=True, eq=False)
class Operation:
    """`run(draft)` makes the change, perhaps more than once. `has_bodies`: it appends to the body segment."""

    run: Callable[[Draft], Any]
    future: "Future[Any]"
    has_bodies: bool = False


class Committer(Protocol):
    """What the writer needs of the store."""

    def begin_group(self) -> Draft: ...
    def prepare_group(self, draft: Draft) -> None:
        """Everything up to the commit: write the draft out, sync the bodies."""

    def commit_group(self, draft: Draft) -> None: ...
    def end_group(self, draft: Draft) -> None:
        """The group is on disk: its draft becomes the truth. Does not fail."""

    def abort_group(self, draft: Draft) -> None: ...
    def reopen(self) -> None: ...
    def is_on_disk(self, draft: Draft) -> bool:
        """After `reopen`: whether the group's commit went through; if so, it is durable now."""

    def make_room(self) -> bool:
        """After a full map: whether it is worth trying again."""

    def refusal(self, cause: BaseException) -> SpoolError:
        """What to tell the callers of something that is certainly not written."""


class GroupWriter:
    """See the module docstring."""

    def __init__(
        self,
        committer: Committer,
        *,
        deliver: Callable[[list[Answer]], None],
        step: Callable[[str], None],
        now_ns: Callable[[], int],
    ) -> None:
        self._now_ns = now_ns
        self._committer = committer
        self._deliver = deliver
        self._step = step
        self._queue: deque[Operation] = deque()
        self._condition = threading.Condition()
        self._closing = False
        self._failed: BaseException | None = None
        self.groups = 0
        self.operations = 0
        self.busy_ns = 0
        self._thread = threading.Thread(target=self._main, name="spool-writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, run: Callable[[Draft], Any], *, has_bodies: bool = False) -> "Future[Any]":
        future: Future[Any] = Future()
        with self._condition:
            if self._failed is not None:
                future.set_exception(_failure(self._failed))
            elif self._closing:
                future.set_exception(SpoolError("the spool is closed"))
            else:
                self._queue.append(Operation(run, future, has_bodies))
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
            began_ns = self._now_ns()
            answers: list[Answer] = []
            parts = [group]
            try:
                while parts:
                    answered, again = self._attempt(parts[-1])
                    parts.pop()
                    answers += answered
                    parts += reversed(again)
            except BaseException as error:
                log.critical("spool writer failed", exc_info=error)
                with self._condition:
                    self._failed = error
                    unanswered = [operation for part in reversed(parts) for operation in part]
                    unanswered += self._queue
                    self._queue.clear()
                answers += [_raiser(operation, _failure(error)) for operation in unanswered]
            self.busy_ns += self._now_ns() - began_ns
            self.groups += 1
            self.operations += len(group)
            self._tell(answers)

    def _tell(self, answers: list[Answer]) -> None:
        try:
            self._deliver(answers)
        except Exception:  # the loop that waited is closed: everything is on disk, nobody wants to know
            log.exception("spool: %d answers could not be delivered", len(answers))

    def _attempt(self, part: list[Operation]) -> tuple[list[Answer], list[list[Operation]]]:
        """Try to commit a part of a group. Returns answers, and the parts that are still to be tried, in order."""
        draft = self._begin()
        answers: list[Answer] = []
        position = 0
        try:
            for position, operation in enumerate(part):  # noqa: B007 - tells where it stopped
                try:
                    answers.append(_setter(operation, operation.run(draft)))
                except SpoolError as error:
                    answers.append(_raiser(operation, error))
            position = len(part)
            self._step("applied")
            self._committer.prepare_group(draft)
        except MapFull as error:
            self._committer.abort_group(draft)
            return self._without_room(part, error)
        except SegmentFailed as error:
            log.error("spool: bodies could not be synced: %s", error)
            self._committer.abort_group(draft)
            refused = [operation for operation in part if operation.has_bodies]
            rest = [operation for operation in part if not operation.has_bodies]
            return _raisers(refused, self._committer.refusal(error)), [rest] if rest else []
        except Exception as error:
            self._committer.abort_group(draft)
            if position == len(part) > 1:  # it is not known whose fault it is: each by itself
                return [], [[operation] for operation in part]
            position = min(position, len(part) - 1)
            log.exception("spool: an operation failed and was undone")
            again = [half for half in (part[:position], part[position + 1 :]) if half]
            return [_raiser(part[position], error)], again
        except BaseException:
            self._committer.abort_group(draft)
            raise
        try:
            self._committer.commit_group(draft)
        except MapFull as error:  # none is left for the list of freed pages, before anything is written
            return self._without_room(part, error)
        except Error as error:
            log.error("spool: a commit failed, looking at what is on disk: %s", error)
            self._committer.reopen()
            if not self._committer.is_on_disk(draft):
                return _raisers(part, self._committer.refusal(error)), []
        self._committer.end_group(draft)
        self._step("committed")
        return answers, []

    def _without_room(
        self, part: list[Operation], error: MapFull
    ) -> tuple[list[Answer], list[list[Operation]]]:
        """Nothing of the part is on disk, because the map is full: what `_attempt` returns then."""
        if self._committer.make_room():
            return [], [part]
        if len(part) > 1:
            half = len(part) // 2
            return [], [part[:half], part[half:]]
        return _raisers(part, self._committer.refusal(error)), []

    def _begin(self) -> Draft:
        try:
            return self._committer.begin_group()
        except Error as error:
            log.error("spool: no transaction could be begun, opening the index again: %s", error)
            self._committer.reopen()
            return self._committer.begin_group()


def _failure(error: BaseException) -> SpoolError:
    if isinstance(error, SpoolSuperseded):
        return SpoolSuperseded(str(error))
    return SpoolFailed(f"{type(error).__name__}: {error}")


def _setter(operation: Operation, result: Any) -> Answer:
    def tell() -> None:
        with suppress(InvalidStateError):  # the caller has given up waiting
            operation.future.set_result(result)

    return tell


def _raiser(operation: Operation, error: Exception) -> Answer:
    def tell() -> None:
        with suppress(InvalidStateError):  # the caller has given up waiting
            operation.future.set_exception(error)

    return tell


def _raisers(operations: Sequence[Operation], error: Exception) -> list[Answer]:
    return [_raiser(operation, error) for operation in operations]

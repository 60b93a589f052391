"""The numbers and names of spool queues that nothing refers to any more: rows of `queues` and `queue_names` to delete.

A spool meets every recipient domain and campaign there is, for years. Whether a queue's number stands in a record of a
message or of a copy is written nowhere but there, so rows are deleted in rounds:

    gather    a walk over `queues` picks those of which nothing is due, up to `AT_MOST`; without those of messages whose
              copy is not safe yet, or which are offered to another region: these are queued and not due
    rest      for so long (`SpoolOptions.keep_names_ms`) nothing is done: who has just read a number may look it up
    copies    a walk over all copies for other regions strikes out whose queues they are in
    remove    a few with each group

From the first to the last step each group strikes out what it has to do with: every record that is made, or moved
between the tables, goes through `Draft.queue` or the due index. A number is never given again, so whoever still has
one finds its own queue or none. All of it is in memory and begins anew with the process.

Campaigns and their parts are not forgotten: whoever goes on with a campaign, whenever, is to find what was accepted.
"""

import logging
from enum import Enum, auto
from typing import Any

import msgpack

from engine.failover.spans import ids_of
from engine.spool.draft import Draft, name_digest
from engine.spool.due_index import DueIndex
from engine.spool.environment import Environment
from engine.spool.queue_names import QueueName, decode_name
from engine.spool.records import DamagedRecord, decode_record

AT_MOST = 20_000  # queues in a round
ROWS_AT_ONCE = 256
REMOVED_AT_ONCE = 32  # each changes a page of its own

log = logging.getLogger(__name__)


class Phase(Enum):
    GATHER = auto()
    REST = auto()
    COPIES = auto()
    REMOVE = auto()


class Forgetting:
    """See the module docstring. Used by the writer alone. `every`: so many groups are between two steps."""

    def __init__(self, env: Environment, due_index: DueIndex, *, keep_ms: int, every: int) -> None:
        self._env = env
        self._due_index = due_index
        self._keep_ms = keep_ms
        self._every = every
        self._phase = Phase.GATHER
        self._unused: set[bytes] = set()
        self._hand = b""
        self._copy = b""
        self._rests_since_ms = 0

    def step(self, draft: Draft, now_ms: int) -> None:
        """The group is complete but for this: strike out what it uses, and go on a little."""
        self._strike_out(draft)
        if draft.totals.group % self._every:
            return
        if self._phase is Phase.GATHER:
            self._gather(now_ms)
            self._strike_out(draft)  # what is read is from before the group
        elif self._phase is Phase.REST:
            if not 0 <= now_ms - self._rests_since_ms < self._keep_ms:
                self._phase, self._copy = Phase.COPIES, b""
        elif self._phase is Phase.COPIES:
            self._look_at_copies()
        else:
            self._remove(draft)

    def removed(self, names: list[tuple[QueueName, bytes]]) -> None:
        """The group that removed these is on disk."""
        self._unused.difference_update(number for _, number in names)

    def _strike_out(self, draft: Draft) -> None:
        if self._unused:
            self._unused.difference_update(number.to_bytes(4, "big") for number in draft.used_queues)
            self._unused.difference_update({key[:4] for key in draft.due.changes})

    def _gather(self, now_ms: int) -> None:
        with self._env.read() as txn, txn.cursor(db=self._env.db["queues"]) as cursor:
            numbers: list[bytes] = []
            more = cursor.set_range(self._hand + b"\0") if self._hand else cursor.first()
            while more and len(numbers) < ROWS_AT_ONCE:
                numbers.append(bytes(cursor.key()))
                more = cursor.next()
        first = self._due_index.first_of(int.from_bytes(number, "big") for number in numbers)
        self._unused.update(
            number for number, due_ms in zip(numbers, first.values(), strict=True) if due_ms is None
        )
        self._hand = numbers[-1] if more else b""
        if more and len(self._unused) < AT_MOST:
            return
        try:
            self._unused -= self._waiting()
        except DamagedRecord as error:
            log.warning("spool %s: no name is forgotten now: %s", self._env.path, error)
            self._unused.clear()
        self._phase, self._rests_since_ms = Phase.REST, now_ms

    def _waiting(self) -> set[bytes]:
        """Queues of the messages that are queued and not due. DamagedRecord: of one it cannot be told."""
        db = self._env.db
        found = set()
        with self._env.read() as txn:
            spans = [msgpack.unpackb(value) for _, value in txn.cursor(db=db["unsafe"])]
            spans += [msgpack.unpackb(value)[2] for _, value in txn.cursor(db=db["offers"])]
            for id_ in (id_ for each in spans for id_ in ids_of(each)):
                stored = txn.get(id_.to_bytes(8, "big"), db=db["messages"])
                if stored is not None:
                    found.add(decode_record(id_, stored).queue.to_bytes(4, "big"))
        return found

    def _look_at_copies(self) -> None:
        if not self._unused:
            self._phase = Phase.REMOVE
            return
        with self._env.read() as txn, txn.cursor(db=self._env.db["copies"]) as cursor:
            more = cursor.set_range(self._copy + b"\0") if self._copy else cursor.first()
            for _ in range(ROWS_AT_ONCE):
                if not more:
                    self._phase = Phase.REMOVE
                    return
                self._copy = bytes(cursor.key())
                self._unused.discard(_queue_of(cursor.value()))
                more = cursor.next()

    def _remove(self, draft: Draft) -> None:
        numbers = sorted(self._unused)[:REMOVED_AT_ONCE]
        if not numbers:
            self._phase = Phase.GATHER
            return
        first = self._due_index.first_of(int.from_bytes(number, "big") for number in numbers)
        for number, due_ms in zip(numbers, first.values(), strict=True):
            name = None if due_ms is not None else self._delete(draft.txn, number)
            if name is None:
                self._unused.discard(number)
            else:
                draft.forgotten.append((name, number))

    def _delete(self, txn: Any, number: bytes) -> QueueName | None:
        """None: it stays, because it is damaged and nobody knows what it was."""
        db = self._env.db
        try:
            name = decode_name(int.from_bytes(number, "big"), txn.get(number, db=db["queues"]))
        except DamagedRecord:
            return None
        digest = name_digest(name)
        if txn.get(digest, db=db["queue_names"]) == number:
            txn.delete(digest, db=db["queue_names"])
        txn.delete(number, db=db["queues"])
        return name


def _queue_of(record: Any) -> bytes:
    """b"": it is damaged, and will never be sent."""
    try:
        return decode_record(0, bytes(record)).queue.to_bytes(4, "big")
    except DamagedRecord:
        return b""

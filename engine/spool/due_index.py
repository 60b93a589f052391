"""The due index: which message of which spool queue is due when, ordered by (queue, due time, id).

It is what stands in the blocks of `due` (engine/spool/due_blocks.py) with the changes of the journal `due_journal` made
to it. A group's changes are appended to the journal, a page or two, and kept in memory as well; the blocks are changed
later, many messages of a queue at once. So a commit changes few pages, however many queues its messages belong to and
however many messages are queued (docs/adr/0028-due-journal.md).

The merging goes round the queues by their numbers, a few with every group, as many as keep the journal below two times
the changes it may hold (`journal`); after a round the part of it that is older than the round is dropped. What was
replayed from a journal when the spool was opened may be in the blocks already; merging it again changes nothing.

Only the writer's thread changes anything here. Reads come from any thread: the lock keeps the blocks as one read
transaction sees them and the changes in memory together. Between a commit and `end_group` memory is behind the blocks,
which is harmless for the same reason.
"""

import logging
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from engine.spool.due_blocks import (
    ENTRY_SIZE,
    EXPIRY_SIZE,
    PLACED,
    StoredBlocks,
    changes_of,
    count_of,
    journal_rows,
    merge,
    place_behind,
    stored_rows,
)
from engine.spool.environment import Environment
from engine.spool.records import DamagedRecord

QUEUES_AT_ONCE = 1000
AT_ONCE = 4096
ROWS_AT_ONCE = 256  # of the journal, dropped with a group
BEHIND_ALL = b"\xff" * 15  # behind the due keys of a queue
NEVER_MS = (1 << 48) - 2

log = logging.getLogger(__name__)

Changes = dict[bytes, bytes | None]  # due key -> expires_ms (6), or None: due no more


@dataclass(slots=True)
class DueDraft:
    """What one group changes. `perhaps_stored`: additions whose keys may have been due before."""

    changes: Changes = field(default_factory=dict)
    perhaps_stored: set[bytes] = field(default_factory=set)
    merged: list[bytes] = field(default_factory=list)
    merged_queues: list[bytes] = field(default_factory=list)
    merged_in_part: tuple[bytes, int] | None = None
    """Of this queue only so many of its keys in memory were taken."""
    begins_round: list[bytes] | None = None
    is_round_over: bool = False
    is_dropped: bool = False
    next_number: int = 0

    def add_new(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """These due keys of messages that are new, and their expiry."""
        self.changes.update(rows)

    def add(self, key: bytes, expires: bytes) -> None:
        self.changes[key] = expires
        self.perhaps_stored.add(key)

    def remove(self, key: bytes) -> None:
        """The key is not due from now on, if it was."""
        self.changes[key] = None


class DueIndex:
    """See the module docstring."""

    def __init__(self, env: Environment, journal: int) -> None:
        self._env = env
        self._limit = journal
        self._lock = threading.Lock()
        self._changes: Changes = {}
        self._perhaps_stored: set[bytes] = set()
        self._queues: dict[bytes, list[bytes]] = {}
        """By queue: the due keys that are in `_changes`, each once or more, and at most about as many that were."""
        self._unsorted: set[bytes] = set()
        self._stale: dict[bytes, int] = {}  # by queue: about how many of its keys are in `_changes` no more
        self._numbers: list[bytes] = []  # of `_queues`, likewise
        self._are_numbers_sorted = True
        self._next_number = 1
        self._journal = 0  # changes in it
        self._round: list[bytes] = []  # queues that are still to be merged, the last one first
        self._round_end = 0  # number of the journal row before which all is merged after it; 0: no round
        self._since_round = 0  # changes written to the journal since it began
        self._drop_end = 0  # number of the journal row before which all may go; 0: it has gone

    def load(self, txn: Any) -> None:
        """Replay the journal. DamagedRecord: of messages in the damaged rows is not known when they are due."""
        db = self._env.db.get("due_journal")
        if db is None:
            return
        replayed: Changes = {}
        with txn.cursor(db=db) as cursor:
            for key, value in cursor:
                self._next_number = int.from_bytes(key, "big") + 1
                try:
                    changes = changes_of(bytes(value))
                except DamagedRecord as error:
                    log.error(
                        "spool %s: row %d of the due journal: %s",
                        self._env.path,
                        self._next_number - 1,
                        error,
                    )
                    continue
                self._journal += len(changes)
                replayed |= changes
        self._changes = replayed
        self._perhaps_stored = {key for key, expires in replayed.items() if expires is not None}
        for key in replayed:
            self._queues.setdefault(key[:4], []).append(key)
        self._unsorted = set(self._queues)
        self._numbers = sorted(self._queues)

    # -- the writer's side

    def write_out(self, draft: DueDraft, txn: Any) -> None:
        """Append a group's changes to the journal, and merge what it is time for."""
        draft.next_number = self._next_number
        if not draft.changes:
            return
        with txn.cursor(db=self._env.db["due_journal"]) as cursor:
            for row in journal_rows(draft.changes):
                if not cursor.put(draft.next_number.to_bytes(8, "big"), row, append=True):
                    raise ValueError(f"row {draft.next_number} of the due journal is not its last")
                draft.next_number += 1
        with self._lock:
            parts = self._next_to_merge(draft)
        with txn.cursor(db=self._env.db["due"]) as cursor:
            for keys in parts:
                if keys:
                    merge(cursor, keys, self._changes)
                    draft.merged += keys
        drop_end = self._round_end if draft.is_round_over else self._drop_end
        if drop_end:
            with txn.cursor(db=self._env.db["due_journal"]) as cursor:
                for _ in range(max(ROWS_AT_ONCE, 2 * (draft.next_number - self._next_number))):
                    if not cursor.first() or int.from_bytes(cursor.key(), "big") >= drop_end:
                        draft.is_dropped = True
                        break
                    cursor.delete()

    def _next_to_merge(self, draft: DueDraft) -> list[list[bytes]]:
        """Due keys in memory of the queues whose turn it is.

        A round that begins when the journal is full is over before as much again has been written to it, whatever has
        come for its queues meanwhile. Of one queue at most `AT_ONCE` are taken at once, or two times what the group
        brings; its turn lasts longer then.
        """
        if not self._round_end and self._journal + len(draft.changes) >= self._limit:
            draft.begins_round = sorted(self._queues, reverse=True)
        waiting = self._round if draft.begins_round is None else draft.begins_round
        draft.is_round_over = not waiting and self._round_end > 0
        brought = len(draft.changes)
        left = self._limit - (self._since_round if draft.begins_round is None else 0)
        quota = -(-2 * brought * self._size() // max(left, brought))
        at_once = max(AT_ONCE, 2 * brought)
        parts = []
        for prefix in reversed(waiting):
            if quota <= 0:
                break
            keys = self._sorted(prefix)
            part = [key for key in dict.fromkeys(keys[:at_once]) if key in self._changes]
            parts.append(part)
            if at_once < len(keys):
                draft.merged_in_part = prefix, at_once
                break
            draft.merged_queues.append(prefix)
            quota -= max(1, len(part))
        return parts

    def _size(self) -> int:
        """The most that a round may have to do still: to change, or at least to look at."""
        return max(len(self._changes), len(self._queues))

    def end_group(self, draft: DueDraft) -> None:
        """The group is on disk."""
        changes = self._changes
        with self._lock:
            if draft.begins_round is not None:
                self._round = draft.begins_round
                self._round_end = self._next_number
                self._since_round = 0
            for key in draft.merged:
                del changes[key]
            self._perhaps_stored.difference_update(draft.merged)
            if draft.merged_in_part is not None:
                prefix, taken = draft.merged_in_part
                del self._queues[prefix][:taken]
            for prefix in draft.merged_queues:
                self._forget(prefix)
            if draft.merged_queues:
                del self._round[-len(draft.merged_queues) :]
            self._apply(draft)
            self._next_number = draft.next_number
            self._journal += len(draft.changes)
            self._since_round += len(draft.changes)
            if draft.is_round_over:
                self._journal = self._since_round
                self._drop_end, self._round_end = self._round_end, 0
            if draft.is_dropped:
                self._drop_end = 0

    def _apply(self, draft: DueDraft) -> None:
        changes, queues, stale = self._changes, self._queues, self._stale
        perhaps_stored = self._perhaps_stored
        for key, expires in draft.changes.items():
            if key in changes:
                if expires is not None:
                    perhaps_stored.add(key)
                elif changes[key] is not None and key not in perhaps_stored:
                    del changes[key]  # came and went between two rounds
                    prefix = key[:4]
                    stale[prefix] = stale.get(prefix, 0) + 1
                    if 2 * stale[prefix] >= len(queues[prefix]):
                        self._drop_stale(prefix)
                    continue
                changes[key] = expires
                continue
            changes[key] = expires
            prefix = key[:4]
            keys = queues.get(prefix)
            if keys is None:
                queues[prefix] = [key]
                self._numbers.append(prefix)
                self._are_numbers_sorted = False
                continue
            if key < keys[-1]:
                self._unsorted.add(prefix)
            keys.append(key)
        perhaps_stored |= draft.perhaps_stored
        if len(self._numbers) > 2 * len(queues) + QUEUES_AT_ONCE:
            self._numbers = sorted(queues)
            self._are_numbers_sorted = True

    def _drop_stale(self, prefix: bytes) -> None:
        keys = [key for key in dict.fromkeys(self._queues[prefix]) if key in self._changes]
        if keys:
            self._queues[prefix] = keys
            self._stale.pop(prefix, None)
        else:
            self._forget(prefix)

    def _forget(self, prefix: bytes) -> None:
        self._queues.pop(prefix, None)
        self._unsorted.discard(prefix)
        self._stale.pop(prefix, None)

    def is_due(self, draft: DueDraft, txn: Any, key: bytes) -> bool:
        """Whether a message is due, for an operation of the group."""
        for changes in (draft.changes, self._changes):
            if key in changes:
                return changes[key] is not None
        return self._is_stored(txn, key)

    # -- reads

    def _sorted(self, prefix: bytes) -> list[bytes]:
        """The due keys of a queue with changes in memory, as `_queues` has them, in order. The caller has the lock."""
        keys = self._queues.get(prefix, [])
        if prefix in self._unsorted:
            keys.sort()  # nearly all of it is in order
            self._unsorted.discard(prefix)
        return keys

    def _sorted_numbers(self) -> list[bytes]:
        """`_numbers` in order. The caller has the lock."""
        if not self._are_numbers_sorted:
            self._numbers.sort()
            self._are_numbers_sorted = True
        return self._numbers

    @contextmanager
    def _reading(self) -> Iterator[Any]:
        with self._lock, self._env.read() as txn, txn.cursor(db=self._env.db["due"]) as cursor:
            yield cursor

    def _live(self, cursor: Any, after: bytes, stop: bytes, limit: int) -> list[tuple[bytes, int]]:
        """At most `limit` due keys, with their expiry, behind `after` and before `stop` in one queue; `after` is its
        number or one of its due keys."""
        prefix = after[:4]
        changed = self._sorted(prefix)
        at, end = bisect_right(changed, after), bisect_left(changed, stop)
        found: list[tuple[bytes, int]] = []
        for rows in stored_rows(cursor, after):
            before_stop = rows[: place_behind(rows, stop[4:], or_at=True)]
            upto = bisect_right(changed, prefix + before_stop[-ENTRY_SIZE:-EXPIRY_SIZE], at, end)
            if upto > at:
                found += self._changed(prefix, before_stop, changed[at:upto])
                at = upto
            else:
                before_stop = before_stop[: (limit - len(found)) * ENTRY_SIZE]
                found += [
                    (prefix + place, int.from_bytes(expires, "big"))
                    for place, expires in PLACED.iter_unpack(before_stop)
                ]
            if len(found) >= limit:
                return found[:limit]
            if len(before_stop) < len(rows):
                break
        for key in changed[at:end]:
            expires = self._changes.get(key)
            if expires is not None and not (found and found[-1][0] == key):
                found.append((key, int.from_bytes(expires, "big")))
                if len(found) >= limit:
                    break
        return found[:limit]

    def _changed(self, prefix: bytes, rows: bytes, changed: list[bytes]) -> list[tuple[bytes, int]]:
        """The due keys of a block, with expiry, after changes whose keys are not behind its last."""
        entries = {prefix + place: expires for place, expires in PLACED.iter_unpack(rows)}
        for key in changed:
            expires = self._changes.get(key)
            if expires is not None:
                entries[key] = expires
            elif key in self._changes:
                entries.pop(key, None)
        return [(key, int.from_bytes(entries[key], "big")) for key in sorted(entries)]

    def scan(self, queue: int, after: bytes | None, until_due_ms: int, limit: int) -> list[tuple[bytes, int]]:
        """Due keys of a queue behind `after`, due at `until_due_ms` at the latest, with their expiry."""
        prefix = queue.to_bytes(4, "big")
        stop = prefix + (until_due_ms + 1).to_bytes(6, "big")
        with self._reading() as cursor:
            return self._live(cursor, prefix if after is None else after, stop, limit)

    def rows(self, after: bytes, limit: int) -> list[tuple[bytes, int]]:
        """Due keys of all queues behind `after` (b"": from the start) in their order, with their expiry."""
        found: list[tuple[bytes, int]] = []
        with self._reading() as cursor:
            in_memory = self._sorted_numbers()
            place = after or self._next_queue(cursor, in_memory, b"")
            while place and len(found) < limit:
                found += self._live(cursor, place, place[:4] + BEHIND_ALL, limit - len(found))
                place = self._next_queue(cursor, in_memory, place[:4])
        return found

    def _next_queue(self, cursor: Any, in_memory: list[bytes], prefix: bytes) -> bytes:
        """The number of the first queue behind another one (b"": of the first) that may hold a message; b"": none."""
        candidates = []
        if cursor.set_range(prefix + BEHIND_ALL) if prefix else cursor.first():
            candidates.append(bytes(cursor.key()[:4]))
        at = bisect_right(in_memory, prefix)
        if at < len(in_memory):
            candidates.append(in_memory[at])
        return min(candidates, default=b"")

    def first_after(self, queue: int, after: bytes | None) -> int | None:
        """Due time of the first message of a queue behind a due key."""
        with self._reading() as cursor:
            return self._first(cursor, queue.to_bytes(4, "big") if after is None else after)

    def _first(self, cursor: Any, after: bytes) -> int | None:
        found = self._live(cursor, after, after[:4] + BEHIND_ALL, 1)
        return int.from_bytes(found[0][0][4:10], "big") if found else None

    def first_of(self, queues: Iterable[int]) -> dict[int, int | None]:
        """Due time of the first message of each of these queues; None: it is empty."""
        with self._reading() as cursor:
            return {number: self._first(cursor, number.to_bytes(4, "big")) for number in queues}

    def waiting(self) -> Iterator[tuple[int, int]]:
        """The numbers of the queues that hold messages, in order, with the time of the first. Between pages of
        `QUEUES_AT_ONCE` others may write."""
        prefix = b""
        while True:
            page: list[tuple[int, int]] = []
            with self._reading() as cursor:
                in_memory = self._sorted_numbers()
                for _ in range(QUEUES_AT_ONCE):
                    prefix = self._next_queue(cursor, in_memory, prefix)
                    if not prefix:
                        break
                    first = self._first(cursor, prefix)
                    if first is not None:
                        page.append((int.from_bytes(prefix, "big"), first))
            yield from page
            if not prefix:
                return

    def _is_stored(self, txn: Any, key: bytes) -> bool:
        with txn.cursor(db=self._env.db["due"]) as cursor:
            before = key[:10] + (int.from_bytes(key[10:], "big") - 1).to_bytes(8, "big")
            return next(stored_rows(cursor, before), b"")[:14] == key[4:]

    # -- audit

    def entries(self, txn: Any) -> int:
        """How many messages are due."""
        with txn.cursor(db=self._env.db["due"]) as cursor:
            stored = sum(count_of(bytes(value)) for value in cursor.iternext(keys=False, values=True))
        return stored + sum(
            (expires is not None) - self._is_stored(txn, key) for key, expires in self._changes.items()
        )

    def finder(self, cursor: Any) -> Callable[[bytes], bool]:
        """Tells of many due keys, each queue's about in order, whether they are due. `cursor`: of the table `due`."""
        stored = StoredBlocks(cursor)

        def is_due(key: bytes) -> bool:
            return self._changes[key] is not None if key in self._changes else key in stored

        return is_due

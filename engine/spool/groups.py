"""What one group of changes does to the disk, step by step, for the writer (engine/spool/writer.py, Committer).

Bodies are appended and synced before the index that names them is committed; a group that is undone leaves neither.
A segment is sealed when it is full, and removed with the commit after which nothing in it is queued.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from engine.spool import accepting, sent
from engine.spool.bodies import SegmentWriter, segment_path
from engine.spool.draft import META, Draft, QueueNumbers, Totals
from engine.spool.due_index import DueIndex
from engine.spool.environment import Environment
from engine.spool.errors import SpoolError, SpoolSuperseded
from engine.spool.forgetting import Forgetting
from engine.spool.queue_names import CACHED_QUEUES
from engine.spool.room import Room
from engine.values.clock import Clock

SWEEP_LIMIT = 8
SWEEP_SENT_EVERY = 16
CHECK_READERS_EVERY = 64

log = logging.getLogger(__name__)


class Groups:
    """See the module docstring. `totals` and `inflight` (batches and their ids on the way) are those on disk."""

    def __init__(
        self,
        *,
        path: Path,
        env: Environment,
        segment: SegmentWriter,
        bodies: Path,
        room: Room,
        totals: Totals,
        queues: QueueNumbers,
        due_index: DueIndex,
        forgetting: Forgetting,
        clock: Clock,
        step: Callable[[str], None],
    ) -> None:
        self._path = path
        self._env = env
        self._segment = segment
        self._bodies = bodies
        self._room = room
        self._queues = queues
        self._due_index = due_index
        self._forgetting = forgetting
        self._clock = clock
        self._step = step
        self.totals = totals
        self.inflight: dict[int, set[int]] = {}
        self._group_segment_size = 0
        self._sealed: set[int] = set()
        self._is_room_checked = False
        self._suppressed_before = totals.next_seq
        self._sent_swept = b""

    def begin_group(self) -> Draft:
        self._is_room_checked = False
        self._group_segment_size = self._segment.size
        txn = self._env.begin_write()
        stored = txn.get(META, db=self._env.db["meta"])
        if stored is None or Totals.decode(stored).epoch != self.totals.epoch:
            txn.abort()
            raise SpoolSuperseded(f"spool {self._path}: another incarnation has taken over")
        draft = Draft(self._env, txn, self.totals, self._queues, self._due_index)
        draft.suppressed_before = self._suppressed_before
        return draft

    def prepare_group(self, draft: Draft) -> None:
        if draft.totals.group % CHECK_READERS_EVERY == 0:
            self._env.check_readers()
        accepting.sweep_keys(draft, self._clock.wall_ms(), SWEEP_LIMIT + 2 * draft.remembered)
        if draft.sent or draft.totals.group % SWEEP_SENT_EVERY == 0:
            limit = SWEEP_LIMIT + 2 * draft.sent
            self._sent_swept = sent.sweep(draft, self._sent_swept, limit, self._clock.wall_ms())
        self._forgetting.step(draft, self._clock.wall_ms())
        for number in self._sealed:
            draft.live(number, 0)  # if nothing in it is queued, it goes with this commit
        is_growing = self._segment.is_open and not self._segment.is_full
        draft.write_out(self._segment.number if is_growing else -1)
        self._segment.sync()
        self._step("bodies synced")

    def commit_group(self, draft: Draft) -> None:
        draft.txn.commit()

    def end_group(self, draft: Draft) -> None:
        self.totals = draft.totals
        self._due_index.end_group(draft.due)
        self._suppressed_before = draft.suppressed_before
        if len(self._queues) > CACHED_QUEUES:
            self._queues.clear()
        self._queues.update(draft.new_queues)
        for name, _ in draft.forgotten:
            self._queues.pop(name, None)
        self._forgetting.removed(draft.forgotten)
        for batch_no, flying in draft.inflight.items():
            if flying:
                self.inflight[batch_no] = flying
            else:
                self.inflight.pop(batch_no, None)
        self._sealed.clear()
        for number in draft.drained:
            try:
                segment_path(self._bodies, number).unlink(missing_ok=True)
            except OSError as error:
                log.warning("spool %s: a drained segment stays until the next opening: %s", self._path, error)

    def abort_group(self, draft: Draft) -> None:
        draft.txn.abort()
        if self._segment.is_open:
            self._segment.rewind(self._group_segment_size)

    def make_room(self) -> bool:
        """What adds nothing must go through: for it the map grows beyond its limit, as far as the disk has room."""
        if self._env.grow() or self._env.check_readers() > 0:
            return True
        return not self._is_room_checked and self._env.grow(beyond=True)

    def reopen(self) -> None:
        self._env.reopen()

    def is_on_disk(self, draft: Draft) -> bool:
        with self._env.read() as txn:
            on_disk = Totals.decode(txn.get(META, db=self._env.db["meta"]))
        if on_disk.epoch != self.totals.epoch:
            raise SpoolSuperseded(f"spool {self._path}: another incarnation has taken over")
        if on_disk.group != draft.totals.group:
            return False
        # what is read may be in the page cache only; another commit carries it through the barriers
        with self._env.write() as txn:
            txn.put(META, draft.totals.encode(), db=self._env.db["meta"])
        return True

    def append(self, draft: Draft, blob: bytes) -> tuple[int, int]:
        """Append a batch's bodies to the open segment; returns (segment, offset)."""
        self.check_room(draft)
        try:
            if not self._segment.is_open or self._segment.is_full:
                self._roll(draft)
            return self._segment.number, self._segment.append(blob)
        except OSError as error:
            raise self.refusal(error) from error

    def _roll(self, draft: Draft) -> None:
        sealed = self._segment.number
        number = max(draft.totals.segment, sealed) + 1
        while segment_path(self._bodies, number).exists():
            number += 1
        draft.totals.segment = number
        self._segment.begin(number)
        self._group_segment_size = 0
        if sealed:
            self._sealed.add(sealed)

    def check_room(self, draft: Draft) -> None:
        """Once per group, before the first thing that adds to the spool: SpoolFull beyond the watermarks."""
        if not self._is_room_checked:
            self._room.check(self._env, draft)
            self._is_room_checked = True

    def refusal(self, cause: BaseException) -> SpoolError:
        return self._room.refusal(cause, self._env)

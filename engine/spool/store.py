"""The spool of one region: the single writer of its directory.

    data.mdb, lock.mdb    the index (engine/spool/environment.py)
    bodies/NNNNNNNN.seg   message bodies (engine/spool/bodies.py)
    owner                 locked by the process that has the spool open

Every change is one operation of a group commit (writer.py); its future is done when the group is on disk. Reads are
short transactions on any thread. Opening bumps the epoch, marks what was in flight as perhaps sent, and reads no
queued message.
"""

import fcntl
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from engine.config.schema import SpoolConfig
from engine.spool import operations
from engine.spool.batches import (
    AcceptBatch,
    AcceptResult,
    CampaignRecord,
    ChunkBatch,
    Settlement,
    SettleResult,
)
from engine.spool.bodies import SegmentWriter, segment_path, sync_directory
from engine.spool.draft import META, PAGE_BYTES, PAGE_IDS, Draft, Totals, word_of
from engine.spool.environment import Environment, Error
from engine.spool.errors import SpoolError, SpoolFull, SpoolInUse, SpoolSuperseded
from engine.spool.reader import SpoolReader
from engine.spool.records import DUE_KEY_SIZE, Record, decode_record, due_key
from engine.spool.writer import GroupWriter
from engine.values.clock import Clock
from engine.values.ids import SEQ_MASK, format_id, region_of
from engine.values.outcome import OutcomeKind

SWEEP_EVERY_GROUPS = 64
SWEEP_LIMIT = 500
CACHED_QUEUES = 200_000


def _run_here(callbacks: list[Callable[[], None]]) -> None:
    for callback in callbacks:
        callback()


def _no_step(name: str) -> None:
    """Tests put a hook here that kills the process between durable steps."""


@dataclass(frozen=True, slots=True)
class SpoolOptions:
    """`deliver` runs the completions of one group; `step` is called between durable steps."""

    map_size: int = 64 << 30
    watermark: float = 0.8
    min_free: int = 512 << 20
    segment_size: int = 64 << 20
    deliver: Callable[[list[Callable[[], None]]], None] = _run_here
    step: Callable[[str], None] = _no_step

    @classmethod
    def from_config(
        cls, config: SpoolConfig, *, deliver: Callable[[list[Callable[[], None]]], None] = _run_here
    ) -> "SpoolOptions":
        return cls(
            map_size=config.map_size,
            watermark=config.watermark,
            min_free=config.min_free,
            segment_size=config.segment_size,
            deliver=deliver,
        )


class Spool:
    """See the module docstring. Use `Spool.open`."""

    def __init__(self, path: Path, region_number: int, clock: Clock, options: SpoolOptions) -> None:
        self.path = path
        self._clock = clock
        self._options = options
        self._bodies = path / "bodies"
        self._bodies.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._owner = self._lock()
        self._env_lock = threading.RLock()
        self._env = Environment(path, map_size=options.map_size)
        sync_directory(path)
        self._segment = SegmentWriter(self._bodies, options.segment_size)
        self._group_segment_size = 0
        self._queue_cache: dict[bytes, int] = {}
        self._queue_rows: dict[int, tuple[str, int, str, str]] = {}
        self._campaigns: dict[int, CampaignRecord] = {}
        self._inflight: dict[int, set[int]] = {}
        self._room_checked_group = -1
        self._totals = self._recover(region_number)
        self.epoch = self._totals.epoch
        self._writer = GroupWriter(self, deliver=options.deliver, step=options.step)
        self._writer.start()

    @classmethod
    def open(
        cls, path: str | Path, *, region_number: int, clock: Clock, options: SpoolOptions | None = None
    ) -> "Spool":
        """Open or make the spool; raises SpoolInUse or, if it is another region's,
        SpoolError."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        return cls(path, region_number, clock, options or SpoolOptions())

    def close(self) -> None:
        self._writer.close()
        self._segment.close()
        with self._env_lock:
            self._env.close()
        os.close(self._owner)

    def _lock(self) -> int:
        descriptor = os.open(self.path / "owner", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise SpoolInUse(f"spool {self.path} is open in another process") from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        return descriptor

    # -- recovery

    def _recover(self, region_number: int) -> Totals:
        with self._env.read() as txn:
            stored = txn.get(META, db=self._env.db["meta"])
        totals = Totals(region_number) if stored is None else Totals.decode(stored)
        if totals.region != region_number:
            raise SpoolError(
                f"spool {self.path} belongs to region number {totals.region}, not {region_number}"
            )
        totals.epoch += 1
        with self._env.write() as txn:
            draft = Draft(self._env, txn, totals, self._queue_cache)
            operations.mark_in_flight(draft)
            draft.write_out(open_segment=-1)
            known = {
                int.from_bytes(key, "big"): int.from_bytes(value, "big")
                for key, value in txn.cursor(db=self._env.db["segments"])
            }
            for number, live in known.items():
                if live == 0:
                    txn.delete(number.to_bytes(4, "big"), db=self._env.db["segments"])
        for path in self._bodies.glob("*.seg"):
            if known.get(int(path.stem), 0) == 0:
                path.unlink()
            draft.totals.segment = max(draft.totals.segment, int(path.stem))
        return draft.totals

    # -- the writer's side (Committer)

    def begin_group(self) -> Draft:
        self._group_segment_size = self._segment.size
        with self._env_lock:
            txn = self._env.begin_write()
            stored = txn.get(META, db=self._env.db["meta"])
            if stored is None or Totals.decode(stored).epoch != self._totals.epoch:
                txn.abort()
                raise SpoolSuperseded(f"spool {self.path}: another incarnation has taken over")
        return Draft(self._env, txn, self._totals, self._queue_cache)

    def commit_group(self, draft: Draft) -> None:
        if draft.totals.group % SWEEP_EVERY_GROUPS == 0:
            operations.sweep_keys(draft, self._clock.wall_ms(), SWEEP_LIMIT)
            self._env.check_readers()
        draft.write_out(self._segment.number if not self._segment.is_full else -1)
        self._segment.sync()
        self._options.step("bodies synced")
        draft.txn.commit()
        self._settled_group(draft)

    def _settled_group(self, draft: Draft) -> None:
        self._totals = draft.totals
        if len(self._queue_cache) > CACHED_QUEUES:
            self._queue_cache.clear()
        self._queue_cache.update(draft.new_queues)
        for number in draft.drained:
            segment_path(self._bodies, number).unlink(missing_ok=True)

    def abort_group(self, draft: Draft) -> None:
        draft.txn.abort()
        if self._segment.is_open:
            self._segment.rewind(self._group_segment_size)

    def grow(self) -> bool:
        with self._env_lock:
            return self._env.grow()

    def reopen_and_look(self, draft: Draft) -> bool:
        """After a failed commit: whether it went through."""
        with self._env_lock:
            self._env.close()
            self._env = Environment(self.path, map_size=self._options.map_size)
            with self._env.read() as txn:
                on_disk = Totals.decode(txn.get(META, db=self._env.db["meta"]))
        if on_disk.group == draft.totals.group:
            self._settled_group(draft)
            return True
        return False

    def _append(self, draft: Draft, blob: bytes) -> tuple[int, int]:
        """Append a batch's bodies to the open segment; returns (segment, offset). SpoolFull if there is no room."""
        self._check_room(draft)
        try:
            if not self._segment.is_open or self._segment.is_full:
                self._segment.sync()
                draft.totals.segment += 1
                while segment_path(self._bodies, draft.totals.segment).exists():
                    draft.totals.segment += 1
                self._segment.begin(draft.totals.segment)
                self._group_segment_size = 0
            return self._segment.number, self._segment.append(blob)
        except OSError as error:
            raise SpoolFull("disk", self._free_bytes(), self._options.min_free) from error

    def _free_bytes(self) -> int:
        stat = os.statvfs(self.path)
        return stat.f_bavail * stat.f_frsize

    def _check_room(self, draft: Draft) -> None:
        if self._room_checked_group == draft.totals.group:
            return
        free = self._free_bytes()
        if free < self._options.min_free:
            raise SpoolFull("disk", free, self._options.min_free)
        used = self._env.used_by_databases(draft.txn)
        limit = round(self._options.map_size * self._options.watermark)
        if used > limit:
            raise SpoolFull("map", used, limit)
        self._room_checked_group = draft.totals.group

    # -- changes

    def accept(self, batch: AcceptBatch) -> "Future[AcceptResult]":
        def run(draft: Draft) -> AcceptResult:
            segment, base = self._append(draft, batch.blob)
            return operations.accept(draft, batch, segment, base, self._clock.wall_ms())

        return self._writer.submit(run)

    def put_campaign(self, record: CampaignRecord) -> "Future[int]":
        return self._writer.submit(lambda draft: operations.put_campaign(draft, record))

    def accept_chunk(self, chunk: ChunkBatch) -> "Future[AcceptResult]":
        campaign = self.campaign(chunk.campaign_no)

        def run(draft: Draft) -> AcceptResult:
            self._check_room(draft)
            return operations.accept_chunk(
                draft, chunk, campaign.sender, campaign.campaign, self._clock.wall_ms()
            )

        return self._writer.submit(run)

    def dispatch(self, batch_no: int, ids: bytes, daily: dict[str, int]) -> "Future[None]":
        """Make a batch's way out durable: the ids (8 bytes little endian each) and the counters they charge."""
        self._inflight[batch_no] = {int.from_bytes(ids[i : i + 8], "little") for i in range(0, len(ids), 8)}
        return self._writer.submit(
            lambda draft: operations.dispatch(draft, batch_no, ids, daily, self._clock.wall_ms())
        )

    def settle(self, settlements: Sequence[Settlement]) -> "Future[SettleResult]":
        def run(draft: Draft) -> SettleResult:
            result, gone = operations.settle(draft, settlements, self._queue_row)
            for batch_no, ids in gone.items():
                flying = self._inflight.get(batch_no)
                if flying is None:
                    continue
                flying.difference_update(ids)
                if not flying:
                    del self._inflight[batch_no]
                    key = operations.inflight_key(draft.totals.epoch, batch_no)
                    draft.txn.delete(key, db=self._env.db["inflight"])
            return result

        return self._writer.submit(run)

    def batches_of(self, ids: Sequence[int]) -> dict[int, int]:
        """In which batch each of these ids is in flight, for those that are (their pool died)."""
        wanted = set(ids)
        return {id_: number for number, flying in self._inflight.items() for id_ in flying & wanted}

    def cancel(self, ids: Sequence[int]) -> "Future[int]":
        return self._writer.submit(
            lambda draft: operations.cancel(draft, ids, self._clock.wall_ms(), self._queue_row)
        )

    def put_state(self, key: str, value: bytes) -> "Future[None]":
        def run(draft: Draft) -> None:
            draft.txn.put(key.encode(), value, db=self._env.db["state"])

        return self._writer.submit(run)

    def trim_outbox(self, upto_seq: int) -> "Future[None]":
        """Forget events up to that number: they have been shipped."""

        def run(draft: Draft) -> None:
            with draft.txn.cursor(db=self._env.db["outbox"]) as cursor:
                while cursor.first() and int.from_bytes(cursor.key(), "big") <= upto_seq:
                    cursor.delete()

        return self._writer.submit(run)

    # -- reads

    def reader(self) -> SpoolReader:
        """A reader for pools that run in this process."""
        return SpoolReader(self.path, self._env)

    def _queue_row(self, txn: Any, number: int) -> tuple[str, int, str, str]:
        row = self._queue_rows.get(number)
        if row is None:
            stored = txn.get(number.to_bytes(4, "big"), db=self._env.db["queues"])
            _, domain, stream, tenant, campaign = msgpack.unpackb(stored)
            if len(self._queue_rows) > CACHED_QUEUES:
                self._queue_rows.clear()
            row = self._queue_rows[number] = (domain, stream, tenant, campaign)
        return row

    def queues(self) -> Iterator[tuple[int, str, int, str, str, int | None]]:
        """Every spool queue: number, domain, stream, tenant, campaign, first due time (None: empty)."""
        with self._env_lock, self._env.read() as txn:
            due = txn.cursor(db=self._env.db["due"])
            for key, value in txn.cursor(db=self._env.db["queues"]):
                first = None
                if due.set_range(key) and due.key()[:4] == key:
                    first = int.from_bytes(due.key()[4:10], "big")
                _, domain, stream, tenant, campaign = msgpack.unpackb(value)
                yield int.from_bytes(key, "big"), domain, stream, tenant, campaign, first

    def scan_due(
        self, queue: int, after: bytes | None, until_due_ms: int, limit: int
    ) -> list[tuple[bytes, int]]:
        """Due keys of a queue after `after`, due at `until_due_ms` at the latest, with their expiry."""
        prefix = queue.to_bytes(4, "big")
        start = prefix if after is None else after
        stop = prefix + (until_due_ms + 1).to_bytes(6, "big")
        found: list[tuple[bytes, int]] = []
        with self._env_lock, self._env.read() as txn, txn.cursor(db=self._env.db["due"]) as cursor:
            if not cursor.set_range(start):
                return found
            for key, value in cursor:
                key = bytes(key)
                if key >= stop or len(found) >= limit:
                    break
                if key != after:
                    found.append((key, int.from_bytes(value, "big")))
        return found

    def first_due_after(self, queue: int, after: bytes | None) -> int | None:
        """Due time of the first message of a queue behind a due key."""
        prefix = queue.to_bytes(4, "big")
        with self._env_lock, self._env.read() as txn, txn.cursor(db=self._env.db["due"]) as cursor:
            if not cursor.set_range(prefix if after is None else after):
                return None
            if cursor.key() == after and not cursor.next():
                return None
            key = bytes(cursor.key())
            return int.from_bytes(key[4:10], "big") if key[:4] == prefix else None

    def message(self, message_id: int) -> Record | None:
        with self._env_lock, self._env.read() as txn:
            stored = txn.get(message_id.to_bytes(8, "big"), db=self._env.db["messages"])
            return None if stored is None else decode_record(message_id, stored)

    def due_key_of(self, message_id: int) -> bytes | None:
        record = self.message(message_id)
        return None if record is None else due_key(record.queue, record.due_ms, message_id)

    def status(self, message_id: int) -> dict[str, object] | None:
        """The last word on an id, and what is waiting for it; None if it was never accepted here."""
        seq = message_id & SEQ_MASK
        if region_of(message_id) != self._totals.region:
            return None
        with self._env_lock, self._env.read() as txn:
            page = txn.get((seq // PAGE_IDS).to_bytes(8, "big"), db=self._env.db["ledger"]) or bytes(
                PAGE_BYTES
            )
            word = word_of(bytes(page), seq)
            stored = txn.get(message_id.to_bytes(8, "big"), db=self._env.db["messages"])
        if word == 0:
            return None
        status: dict[str, object] = {"id": format_id(message_id), "state": str(OutcomeKind(word))}
        if stored is not None:
            record = decode_record(message_id, stored)
            status |= {
                "recipient": record.recipient,
                "accepted_ms": record.accepted_ms,
                "due_ms": record.due_ms,
                "expires_ms": record.expires_ms,
                "attempts": record.attempts,
                "last": record.last,
            }
        return status

    def campaign(self, number: int) -> CampaignRecord:
        found = self._campaigns.get(number)
        if found is None:
            with self._env_lock, self._env.read() as txn:
                stored = txn.get(number.to_bytes(4, "big"), db=self._env.db["campaigns"])
            if stored is None:
                raise SpoolError(f"no campaign number {number} in spool {self.path}")
            found = self._campaigns[number] = CampaignRecord(*msgpack.unpackb(stored)[1:])
        return found

    def campaign_progress(self, tenant: str, campaign: str) -> set[int]:
        """Numbers of the chunks that were accepted."""
        db = self._env.db
        numbers: set[int] = set()
        with self._env_lock, self._env.read() as txn:
            prefix = txn.get(operations.key_digest(tenant, campaign), db=db["campaign_names"])
            if prefix is None:
                return numbers
            prefix = bytes(prefix)
            with txn.cursor(db=db["chunks"]) as cursor:
                if cursor.set_range(prefix):
                    for key in cursor.iternext(keys=True, values=False):
                        if key[:4] != prefix:
                            break
                        numbers.add(int.from_bytes(key[4:8], "big"))
        return numbers

    def get_state(self, key: str) -> bytes | None:
        with self._env_lock, self._env.read() as txn:
            value = txn.get(key.encode(), db=self._env.db["state"])
            return None if value is None else bytes(value)

    def read_outbox(self, limit: int) -> list[tuple[int, list[list[Any]]]]:
        """The oldest chunks of events: (number, events)."""
        found: list[tuple[int, list[list[Any]]]] = []
        with self._env_lock, self._env.read() as txn:
            for key, value in txn.cursor(db=self._env.db["outbox"]):
                if len(found) == limit:
                    break
                found.append((int.from_bytes(key, "big"), msgpack.unpackb(value)))
        return found

    def counts(self) -> dict[str, int]:
        """Accepted, and the ids by their last word."""
        totals = self._totals
        counts = {str(OutcomeKind(kind)): totals.counts[kind] for kind in range(1, 7)}
        return {"accepted": totals.accepted, **counts}

    def sizes(self) -> dict[str, int]:
        """Bytes on disk and commits so far."""
        return {
            "index_bytes": self._env.used_bytes(),
            "map_bytes": self._env.map_bytes(),
            "body_bytes": sum(path.stat().st_size for path in self._bodies.glob("*.seg")),
            "groups": self._writer.groups,
            "operations": self._writer.operations,
        }


__all__ = ["DUE_KEY_SIZE", "Error", "Spool", "SpoolOptions"]

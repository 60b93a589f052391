"""The spool of one region: the single writer of its directory.

    data.mdb, lock.mdb    the index (engine/spool/environment.py)
    bodies/NNNNNNNN.seg   message bodies (engine/spool/bodies.py)
    owner                 locked by the process that has the spool open

Every change is one operation of a group commit (writer.py); its future is done when the group is on disk. Reads are
short transactions on any thread. Opening bumps the epoch, marks what was in flight as perhaps sent, and reads no
queued message.
"""

import errno
import fcntl
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from engine.config.schema import SpoolConfig
from engine.failover.messages import Copy
from engine.failover.store import Accept, Apply, Durable, Operation
from engine.spool import notices, operations, sent, suppressions
from engine.spool.batches import (
    AcceptBatch,
    AcceptResult,
    CampaignRecord,
    ChunkBatch,
    Settlement,
    SettleResult,
)
from engine.spool.bodies import SegmentWriter, make_directory, segment_path, sync_directory
from engine.spool.draft import LAST_WORDS, META, PAGE_BYTES, Draft, QueueNumbers, Totals, page_of, word_of
from engine.spool.environment import Environment, Error, MapFull
from engine.spool.errors import SpoolError, SpoolFull, SpoolInUse, SpoolSuperseded
from engine.spool.notices import Notice
from engine.spool.reader import SpoolReader
from engine.spool.records import DUE_KEY_SIZE, DamagedRecord, Record, decode_record, due_key
from engine.spool.sent import Sent
from engine.spool.standby import Exporter, Keeper, read_durable
from engine.spool.writer import GroupWriter
from engine.values.clock import Clock
from engine.values.ids import SEQ_MASK, format_id
from engine.values.outcome import OutcomeKind
from engine.values.reply import Reply
from engine.values.suppression import Suppression

SWEEP_LIMIT = 8
SWEEP_SENT_EVERY = 16
CHECK_READERS_EVERY = 64
CACHED_QUEUES = 200_000
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_ROOM_BYTES = 1 << 20  # LMDB does not say why a write fell short

log = logging.getLogger(__name__)


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
        self._queue_cache: QueueNumbers = {}
        self._queue_rows: dict[int, tuple[str, int, str, str]] = {}
        self._campaigns: dict[int, CampaignRecord] = {}
        self._inflight: dict[int, set[int]] = {}
        self._group_segment_size = 0
        self._sealed: set[int] = set()
        self._is_room_checked = False
        with ExitStack() as opened:
            try:
                make_directory(self._bodies)
                self._owner = self._lock()
                opened.callback(os.close, self._owner)
                self._env = Environment(path, map_size=options.map_size)
                opened.callback(self._env.close)
                sync_directory(path)
                self._totals = self._recover(region_number)
            except (Error, OSError) as error:
                raise self.refusal(error) from error
            self._segment = SegmentWriter(self._bodies, options.segment_size)
            self.epoch = self._totals.epoch
            self._suppressed_before = self._totals.next_seq
            self._sent_swept = b""
            self._writer = GroupWriter(
                self, deliver=options.deliver, step=options.step, now_ns=clock.monotonic_ns
            )
            self._writer.start()
            opened.pop_all()

    @classmethod
    def open(
        cls, path: str | Path, *, region_number: int, clock: Clock, options: SpoolOptions | None = None
    ) -> "Spool":
        """Open or make the spool.

        SpoolInUse: another process has it open. SpoolError: it is another region's, or cannot be opened.
        """
        path = Path(path).absolute()
        return cls(path, region_number, clock, options or SpoolOptions())

    def close(self) -> None:
        self._writer.close()
        self._segment.close()
        self._env.close()
        os.close(self._owner)

    def _lock(self) -> int:
        descriptor = os.open(self.path / "owner", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        except BlockingIOError:
            os.close(descriptor)
            raise SpoolInUse(f"spool {self.path} is open in another process") from None
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    # -- recovery

    def _recover(self, region_number: int) -> Totals:
        with self._env.read() as txn:
            stored = txn.get(META, db=self._env.db["meta"])
        if stored is None and any(_segments(self._bodies)):
            raise SpoolError(
                f"spool {self.path}: its index (data.mdb) is missing or empty, but there are bodies in bodies/: "
                "put the index back, or move the folder away to begin anew"
            )
        totals = Totals(region_number) if stored is None else Totals.decode(stored)
        if totals.region != region_number:
            raise SpoolError(
                f"spool {self.path} belongs to region number {totals.region}, not {region_number}"
            )
        totals.epoch += 1
        while True:
            try:
                totals, live = self._take_over(totals)
                break
            except MapFull:
                if not self._env.grow():
                    raise
        for number, path in _segments(self._bodies):
            if number not in live:
                path.unlink()
            totals.segment = max(totals.segment, number)
        return totals

    def _take_over(self, totals: Totals) -> tuple[Totals, set[int]]:
        """Commit the new epoch and the marks; the numbers and the segments in use."""
        with self._env.write() as txn:
            draft = Draft(self._env, txn, totals, self._queue_cache)
            operations.mark_in_flight(draft)
            draft.write_out(open_segment=-1)
            live = set()
            with txn.cursor(db=self._env.db["segments"]) as cursor:
                for key, value in cursor:
                    if int.from_bytes(value, "big"):
                        live.add(int.from_bytes(key, "big"))
                    else:
                        cursor.delete()
        return draft.totals, live

    # -- the writer's side (Committer)

    def begin_group(self) -> Draft:
        self._is_room_checked = False
        self._group_segment_size = self._segment.size
        txn = self._env.begin_write()
        stored = txn.get(META, db=self._env.db["meta"])
        if stored is None or Totals.decode(stored).epoch != self._totals.epoch:
            txn.abort()
            raise SpoolSuperseded(f"spool {self.path}: another incarnation has taken over")
        draft = Draft(self._env, txn, self._totals, self._queue_cache)
        draft.suppressed_before = self._suppressed_before
        return draft

    def prepare_group(self, draft: Draft) -> None:
        if draft.totals.group % CHECK_READERS_EVERY == 0:
            self._env.check_readers()
        operations.sweep_keys(draft, self._clock.wall_ms(), SWEEP_LIMIT + 2 * draft.remembered)
        if draft.sent or draft.totals.group % SWEEP_SENT_EVERY == 0:
            limit = SWEEP_LIMIT + 2 * draft.sent
            self._sent_swept = sent.sweep(draft, self._sent_swept, limit, self._clock.wall_ms())
        for number in self._sealed:
            draft.live(number, 0)  # if nothing in it is queued, it goes with this commit
        is_growing = self._segment.is_open and not self._segment.is_full
        draft.write_out(self._segment.number if is_growing else -1)
        self._segment.sync()
        self._options.step("bodies synced")

    def commit_group(self, draft: Draft) -> None:
        draft.txn.commit()

    def end_group(self, draft: Draft) -> None:
        self._totals = draft.totals
        self._suppressed_before = draft.suppressed_before
        if len(self._queue_cache) > CACHED_QUEUES:
            self._queue_cache.clear()
        self._queue_cache.update(draft.new_queues)
        for batch_no, flying in draft.inflight.items():
            if flying:
                self._inflight[batch_no] = flying
            else:
                self._inflight.pop(batch_no, None)
        self._sealed.clear()
        for number in draft.drained:
            try:
                segment_path(self._bodies, number).unlink(missing_ok=True)
            except OSError as error:
                log.warning("spool %s: a drained segment stays until the next opening: %s", self.path, error)

    def abort_group(self, draft: Draft) -> None:
        draft.txn.abort()
        if self._segment.is_open:
            self._segment.rewind(self._group_segment_size)

    def make_room(self) -> bool:
        return self._env.grow() or self._env.check_readers() > 0

    def reopen(self) -> None:
        self._env.reopen()

    def is_on_disk(self, draft: Draft) -> bool:
        with self._env.read() as txn:
            on_disk = Totals.decode(txn.get(META, db=self._env.db["meta"]))
        if on_disk.epoch != self._totals.epoch:
            raise SpoolSuperseded(f"spool {self.path}: another incarnation has taken over")
        if on_disk.group != draft.totals.group:
            return False
        # what is read may be in the page cache only; another commit carries it through the barriers
        with self._env.write() as txn:
            txn.put(META, draft.totals.encode(), db=self._env.db["meta"])
        return True

    def refusal(self, cause: BaseException) -> SpoolError:
        if isinstance(cause, MapFull):
            return SpoolFull("map", self._env.map_bytes(), self._options.map_size)
        number = getattr(cause.__cause__ or cause, "errno", None)
        try:
            free = self._free_bytes()
        except OSError:  # the directory itself cannot be reached: that is what `cause` says
            return SpoolError(f"spool {self.path}: not opened: {cause}")
        if number in NO_ROOM or free < max(self._options.min_free, NO_ROOM_BYTES):
            return SpoolFull("disk", free, self._options.min_free)
        return SpoolError(f"spool {self.path}: not written: {cause}")

    def _append(self, draft: Draft, blob: bytes) -> tuple[int, int]:
        """Append a batch's bodies to the open segment; returns (segment, offset)."""
        self._check_room(draft)
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

    def _free_bytes(self) -> int:
        stat = os.statvfs(self.path)
        return stat.f_bavail * stat.f_frsize

    def _check_room(self, draft: Draft) -> None:
        """Once per group, before the first thing that adds to the spool: SpoolFull beyond the watermarks."""
        if self._is_room_checked:
            return
        free = self._free_bytes()
        if free < self._options.min_free:
            raise SpoolFull("disk", free, self._options.min_free)
        used = self._env.used_by_databases(draft.txn)
        limit = round(self._options.map_size * self._options.watermark)
        if used > limit:
            raise SpoolFull("map", used, limit)
        self._is_room_checked = True

    # -- changes

    def accept(self, batch: AcceptBatch) -> "Future[AcceptResult]":
        def run(draft: Draft) -> AcceptResult:
            segment, base = self._append(draft, batch.blob)
            return operations.accept(draft, batch, segment, base, self._clock.wall_ms())

        return self._writer.submit(run, has_bodies=True)

    def put_campaign(self, record: CampaignRecord) -> "Future[int]":
        def run(draft: Draft) -> int:
            self._check_room(draft)
            return operations.put_campaign(draft, record)

        return self._writer.submit(run)

    def accept_chunk(self, chunk: ChunkBatch) -> "Future[AcceptResult]":
        campaign = self.campaign(chunk.campaign_no)

        def run(draft: Draft) -> AcceptResult:
            self._check_room(draft)
            return operations.accept_chunk(
                draft, chunk, campaign.sender, campaign.campaign, self._clock.wall_ms()
            )

        return self._writer.submit(run)

    # -- failover

    def failover(self, operation: Operation, numbers: Mapping[str, int]) -> "Future[Any]":
        """Do what the failover protocol asks (engine/failover/store.py). `numbers`: those of the regions, by name."""

        def run(draft: Draft) -> Any:
            keeper = Keeper(draft, numbers, self._clock.wall_ms(), self._append)
            match operation:
                case Accept(payload=AcceptBatch() as batch):
                    segment, base = self._append(draft, batch.blob)
                    return keeper.accept(operation, batch, segment, base)
                case Accept(payload=ChunkBatch() as chunk):
                    self._check_room(draft)
                    campaign = self.campaign(chunk.campaign_no)
                    return keeper.accept_chunk(operation, chunk, campaign)
                case Apply(entry=Copy()):
                    self._check_room(draft)
            return keeper.apply(operation)

        return self._writer.submit(run, has_bodies=isinstance(operation, Accept | Apply))

    def durable(self, numbers: Mapping[str, int]) -> Durable:
        """What the protocol needs when it starts."""
        with self._env.read() as txn:
            return read_durable(self._env, txn, numbers)

    def exporter(self) -> Exporter:
        return Exporter(self._env, self.reader(), self._queue_row)

    def dispatch(self, batch_no: int, ids: bytes, daily: dict[str, int]) -> "Future[list[int]]":
        """Make a batch's way out durable: the ids (8 bytes little endian each) and the counters they charge.

        The answer: ids that must not go out, because their recipients have been suppressed meanwhile.
        """

        def run(draft: Draft) -> list[int]:
            return operations.dispatch(draft, batch_no, ids, daily, self._clock.wall_ms(), self._queue_row)

        return self._writer.submit(run)

    def settle(self, settlements: Sequence[Settlement]) -> "Future[SettleResult]":
        def run(draft: Draft) -> SettleResult:
            result, gone, kept = operations.settle(draft, settlements, self._queue_row)
            for batch_no, ids in gone.items():
                for number in (batch_no,) if batch_no else self._batches_of(draft, ids):
                    operations.land(draft, self._inflight, number, ids, kept=batch_no in kept)
            return result

        return self._writer.submit(run)

    def _batches_of(self, draft: Draft, ids: Sequence[int]) -> list[int]:
        """Batches that any of these ids are in flight in."""
        flying = {**self._inflight, **draft.inflight}
        return [number for number, batch in flying.items() if not batch.isdisjoint(ids)]

    def cancel(self, ids: Sequence[int]) -> "Future[int]":
        return self._writer.submit(
            lambda draft: operations.cancel(draft, ids, self._clock.wall_ms(), self._queue_row)
        )

    def put_state(self, key: str, value: bytes) -> "Future[None]":
        def run(draft: Draft) -> None:
            draft.txn.put(key.encode(), value, db=self._env.db["state"])

        return self._writer.submit(run)

    def suppress(
        self,
        rows: Sequence[Suppression],
        *,
        log: bool,
        events: Sequence[tuple[int, str, dict[str, Any]]] = (),
    ) -> "Future[int]":
        """Take rows into the suppression list; how many changed something. `log`: for the other regions, too.

        `events` are written if anything changed.
        """

        def run(draft: Draft) -> int:
            self._check_room(draft)
            changed = suppressions.put(draft, rows, log=log)
            for event in events if changed else ():
                draft.event(event)
            return changed

        return self._writer.submit(run)

    def report_sent(
        self,
        message_id: int,
        flag: int,
        event: tuple[int, str, dict[str, Any]],
        rows: Sequence[Suppression],
        reply: Reply | None = None,
    ) -> "Future[bool]":
        """A bounce or complaint that came later, once per message and flag: see engine/spool/sent.py."""
        return self._writer.submit(lambda draft: sent.report(draft, message_id, flag, event, rows, reply))

    def notice_done(self, key: bytes) -> "Future[None]":
        """A notification that was owed is accepted as mail."""
        return self._writer.submit(lambda draft: notices.done(draft, key))

    def trim_suppression_log(self, upto: int) -> "Future[None]":
        """Every other region has what this one changed up to that number of its log."""
        return self._writer.submit(lambda draft: suppressions.trim_log(draft, upto))

    def note_events(self, events: Sequence[tuple[int, str, dict[str, Any]]]) -> "Future[None]":
        """Put events that are not about a message into the outbox: (unix milliseconds, kind, fields)."""

        def run(draft: Draft) -> None:
            for event in events:
                draft.event(event)

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

    def queue(self, number: int) -> tuple[str, int, str, str]:
        """Domain, stream, tenant and campaign of a spool queue."""
        row = self._queue_rows.get(number)
        if row is not None:
            return row
        with self._env.read() as txn:
            return self._queue_row(txn, number)

    def queues(self) -> Iterator[tuple[int, str, int, str, str, int | None]]:
        """Every spool queue: number, domain, stream, tenant, campaign, first due time (None: empty)."""
        with self._env.read() as txn:
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
        with self._env.read() as txn, txn.cursor(db=self._env.db["due"]) as cursor:
            if not cursor.set_range(start):
                return found
            for key, value in cursor:
                key = bytes(key)
                if key >= stop or len(found) >= limit:
                    break
                if key != after:
                    found.append((key, int.from_bytes(value, "big")))
        return found

    def due_rows(self, after: bytes, limit: int) -> list[tuple[bytes, int]]:
        """Due keys of all queues behind `after` (b"": from the start) in their order, with their expiry."""
        found: list[tuple[bytes, int]] = []
        with self._env.read() as txn, txn.cursor(db=self._env.db["due"]) as cursor:
            if not (cursor.set_range(after) if after else cursor.first()):
                return found
            if cursor.key() == after and not cursor.next():
                return found
            for key, value in cursor:
                found.append((bytes(key), int.from_bytes(value, "big")))
                if len(found) == limit:
                    break
        return found

    def first_due_after(self, queue: int, after: bytes | None) -> int | None:
        """Due time of the first message of a queue behind a due key."""
        prefix = queue.to_bytes(4, "big")
        with self._env.read() as txn, txn.cursor(db=self._env.db["due"]) as cursor:
            if not cursor.set_range(prefix if after is None else after):
                return None
            if cursor.key() == after and not cursor.next():
                return None
            key = bytes(cursor.key())
            return int.from_bytes(key[4:10], "big") if key[:4] == prefix else None

    def empty_queues(self, numbers: Iterable[int]) -> set[int]:
        """Those of the queues that hold no message, neither one that waits nor one that is on the wire."""
        empty = set()
        with self._env.read() as txn, txn.cursor(db=self._env.db["due"]) as cursor:
            for number in numbers:
                prefix = number.to_bytes(4, "big")
                if not cursor.set_range(prefix) or bytes(cursor.key()[:4]) != prefix:
                    empty.add(number)
        return empty

    def message(self, message_id: int) -> Record | None:
        """The record of a message; None if there is none, or it is damaged."""
        with self._env.read() as txn:
            stored = txn.get(message_id.to_bytes(8, "big"), db=self._env.db["messages"])
            try:
                return None if stored is None else decode_record(message_id, stored)
            except DamagedRecord as error:
                log.error("spool %s: %s", self.path, error)
                return None

    def due_key_of(self, message_id: int) -> bytes | None:
        record = self.message(message_id)
        return None if record is None else due_key(record.queue, record.due_ms, message_id)

    def status(self, message_id: int) -> dict[str, object] | None:
        """The last word on an id, and what is waiting for it; None if it was never accepted here."""
        number = page_of(message_id, self._totals.region)
        with self._env.read() as txn:
            page = txn.get(number.to_bytes(8, "big"), db=self._env.db["ledger"]) or bytes(PAGE_BYTES)
            word = word_of(bytes(page), message_id & SEQ_MASK)
            stored = txn.get(message_id.to_bytes(8, "big"), db=self._env.db["messages"])
        if word == 0:
            return None
        status: dict[str, object] = {"id": format_id(message_id), "state": str(OutcomeKind(word))}
        if stored is not None:
            try:
                record = decode_record(message_id, stored)
            except DamagedRecord as error:
                return status | {"damaged": str(error)}
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
        """A campaign, without its attachments."""
        found = self._campaigns.get(number)
        if found is None:
            with self._env.read() as txn:
                stored = txn.get(number.to_bytes(4, "big"), db=self._env.db["campaigns"])
            if stored is None:
                raise SpoolError(f"no campaign number {number} in spool {self.path}")
            found = CampaignRecord(*msgpack.unpackb(stored)[1:])
            found.template.pop("attachments", None)  # megabytes, for those who render
            if len(self._campaigns) >= CACHED_QUEUES:
                self._campaigns.clear()
            self._campaigns[number] = found
        return found

    def campaign_progress(self, tenant: str, campaign: str) -> set[int]:
        """Numbers of the chunks that were accepted."""
        db = self._env.db
        numbers: set[int] = set()
        with self._env.read() as txn:
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
        with self._env.read() as txn:
            value = txn.get(key.encode(), db=self._env.db["state"])
            return None if value is None else bytes(value)

    def sent(self, message_id: int) -> Sent | None:
        """To whom a message went that has a return path of its own."""
        with self._env.read() as txn:
            return sent.get(self._env, txn, message_id)

    def notices(self, limit: int) -> list[Notice]:
        """The notifications that are owed to senders."""
        with self._env.read() as txn:
            return notices.pending(self._env, txn, limit)

    def suppressions(self, after: bytes, limit: int) -> tuple[bytes, list[Suppression]]:
        """A page of the suppression list behind `after` (b"": from the start), and where the next page begins."""
        with self._env.read() as txn:
            return suppressions.page(self._env, txn, after, limit)

    def suppressions_of(self, address: str) -> list[Suppression]:
        with self._env.read() as txn:
            return suppressions.of_address(self._env, txn, address)

    def suppression_log(self, after: int, limit: int) -> tuple[int, list[Suppression]]:
        """What this region changed itself behind that number of its log, and the number this reaches to."""
        with self._env.read() as txn:
            return suppressions.logged(self._env, txn, after, limit)

    def suppression_log_end(self) -> int:
        with self._env.read() as txn:
            return suppressions.last_number(self._env, txn)

    def remembered(self) -> dict[str, int]:
        """How many deliveries are kept for late reports, and how many notifications are owed."""
        with self._env.read() as txn:
            return {name: int(txn.stat(self._env.db[name])["entries"]) for name in ("sent", "notices")}

    def suppression_rows(self) -> int:
        with self._env.read() as txn:
            return suppressions.count(self._env, txn)

    def outbox_chunks(self, limit: int) -> list[tuple[int, bytes]]:
        """The oldest chunks of events: (number, events in msgpack)."""
        found: list[tuple[int, bytes]] = []
        with self._env.read() as txn:
            for key, value in txn.cursor(db=self._env.db["outbox"]):
                if len(found) == limit:
                    break
                found.append((int.from_bytes(key, "big"), bytes(value)))
        return found

    def read_outbox(self, limit: int) -> list[tuple[int, list[list[Any]]]]:
        """The oldest chunks of events: (number, events)."""
        return [(number, msgpack.unpackb(chunk)) for number, chunk in self.outbox_chunks(limit)]

    def counts(self) -> dict[str, int]:
        """Accepted, and the ids by their last word."""
        totals = self._totals
        counts = {str(kind): totals.counts[kind] for kind in LAST_WORDS if kind < 7 or totals.counts[kind]}
        return {"accepted": totals.accepted, **counts}

    def sizes(self) -> dict[str, int]:
        """Bytes on disk, commits so far, and the time that the writer has spent on them."""
        return {
            "index_bytes": self._env.used_bytes(),
            "map_bytes": self._env.map_bytes(),
            "body_bytes": sum(_size(path) for path in self._bodies.glob("*.seg")),
            "groups": self._writer.groups,
            "operations": self._writer.operations,
            "busy_ms": self._writer.busy_ns // 1_000_000,
        }


def _segments(bodies: Path) -> Iterator[tuple[int, Path]]:
    """Body segments by number; files of other names are not ours."""
    for path in bodies.glob("*.seg"):
        if path.stem.isdecimal():
            yield int(path.stem), path


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # dropped by the writer meanwhile
        return 0


__all__ = ["DUE_KEY_SIZE", "Error", "Spool", "SpoolOptions"]

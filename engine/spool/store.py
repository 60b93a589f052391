"""The spool of one region: the single writer of its directory.

    data.mdb, lock.mdb    the index (engine/spool/environment.py)
    bodies/NNNNNNNN.seg   message bodies (engine/spool/bodies.py)
    owner                 locked by the process that has the spool open

Every change is one operation of a group commit (writer.py); its future is done when the group is on disk. Reads are
short transactions on any thread. Opening bumps the epoch, marks what was in flight as perhaps sent, and reads no
queued message.
"""

import logging
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgpack

from engine.failover.messages import Copy
from engine.failover.store import Accept, Apply, Durable, Operation
from engine.spool import accepting, notices, sent, settling, suppressions
from engine.spool.batches import (
    AcceptBatch,
    AcceptResult,
    CampaignRecord,
    ChunkBatch,
    Settlement,
    SettleResult,
)
from engine.spool.bodies import SegmentWriter, make_directory, sync_directory
from engine.spool.copies import count_copies
from engine.spool.draft import LAST_WORDS, PAGE_BYTES, Draft, QueueNumbers, page_of, word_of
from engine.spool.due_index import DueIndex
from engine.spool.environment import Environment, Error
from engine.spool.errors import CampaignUnknown
from engine.spool.exporter import Exporter
from engine.spool.forgetting import Forgetting
from engine.spool.groups import Groups
from engine.spool.handover import (
    Decide,
    HandoverKeeper,
    HandoverOperation,
    KeepKeys,
    Offers,
    read_offers,
    without_offered,
)
from engine.spool.notices import Notice
from engine.spool.opening import lock, recover
from engine.spool.options import SpoolOptions
from engine.spool.queue_names import QueueName, QueueNames
from engine.spool.reader import SpoolReader
from engine.spool.records import DUE_KEY_SIZE, DamagedRecord, Record, decode_record, due_key
from engine.spool.rest import begin_alone, end_rest, has_kept, read_rest, save_rest
from engine.spool.room import Room
from engine.spool.sent import Sent
from engine.spool.standby import read_durable
from engine.spool.writer import GroupWriter
from engine.values.clock import Clock
from engine.values.ids import SEQ_MASK, format_id
from engine.values.outcome import OutcomeKind
from engine.values.reply import Reply
from engine.values.submission import chunk_key_of
from engine.values.suppression import Suppression

log = logging.getLogger(__name__)

CACHED_CAMPAIGNS = 1000  # with their templates: kilobytes each


class Spool:
    """See the module docstring. Use `Spool.open`."""

    def __init__(self, path: Path, region_number: int, clock: Clock, options: SpoolOptions) -> None:
        self.path = path
        self._clock = clock
        self._bodies = path / "bodies"
        self._campaigns: dict[int, CampaignRecord] = {}
        self._room = room = Room(path, options)
        env = None
        queues: QueueNumbers = {}
        with ExitStack() as opened:
            try:
                make_directory(self._bodies)
                self._owner = lock(path)
                opened.callback(os.close, self._owner)
                self._env = env = Environment(path, map_size=options.map_size)
                opened.callback(self._env.close)
                sync_directory(path)
                self._due = DueIndex(self._env, options.journal)
                self._names = QueueNames(self._env, self._due)
                totals, self.life = recover(
                    path, self._bodies, self._env, region_number, queues, self._due, clock.wall_ms()
                )
            except (Error, OSError) as error:
                raise room.refusal(error, env) from error
            self._segment = SegmentWriter(self._bodies, options.segment_size)
            self.epoch = totals.epoch
            self._groups = Groups(
                path=path,
                env=self._env,
                segment=self._segment,
                bodies=self._bodies,
                room=room,
                totals=totals,
                queues=queues,
                due_index=self._due,
                forgetting=Forgetting(
                    self._env, self._due, keep_ms=options.keep_names_ms, every=options.forget_every
                ),
                clock=clock,
                step=options.step,
            )
            self._writer = GroupWriter(
                self._groups, deliver=options.deliver, step=options.step, now_ns=clock.monotonic_ns
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

    # -- changes

    def accept(self, batch: AcceptBatch) -> "Future[AcceptResult]":
        def run(draft: Draft) -> AcceptResult:
            segment, base = self._groups.append(draft, batch.blob)
            return accepting.accept(draft, batch, segment, base, self._clock.wall_ms())

        return self._writer.submit(run, has_bodies=True)

    def put_campaign(self, record: CampaignRecord) -> "Future[int]":
        def run(draft: Draft) -> int:
            self._groups.check_room(draft)
            return accepting.put_campaign(draft, record)

        return self._writer.submit(run)

    def accept_chunk(self, chunk: ChunkBatch) -> "Future[AcceptResult]":
        campaign = self.campaign(chunk.campaign_no)

        def run(draft: Draft) -> AcceptResult:
            self._groups.check_room(draft)
            return accepting.accept_chunk(
                draft, chunk, campaign.sender, campaign.campaign, self._clock.wall_ms()
            )

        return self._writer.submit(run)

    # -- failover

    def failover(self, operation: Operation, numbers: Mapping[str, int]) -> "Future[Any]":
        """Do what the failover protocol asks (engine/failover/store.py). `numbers`: those of the regions, by name."""

        def run(draft: Draft) -> Any:
            keeper = HandoverKeeper(draft, numbers, self._clock.wall_ms(), self._groups.append)
            match operation:
                case Accept(payload=AcceptBatch() as batch):
                    segment, base = self._groups.append(draft, batch.blob)
                    return keeper.accept(operation, batch, segment, base)
                case Accept(payload=ChunkBatch() as chunk):
                    self._groups.check_room(draft)
                    campaign = self.campaign(chunk.campaign_no)
                    return keeper.accept_chunk(operation, chunk, campaign)
                case Apply(entry=Copy()):
                    self._groups.check_room(draft)
            return keeper.apply(operation)

        return self._writer.submit(run, has_bodies=isinstance(operation, Accept | Apply))

    def hand_over(self, operation: HandoverOperation, numbers: Mapping[str, int]) -> "Future[Any]":
        """A step of a hand-over (engine/spool/handover.py). SpoolFull: there is no room to take anything."""
        is_taking = isinstance(operation, Decide) and operation.is_willing

        def run(draft: Draft) -> Any:
            if is_taking or isinstance(operation, KeepKeys):
                self._groups.check_room(draft)
            return HandoverKeeper(draft, numbers, self._clock.wall_ms(), self._groups.append).do(operation)

        return self._writer.submit(run, has_bodies=is_taking)

    def offers(self) -> Offers:
        """Offers to other regions that are not decided."""
        return read_offers(self._env)

    def durable(self, numbers: Mapping[str, int]) -> Durable:
        """What the protocol needs when it starts."""
        with self._env.read() as txn:
            return read_durable(self._env, txn, numbers)

    def rest(self) -> int | None:
        """Whether it may go on without copies: see engine/spool/rest.py, read_rest."""
        with self._env.read() as txn:
            return read_rest(self._env, txn)

    def has_kept_copies(self) -> bool:
        """Whether it ever took part in failover on this disk."""
        with self._env.read() as txn:
            return has_kept(self._env, txn)

    def copies(self, numbers: Mapping[str, int]) -> dict[str, int]:
        """How many copies of others' messages there are, by owner; `number 3` is one that has no name any more."""
        names = {number: name for name, number in numbers.items()}
        with self._env.read() as txn:
            counted = count_copies(self._env, txn)
        return {names.get(number, f"number {number}"): count for number, count in counted.items()}

    def copy_owners(self, numbers: Mapping[str, int]) -> dict[str, int]:
        """`numbers`, and those of owners of copies that have no name any more, as above."""
        with self._env.read() as txn:
            counted = count_copies(self._env, txn)
        unnamed = set(counted).difference(numbers.values())
        return {**numbers, **{f"number {number}": number for number in unnamed}}

    def save_rest(self, number: int) -> "Future[None]":
        """It is stopped, and every region is live as far as it knows."""
        return self._writer.submit(lambda draft: save_rest(draft, number))

    def end_rest(self) -> "Future[None]":
        """From now on others may adopt what is here."""
        return self._writer.submit(end_rest)

    def begin_alone(self) -> "Future[None]":
        """What is here is this region's alone."""
        return self._writer.submit(begin_alone)

    def exporter(self) -> Exporter:
        return Exporter(self._env, self.reader(), self._names.row)

    def dispatch(self, batch_no: int, ids: bytes, daily: dict[str, int]) -> "Future[list[int]]":
        """Make a batch's way out durable: the ids (8 bytes little endian each) and the counters they charge.

        The answer: ids that must not go out, because their recipients have been suppressed meanwhile, or because they
        have been offered to another region.
        """

        def run(draft: Draft) -> list[int]:
            going, offered = without_offered(self._env, draft, ids)
            now_ms = self._clock.wall_ms()
            return offered + settling.dispatch(draft, batch_no, going, daily, now_ms, self._names.row)

        return self._writer.submit(run)

    def settle(self, settlements: Sequence[Settlement]) -> "Future[SettleResult]":
        def run(draft: Draft) -> SettleResult:
            result, gone, kept = settling.settle(draft, settlements, self._names.row)
            for batch_no, ids in gone.items():
                for number in (batch_no,) if batch_no else self._batches_of(draft, ids):
                    settling.land(draft, self._groups.inflight, number, ids, kept=batch_no in kept)
            return result

        return self._writer.submit(run)

    def _batches_of(self, draft: Draft, ids: Sequence[int]) -> list[int]:
        """Batches that any of these ids are in flight in."""
        flying = {**self._groups.inflight, **draft.inflight}
        return [number for number, batch in flying.items() if not batch.isdisjoint(ids)]

    def cancel(self, ids: Sequence[int]) -> "Future[int]":
        return self._writer.submit(
            lambda draft: settling.cancel(draft, ids, self._clock.wall_ms(), self._names.row)
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
            self._groups.check_room(draft)
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

    def queue(self, number: int) -> QueueName:
        """Domain, stream, tenant and campaign of a spool queue. KeyError: the row with them is damaged."""
        return self._names[number]

    def known_queue(self, number: int) -> QueueName:
        """The same, or a name without a domain if the row is damaged: for what counts even so."""
        return self._names.known(number)

    def queues(self) -> Iterator[tuple[int, str, int, str, str, int | None]]:
        """Every spool queue: number, domain, stream, tenant, campaign, first due time (None: empty)."""
        return self._names.all()

    def waiting_queues(self) -> Iterator[tuple[int, str, int, str, str, int]]:
        """The spool queues that hold messages, as above."""
        return self._names.waiting()

    def scan_due(
        self, queue: int, after: bytes | None, until_due_ms: int, limit: int
    ) -> list[tuple[bytes, int]]:
        """Due keys of a queue after `after`, due at `until_due_ms` at the latest, with their expiry."""
        return self._due.scan(queue, after, until_due_ms, limit)

    def due_rows(self, after: bytes, limit: int) -> list[tuple[bytes, int]]:
        """Due keys of all queues behind `after` (b"": from the start) in their order, with their expiry."""
        return self._due.rows(after, limit)

    def count_due(
        self, after: bytes, limit: int, now_ms: int
    ) -> tuple[bytes, list[tuple[int, int, int, int]]]:
        """Count `limit` messages of all queues behind `after` (b"": from the start). Returns where to go on (b"": that
        was all), and of each queue its number, how many are due at `now_ms`, how many later, and the first due time."""
        keys = [key for key, _ in self._due.rows(after, limit)]
        rows = []
        start = 0
        while start < len(keys):
            prefix = keys[start][:4]
            end = bisect_right(keys, prefix + b"\xff" * 14, start)
            split = bisect_left(keys, prefix + (now_ms + 1).to_bytes(6, "big"), start, end)
            first_ms = int.from_bytes(keys[start][4:10], "big")
            rows.append((int.from_bytes(prefix, "big"), split - start, end - split, first_ms))
            start = end
        return (keys[-1] if len(keys) == limit else b""), rows

    def first_due_after(self, queue: int, after: bytes | None) -> int | None:
        """Due time of the first message of a queue behind a due key."""
        return self._due.first_after(queue, after)

    def empty_queues(self, numbers: Iterable[int]) -> set[int]:
        """Those of the queues that hold no message, neither one that waits nor one that is on the wire."""
        return {number for number, first in self._due.first_of(numbers).items() if first is None}

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
        number = page_of(message_id, self._groups.totals.region)
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
                raise CampaignUnknown(f"no campaign number {number} in spool {self.path}")
            found = CampaignRecord(*msgpack.unpackb(stored)[1:])
            found.template.pop("attachments", None)  # megabytes, for those who render
            if len(self._campaigns) >= CACHED_CAMPAIGNS:
                self._campaigns.clear()
            self._campaigns[number] = found
        return found

    def recipients_of(self, tenant: str, key: str) -> bytes | None:
        """The digest of those that a message's key stands for; None if the key is not known here."""
        with self._env.read() as txn:
            return accepting.recipients_of(txn, self._env.db, accepting.key_digest(tenant, key))

    def campaign_progress(self, tenant: str, campaign: str) -> dict[int, bytes]:
        """Numbers and digests of the chunks that were accepted, without those that have no receipt yet: with copies in
        other regions they may have to be given up."""
        db = self._env.db
        found: dict[int, bytes] = {}
        with self._env.read() as txn:
            prefix = txn.get(accepting.key_digest(tenant, campaign), db=db["campaign_names"])
            if prefix is None:
                return found
            prefix = bytes(prefix)
            with txn.cursor(db=db["chunks"]) as cursor:
                if cursor.set_range(prefix):
                    for key, value in cursor:
                        if key[:4] != prefix:
                            break
                        found[int.from_bytes(key[4:8], "big")] = msgpack.unpackb(value)[0]
            if txn.stat(db["unsafe"])["entries"]:
                for number, digest in list(found.items()):
                    key = chunk_key_of(tenant, campaign, number, digest)
                    if txn.get(key, db=db["unsafe"]) is not None:
                        del found[number]
        return found

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
        totals = self._groups.totals
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

    def room(self) -> dict[str, int]:
        """Bytes of the index in use and of the disk that are free, each with the watermark beyond which nothing more is
        accepted; chunks of events that are not shipped yet."""
        with self._env.read() as txn:
            used = self._env.used_by_databases(txn)
            chunks = int(txn.stat(self._env.db["outbox"])["entries"])
            room = self._room.figures(self._env, txn)
        return {**room, "index_used": used, "outbox_chunks": chunks}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # dropped by the writer meanwhile
        return 0


__all__ = ["DUE_KEY_SIZE", "Error", "Spool", "SpoolOptions"]

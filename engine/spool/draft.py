"""What one group commit is about to change, kept in memory until it is on disk.

The counters, the ledger pages, the segment counts and the numbers handed out live here while the group's operations
run, are written in one go at the end, and replace the committed ones only when the commit has succeeded. An aborted
group leaves no trace.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, TypeAlias

import msgpack

from engine.spool.due_index import DueDraft, DueIndex
from engine.spool.environment import Environment
from engine.spool.records import VERSION, pack
from engine.values.ids import SEQ_MASK, region_of
from engine.values.outcome import OutcomeKind

PAGE_IDS = 2048
PAGE_BYTES = PAGE_IDS // 2
EVENTS_PER_CHUNK = 10
SCATTERED = 32
FORMAT = 2  # 1 had no journal of the due index, and one message to a row of it
META = b"state"
COUNTS = OutcomeKind.REPLACED + 1
LAST_WORDS = (*(OutcomeKind(kind) for kind in range(1, 7)), OutcomeKind.MOVED, OutcomeKind.REPLACED)
NOT_HERE = frozenset(
    {0, OutcomeKind.MOVED, OutcomeKind.REPLACED}
)  # last words that say nothing of a message here
SKIPPED = b"skipped"  # in the database of failover: runs of sequence numbers that were never given out

QueueNumbers: TypeAlias = dict[tuple[str, int, str, str], int]


class UnknownFormat(ValueError):
    """A later release has written the spool."""


class Totals:
    """Numbers that the index keeps in its meta record."""

    __slots__ = (
        "accepted",
        "batch",
        "campaigns",
        "counts",
        "epoch",
        "group",
        "next_seq",
        "outbox",
        "queues",
        "region",
        "segment",
    )

    def __init__(self, region: int) -> None:
        self.region = region
        self.epoch = 0
        self.group = 0
        self.next_seq = 1
        self.queues = 0
        self.campaigns = 0
        self.segment = 0
        self.outbox = 0
        self.accepted = 0
        self.counts = [0] * COUNTS

    def encode(self) -> bytes:
        return bytes(
            pack(
                (
                    FORMAT,
                    self.region,
                    self.epoch,
                    self.group,
                    self.next_seq,
                    self.queues,
                    self.campaigns,
                    self.segment,
                    self.outbox,
                    self.accepted,
                    self.counts,
                )
            )
        )

    @classmethod
    def decode(cls, data: bytes) -> "Totals":
        fields = msgpack.unpackb(data)
        if not 1 <= fields[0] <= FORMAT:
            raise UnknownFormat(f"spool of format {fields[0]}: this release reads 1 to {FORMAT}")
        totals = cls(fields[1])
        (
            totals.epoch,
            totals.group,
            totals.next_seq,
            totals.queues,
            totals.campaigns,
            totals.segment,
            totals.outbox,
            totals.accepted,
            totals.counts,
        ) = fields[2:]
        totals.counts += [0] * (COUNTS - len(totals.counts))  # an earlier release had fewer
        return totals

    def copy(self) -> "Totals":
        return Totals.decode(self.encode())


class Draft:
    """See the module docstring. `txn` is the group's write transaction."""

    def __init__(
        self, env: Environment, txn: Any, totals: Totals, queue_cache: QueueNumbers, due_index: DueIndex
    ) -> None:
        self.env = env
        self.txn = txn
        self.totals = totals.copy()
        self._queue_cache = queue_cache
        self._due_index = due_index
        self.due = DueDraft()
        self.new_queues: QueueNumbers = {}
        self.used_queues: set[int] = set()
        self.forgotten: list[tuple[tuple[str, int, str, str], bytes]] = []
        """Names of spool queues that the group removes, and their numbers."""
        self._pages: dict[int, bytearray] = {}
        self._segments: dict[int, list[int]] = {}
        self.drained: list[int] = []
        self._events: list[bytes] = []
        self.inflight: dict[int, set[int]] = {}
        """What changes in the set of messages on their way, by batch; an empty set: the batch is done."""
        self.remembered = 0
        self.sent = 0
        self.suppressed_before = 0
        """Ids of this region from here on were looked up in the suppression list after its last change."""
        self._changing = 0

    def will_change(self, records: int) -> None:
        """So many records of messages are about to change, perhaps each on a page of its own."""
        if self._changing < SCATTERED <= self._changing + records:
            self.env.gather_free_pages(self.txn)
        self._changing += records

    def is_due(self, key: bytes) -> bool:
        return self._due_index.is_due(self.due, self.txn, key)

    # -- numbers

    def queue(self, domain: str, stream: int, tenant: str, campaign: str) -> int:
        """Number of a spool queue, made if there is none."""
        name = (domain, stream, tenant, campaign)
        number = self._queue_cache.get(name) or self.new_queues.get(name)
        if number is not None:
            self.used_queues.add(number)
            return number
        digest = name_digest(name)
        stored = self.txn.get(digest, db=self.env.db["queue_names"])
        row = pack((VERSION, *name))
        if stored is not None:
            number = int.from_bytes(stored, "big")
            if self.txn.get(stored, db=self.env.db["queues"]) != row:  # it is damaged
                self.txn.put(bytes(stored), row, db=self.env.db["queues"])
        else:
            self.totals.queues += 1
            number = self.totals.queues
            key = number.to_bytes(4, "big")
            self.txn.put(digest, key, db=self.env.db["queue_names"])
            self.txn.put(key, row, db=self.env.db["queues"])
        self.new_queues[name] = number
        self.used_queues.add(number)
        return number

    # -- ledger

    def _page(self, number: int) -> bytearray:
        page = self._pages.get(number)
        if page is None:
            stored = self.txn.get(number.to_bytes(8, "big"), db=self.env.db["ledger"])
            page = self._pages[number] = bytearray(stored or PAGE_BYTES)
        return page

    def seen_page(self, number: int) -> bytes:
        """A ledger page with what the group has changed in it; b"" if there is none."""
        page = self._pages.get(number)
        if page is None:
            page = self.txn.get(number.to_bytes(8, "big"), db=self.env.db["ledger"])
        return bytes(page or b"")

    def mark(self, id_: int, kind: int) -> None:
        """Set the last word on an id."""
        seq = id_ & SEQ_MASK
        page = self._page(page_of(id_, self.totals.region))
        position, odd = divmod(seq % PAGE_IDS, 2)
        page[position] = (page[position] & 0x0F | kind << 4) if odd else (page[position] & 0xF0 | kind)

    def mark_range(self, first_seq: int, count: int, kind: int) -> None:
        """Set the last word on ids of this region that follow each other."""
        seq, end = first_seq, first_seq + count
        while seq < end:
            page = self._page(seq // PAGE_IDS)
            position, odd = divmod(seq % PAGE_IDS, 2)
            pairs = 0 if odd else min(end - seq, PAGE_IDS - seq % PAGE_IDS) // 2
            if pairs:
                page[position : position + pairs] = bytes((kind << 4 | kind,)) * pairs
                seq += 2 * pairs
            else:
                page[position] = (
                    (page[position] & 0x0F | kind << 4) if odd else (page[position] & 0xF0 | kind)
                )
                seq += 1

    def word(self, id_: int) -> int:
        return word_of(self._page(page_of(id_, self.totals.region)), id_ & SEQ_MASK)

    def finish(self, id_: int, kind: int) -> None:
        """A queued id has got its final outcome."""
        self.mark(id_, kind)
        self.totals.counts[OutcomeKind.QUEUED] -= 1
        self.totals.counts[kind] += 1

    def accepted(self, first_seq: int, count: int) -> None:
        self.mark_range(first_seq, count, OutcomeKind.QUEUED)
        self.totals.accepted += count
        self.totals.counts[OutcomeKind.QUEUED] += count

    def adopted(self, id_: int) -> None:
        """An id is queued here that another region accepted, or that was given up before."""
        word = self.word(id_)
        if word:
            self.totals.counts[word] -= 1
        else:
            self.totals.accepted += 1
        self.mark(id_, OutcomeKind.QUEUED)
        self.totals.counts[OutcomeKind.QUEUED] += 1

    # -- segments

    def live(self, segment: int, change: int) -> None:
        """So many more (or fewer) queued messages have their body in that segment."""
        row = self._segments.get(segment)
        if row is None:
            stored = self.txn.get(segment.to_bytes(4, "big"), db=self.env.db["segments"])
            row = self._segments[segment] = [int.from_bytes(stored, "big") if stored else 0]
        row[0] += change

    # -- events

    def event(self, fields: Sequence[Any]) -> None:
        self._events.append(pack(fields))

    # -- the end

    def write_out(self, open_segment: int) -> None:
        """Write everything that was gathered; the transaction is committed by the caller."""
        txn, db = self.txn, self.env.db
        self._due_index.write_out(self.due, txn)
        for number, page in sorted(self._pages.items()):
            txn.put(number.to_bytes(8, "big"), bytes(page), db=db["ledger"])
        for number, (live,) in self._segments.items():
            key = number.to_bytes(4, "big")
            if live == 0 and number != open_segment:
                txn.delete(key, db=db["segments"])
                self.drained.append(number)
            else:
                txn.put(key, live.to_bytes(8, "big"), db=db["segments"])
        for start in range(0, len(self._events), EVENTS_PER_CHUNK):
            chunk = self._events[start : start + EVENTS_PER_CHUNK]
            self.totals.outbox += 1
            txn.put(
                self.totals.outbox.to_bytes(8, "big"),
                bytes((0x90 | len(chunk),)) + b"".join(chunk),
                db=db["outbox"],
                append=True,
            )
        self.totals.group += 1
        txn.put(META, self.totals.encode(), db=db["meta"])


def name_digest(name: tuple[str, int, str, str]) -> bytes:
    """The key of a spool queue in `queue_names`."""
    return hashlib.blake2b(pack(name), digest_size=16).digest()


def skipped_sequences(stored: bytes | None) -> list[tuple[int, int]]:
    """Runs [first, end) of sequence numbers that a region jumped over when it began anew on an empty disk."""
    return [] if stored is None else [(first, end) for first, end in msgpack.unpackb(stored)]


def page_of(id_: int, region: int) -> int:
    """Number of the ledger page of an id. Those of other regions' ids lie behind those of our own."""
    return (id_ & SEQ_MASK if region_of(id_) == region else id_) // PAGE_IDS


def word_of(page: bytes | bytearray, seq: int) -> int:
    position, odd = divmod(seq % PAGE_IDS, 2)
    return page[position] >> 4 if odd else page[position] & 0x0F

"""The audit of a spool: conservation, id by id, from the disk (contract, promise 2).

For every id that was ever accepted: if its last word is `queued`, it has a record and exactly the due key that the
record names, or none while it is offered to another region, and its body's segment or its campaign is there; any other
has neither. The sums of the words are the counters. One read transaction, so it can run beside a live region. What has
moved between regions is accounted for in engine/spool/audit_moved.py.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import msgpack

from engine.failover.spans import Spans, ids_of, normal
from engine.spool.bodies import segment_path
from engine.spool.draft import (
    LAST_WORDS,
    META,
    PAGE_BYTES,
    PAGE_IDS,
    SKIPPED,
    Totals,
    UnknownFormat,
    skipped_sequences,
    word_of,
)
from engine.spool.due_index import DueIndex
from engine.spool.environment import Environment, Error
from engine.spool.handover import offered_ids
from engine.spool.queue_names import CACHED_QUEUES, decode_name
from engine.spool.records import DamagedRecord, decode_record, due_key
from engine.values.ids import format_id, make_id
from engine.values.outcome import OutcomeKind

MAP_LIMIT = 1 << 40
RUNS_OF: dict[int, int] = {OutcomeKind.MOVED: 1, OutcomeKind.REPLACED: 2}  # by word; 0 the others
SHOWN = 20

Runs: TypeAlias = list[list[int]]


@dataclass(slots=True)
class AuditReport:
    """`counts` by the ledger; `problems` names at most the first 20 of `problem_count`.

    `kept`, `moved`: runs of the ids that are queued or got their outcome here, and of those that moved away.
    """

    path: str
    accepted: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    problem_count: int = 0
    problems: list[str] = field(default_factory=list)
    kept: Spans = ()
    moved: Spans = ()

    @property
    def is_clean(self) -> bool:
        return self.problem_count == 0

    def problem(self, text: str) -> None:
        self.problem_count += 1
        if len(self.problems) < SHOWN:
            self.problems.append(text)

    def equation(self) -> str:
        """The conservation law with this spool's numbers."""
        parts = " + ".join(f"{kind} {number}" for kind, number in self.counts.items())
        return f"accepted {self.accepted} = {parts}"


def audit(path: str | Path) -> AuditReport:
    """Audit the spool at `path`, live or not. One that cannot be read is a report with that problem."""
    report = AuditReport(str(path))
    try:
        env = Environment(Path(path), map_size=MAP_LIMIT, readonly=True)
    except (Error, OSError) as error:
        report.problem(f"the index cannot be opened: {error}")
        return report
    try:
        with env.read() as txn:
            stored = txn.get(META, db=env.db["meta"])
            if stored is None:
                return report
            totals = Totals.decode(stored)
            words = [0] * 16
            held = _held(env, txn)
            waiting = 0  # of these, queued
            due_index = DueIndex(env, 0)
            due_index.load(txn)
            is_due = due_index.finder(txn.cursor(db=env.db["due"]))
            runs: tuple[Runs, Runs, Runs] = ([], [], [])
            names = _Names(env, txn)
            contents = _Contents(env, txn, Path(path) / "bodies")
            for id_, word in _words(env, txn, totals):
                words[word] += 1
                _extend(runs[RUNS_OF.get(word, 0)], id_)
                if word == 0:
                    report.problem(f"{format_id(id_)}: accepted, but not in the ledger")
                elif word == OutcomeKind.QUEUED:
                    stored = txn.get(id_.to_bytes(8, "big"), db=env.db["messages"])
                    if stored is None:
                        report.problem(f"{format_id(id_)}: queued, but there is no record")
                        continue
                    try:
                        record = decode_record(id_, stored)
                    except DamagedRecord as error:
                        report.problem(f"{format_id(id_)}: queued, but unreadable: {error}")
                        continue
                    if not names.is_known(record.queue):
                        report.problem(f"{format_id(id_)}: queued, but the name of its queue is damaged")
                    contents.look(id_, record.content)
                    is_now_due = is_due(due_key(record.queue, record.due_ms, id_))
                    waiting += id_ in held
                    if is_now_due and id_ in held:
                        report.problem(
                            f"{format_id(id_)}: due, but its copy is not safe yet, or it is offered elsewhere"
                        )
                    elif not is_now_due and id_ not in held:
                        report.problem(f"{format_id(id_)}: queued, but never due")
            report.kept, report.moved = normal(runs[0]), normal(runs[1])
            report.accepted = totals.accepted
            report.counts = {str(kind): words[kind] for kind in LAST_WORDS if kind < 7 or words[kind]}
            queued = words[OutcomeKind.QUEUED]
            records = int(txn.stat(env.db["messages"])["entries"])
            for name, wanted, entries in (
                ("messages", queued, records),
                ("due", queued - waiting, due_index.entries(txn)),
            ):
                if entries != wanted:
                    report.problem(f"{wanted} ids are queued, but there are {entries} entries in {name}")
            last_words = [words[kind] for kind in LAST_WORDS]
            if sum(last_words) != totals.accepted:
                report.problem(f"accepted {totals.accepted}, but the ledger has {sum(last_words)}")
            counted = [totals.counts[kind] for kind in LAST_WORDS]
            if last_words != counted:
                report.problem(f"counters say {counted}, the ledger says {last_words}")
        for text in contents.lost():
            report.problem(text)
    except (Error, UnknownFormat) as error:
        report.problem(f"the index cannot be read on: {error}")
    finally:
        env.close()
    return report


def _extend(runs: Runs, id_: int) -> None:
    if runs and id_ == runs[-1][0] + runs[-1][1]:
        runs[-1][1] += 1
    else:
        runs.append([id_, 1])


class _Names:
    """Which spool queues have a name that can be read."""

    def __init__(self, env: Environment, txn: Any) -> None:
        self._txn = txn
        self._db = env.db["queues"]
        self._known: dict[int, bool] = {}

    def is_known(self, number: int) -> bool:
        known = self._known.get(number)
        if known is None:
            if len(self._known) >= CACHED_QUEUES:
                self._known.clear()
            try:
                decode_name(number, self._txn.get(number.to_bytes(4, "big"), db=self._db))
                known = True
            except DamagedRecord:
                known = False
            self._known[number] = known
        return known


class _Contents:
    """Whether bodies are there as far as the sizes of their segments show, and campaigns.

    A live region drops segments that it has drained meanwhile: those are no loss.
    """

    def __init__(self, env: Environment, txn: Any, bodies: Path) -> None:
        self._env = env
        self._txn = txn
        self._bodies = bodies
        self._sizes: dict[int, int] = {}
        self._campaigns: dict[int, bool] = {}
        self._lost: dict[tuple[str, int], list[int]] = {}  # first id, and how many

    def look(self, id_: int, content: Sequence[Any]) -> None:
        """At the content of a queued message's record."""
        if len(content) == 4:
            kind, number = "segment", content[0]
            is_there = content[1] + content[2] <= self._size_of(number)
        else:
            kind, number = "campaign", content[0]
            if number not in self._campaigns:
                stored = self._txn.get(number.to_bytes(4, "big"), db=self._env.db["campaigns"])
                self._campaigns[number] = stored is not None
            is_there = self._campaigns[number]
        if not is_there:
            self._lost.setdefault((kind, number), [id_, 0])[1] += 1

    def _size_of(self, segment: int) -> int:
        size = self._sizes.get(segment)
        if size is None:
            try:
                size = segment_path(self._bodies, segment).stat().st_size
            except FileNotFoundError:
                size = -1
            self._sizes[segment] = size
        return size

    def lost(self) -> Iterator[str]:
        """What is lost for queued messages; outside of the transaction in which they were looked at."""
        for (kind, number), (first, count) in self._lost.items():
            if kind == "segment":
                with self._env.read() as txn:
                    if txn.get(number.to_bytes(4, "big"), db=self._env.db["segments"]) is None:
                        continue
            where = f"body segment {number}" if kind == "segment" else f"campaign {number}"
            how = "has been cut off" if kind == "segment" and self._sizes[number] >= 0 else "is missing"
            yield f"{format_id(first)}: queued, as {count} in all whose content is lost: {where} {how}"


def _held(env: Environment, txn: Any) -> set[int]:
    """Ids that are not due as long as they are queued: their copies are not safe yet, or they are offered elsewhere."""
    offered = offered_ids(env, txn)
    if "unsafe" not in env.db:
        return offered
    unsafe = {id_ for _, value in txn.cursor(db=env.db["unsafe"]) for id_ in ids_of(msgpack.unpackb(value))}
    return unsafe | offered


def _words(env: Environment, txn: Any, totals: Totals) -> Iterator[tuple[int, int]]:
    """Every id that was accepted here, or adopted from another region, with its last word."""
    skipped = skipped_sequences(txn.get(SKIPPED, db=env.db["failover"]) if "failover" in env.db else None)
    start = 1
    for first, end in [*skipped, (totals.next_seq, totals.next_seq)]:
        for seq in range(start, first):
            if seq % PAGE_IDS == 0 or seq == start:
                key = (seq // PAGE_IDS).to_bytes(8, "big")
                page = bytes(txn.get(key, db=env.db["ledger"]) or bytes(PAGE_BYTES))
            yield make_id(totals.region, seq), word_of(page, seq)
        for seq, word in _adopted_back(env, txn, first, end):
            yield make_id(totals.region, seq), word
        start = end
    with txn.cursor(db=env.db["ledger"]) as cursor:
        found = cursor.set_range((make_id(1, 1) // PAGE_IDS).to_bytes(8, "big"))
        while found:
            first = int.from_bytes(cursor.key(), "big") * PAGE_IDS
            page = bytes(cursor.value())
            for id_ in range(first, first + PAGE_IDS):
                word = word_of(page, id_)
                if word:
                    yield id_, word
            found = cursor.next()


def _adopted_back(env: Environment, txn: Any, first: int, end: int) -> Iterator[tuple[int, int]]:
    """Of the sequence numbers that were jumped over: those that came back from another region."""
    with txn.cursor(db=env.db["ledger"]) as cursor:
        found = cursor.set_range((first // PAGE_IDS).to_bytes(8, "big"))
        while found and (page_first := int.from_bytes(cursor.key(), "big") * PAGE_IDS) < end:
            page = bytes(cursor.value())
            for seq in range(max(first, page_first), min(end, page_first + PAGE_IDS)):
                word = word_of(page, seq)
                if word:
                    yield seq, word
            found = cursor.next()

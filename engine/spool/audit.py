"""The audit of a spool: conservation, id by id, from the disk (contract, promise 2).

For every id that was ever accepted: if its last word is `queued`, it has a record and exactly the due key that the
record names, or none while it is offered to another region; any other has neither. The sums of the words are the
counters. One read transaction, so it can run beside a live region. What has moved between regions is accounted for in
engine/spool/audit_moved.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import msgpack

from engine.failover.spans import Spans, ids_of, normal
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

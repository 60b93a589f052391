"""The audit of a spool: conservation, id by id, from the disk (contract, promise 2).

For every id that was ever accepted: if its last word is `queued`, it has a record and exactly the due key that the
record names; any other has neither. The sums of the words are the counters. One read transaction, so it can run
beside a live region.
"""

from dataclasses import dataclass, field
from pathlib import Path

from engine.spool.draft import META, PAGE_BYTES, PAGE_IDS, Totals, word_of
from engine.spool.environment import Environment
from engine.spool.records import decode_record, due_key
from engine.values.ids import format_id, make_id
from engine.values.outcome import OutcomeKind

MAP_LIMIT = 1 << 40
SHOWN = 20


@dataclass(slots=True)
class AuditReport:
    """`counts` by the ledger; `problems` names at most the first 20 of `problem_count`."""

    path: str
    accepted: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    problem_count: int = 0
    problems: list[str] = field(default_factory=list)

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
    """Audit the spool at `path`, live or not."""
    report = AuditReport(str(path))
    env = Environment(Path(path), map_size=MAP_LIMIT, readonly=True)
    try:
        with env.read() as txn:
            stored = txn.get(META, db=env.db["meta"])
            if stored is None:
                return report
            totals = Totals.decode(stored)
            words = [0] * 16
            for seq in range(1, totals.next_seq):
                if seq % PAGE_IDS == 0 or seq == 1:
                    page = bytes(
                        txn.get((seq // PAGE_IDS).to_bytes(8, "big"), db=env.db["ledger"])
                        or bytes(PAGE_BYTES)
                    )
                id_ = make_id(totals.region, seq)
                word = word_of(page, seq)
                words[word] += 1
                if word == 0:
                    report.problem(f"{format_id(id_)}: accepted, but not in the ledger")
                elif word == OutcomeKind.QUEUED:
                    stored = txn.get(id_.to_bytes(8, "big"), db=env.db["messages"])
                    if stored is None:
                        report.problem(f"{format_id(id_)}: queued, but there is no record")
                        continue
                    record = decode_record(id_, stored)
                    if txn.get(due_key(record.queue, record.due_ms, id_), db=env.db["due"]) is None:
                        report.problem(f"{format_id(id_)}: queued, but never due")
            report.accepted = totals.accepted
            report.counts = {str(OutcomeKind(kind)): words[kind] for kind in range(1, 7)}
            queued = words[OutcomeKind.QUEUED]
            for name in ("messages", "due"):
                entries = txn.stat(env.db[name])["entries"]
                if entries != queued:
                    report.problem(f"{queued} ids are queued, but there are {entries} entries in {name}")
            if sum(words[1:7]) != totals.accepted:
                report.problem(f"accepted {totals.accepted}, but the ledger has {sum(words[1:7])}")
            if words[1:7] != totals.counts[1:7]:
                report.problem(f"counters say {totals.counts[1:7]}, the ledger says {words[1:7]}")
    finally:
        env.close()
    return report

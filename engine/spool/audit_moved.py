"""The audit over several spools: of each message exactly one of them has the last word (contract, promise 2).

A message counts where it is queued or got its outcome. Where it was before, its last word is `moved`: there it is in
`accepted` and in `moved`, so that over all spools `accepted` without `moved` counts every message once. So without
`replaced`: of a batch that got no receipt here, and that another region has accepted under ids of its own. Checked
here, id by id: what is `moved` somewhere counts somewhere else, and nothing counts twice. Twice, without a fault,
counts:

- what is just being handed over: taken there, and not settled here, where it is on offer and will not be sent;
- in a fleet with copies, what a region that was called dead still has until it returns, and a possible duplicate.

Beside a running fleet the spools are seen at different moments: what does not fit is looked at again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engine.failover.spans import Spans, ids_of, intersect, of_ids, subtract, union
from engine.spool.audit import MAP_LIMIT, SHOWN, AuditReport
from engine.spool.draft import META, NOT_HERE, Totals, page_of, word_of
from engine.spool.environment import Environment, Error
from engine.spool.handover import offered_ids
from engine.values.ids import SEQ_MASK, format_id
from engine.values.outcome import OutcomeKind

LOOKS = 3


@dataclass(slots=True)
class MovedReport:
    """`missing`: moved, and nowhere else. `twice`: in the hands of two regions. `offered`: of these, on offer."""

    missing: Spans = ()
    twice: Spans = ()
    offered: Spans = ()
    problems: list[str] = field(default_factory=list)


def audit_moved(reports: Mapping[str, AuditReport], *, all_here: bool, has_copies: bool) -> MovedReport:
    """Compare the spools of a fleet. `all_here`: no region's spool is missing, so that nothing can be elsewhere."""
    found = _compare({name: (report.kept, report.moved) for name, report in reports.items()})
    for _ in range(LOOKS - 1):
        doubtful = union(found.missing, found.twice)
        if not doubtful:
            return found
        looks = {name: _look(Path(report.path), doubtful) for name, report in reports.items()}
        found = _compare({name: look[:2] for name, look in looks.items()})
        found.offered = intersect(found.twice, union(*(look[2] for look in looks.values())))
    if all_here:
        found.problems += [
            f"{format_id(id_)}: moved to another region, and none has it"
            for id_ in ids_of(found.missing)[:SHOWN]
        ]
    if not has_copies:
        wrong = subtract(found.twice, found.offered)
        found.problems += [f"{format_id(id_)}: in the hands of two regions" for id_ in ids_of(wrong)[:SHOWN]]
    return found


def _compare(spools: Mapping[str, tuple[Spans, Spans]]) -> MovedReport:
    seen: Spans = ()
    twice: Spans = ()
    for kept, _ in spools.values():
        twice = union(twice, intersect(seen, kept))
        seen = union(seen, kept)
    missing = subtract(union(*(moved for _, moved in spools.values())), seen)
    return MovedReport(missing, twice)


def _look(path: Path, spans: Spans) -> tuple[Spans, Spans, Spans]:
    """Of these: what counts in this spool now, what has moved away, and what is on offer."""
    kept, moved = [], []
    try:
        env = Environment(path, map_size=MAP_LIMIT, readonly=True)
    except (Error, OSError):  # its own report says so
        return (), (), ()
    try:
        with env.read() as txn:
            region = Totals.decode(txn.get(META, db=env.db["meta"])).region
            offered = offered_ids(env, txn)
            for id_ in ids_of(spans):
                page = txn.get(page_of(id_, region).to_bytes(8, "big"), db=env.db["ledger"])
                word = 0 if page is None else word_of(bytes(page), id_ & SEQ_MASK)
                if word == OutcomeKind.MOVED:
                    moved.append(id_)
                elif word not in NOT_HERE:
                    kept.append(id_)
    finally:
        env.close()
    return of_ids(kept), of_ids(moved), of_ids(offered)

"""The audit over several spools: a message that has moved counts once, and one that nobody has is missed."""

from pathlib import Path

import pytest

from engine.failover.handover import SettleOffer
from engine.failover.spans import Spans
from engine.failover.store import Abandon, GiveUp
from engine.spool import audit_moved as module
from engine.spool.audit import AuditReport, audit
from engine.spool.audit_moved import MovedReport, audit_moved
from engine.values.outcome import OutcomeKind
from tests.support.spools import PATIENCE_S, accept, batch, id_of, letter, settlement
from tests.unit.spool.test_handover import NUMBERS, Trio, spans_of


def handed_over(path: Path, *, is_settled: bool = True, is_taken: bool = True) -> list[int]:
    """Of six messages of a, four are offered to b, two of which are sent there."""
    trio = Trio(path)
    keys = accept(trio.spools["a"], batch(letters=[letter(n) for n in range(6)]))
    offer = trio.offer(spans_of(keys[:4]))
    if is_taken:
        decided = trio.take(offer)
        sent = [settlement(decided.due_keys[0]), settlement(decided.due_keys[1], OutcomeKind.BOUNCED)]
        trio.spools["b"].settle(sent).result(PATIENCE_S)
        if is_settled:
            trio.do("a", SettleOffer(7, decided.verdict.taken))
    for spool in trio.spools.values():
        spool.close()
    return [id_of(key) for key in keys]


def reports(path: Path) -> dict[str, AuditReport]:
    return {name: audit(path / name) for name in NUMBERS}


def compare(path: Path, *, has_copies: bool = False) -> MovedReport:
    return audit_moved(reports(path), all_here=True, has_copies=has_copies)


def test_what_has_moved_counts_once(tmp_path: Path) -> None:
    ids = handed_over(tmp_path)
    found = reports(tmp_path)
    moved: Spans = ((ids[0], 4),)
    assert (found["a"].moved, found["a"].kept, found["b"].kept) == (moved, ((ids[4], 2),), moved)
    assert sum(r.accepted - r.counts.get("moved", 0) for r in found.values()) == 6
    assert compare(tmp_path) == MovedReport()


def test_what_is_taken_and_not_settled_yet_counts_twice_and_is_no_fault(tmp_path: Path) -> None:
    ids = handed_over(tmp_path, is_settled=False)
    found = compare(tmp_path)
    assert (found.twice, found.offered, found.problems) == (((ids[0], 4),), ((ids[0], 4),), [])


def test_a_batch_that_another_region_accepted_instead_counts_there(tmp_path: Path) -> None:
    """It died before it gave a receipt; the client went elsewhere, and got other ids."""
    trio = Trio(tmp_path)
    ids = [id_of(key) for key in accept(trio.spools["a"], batch(letters=[letter(n) for n in range(3)]))]
    instead = [id_of(key) for key in accept(trio.spools["b"], batch(letters=[letter(n) for n in range(3)]))]
    abandon = Abandon(b"k" * 16, ((ids[0], 3),), ((instead[0], 3),))
    trio.spools["a"].failover(abandon, NUMBERS).result(PATIENCE_S)
    for spool in trio.spools.values():
        spool.close()
    found = reports(tmp_path)
    assert (found["a"].counts["replaced"], found["a"].moved, found["a"].kept) == (3, (), ())
    assert all(report.is_clean for report in found.values())
    assert compare(tmp_path) == MovedReport()


def test_what_has_moved_and_nobody_has_is_a_fault(tmp_path: Path) -> None:
    ids = handed_over(tmp_path)
    trio = Trio(tmp_path)
    trio.spools["b"].failover(GiveUp(((ids[2], 2),), "c"), NUMBERS).result(PATIENCE_S)
    for spool in trio.spools.values():
        spool.close()
    assert compare(tmp_path).problems == [
        f"{id_:016x}: moved to another region, and none has it" for id_ in ids[2:4]
    ]
    assert audit_moved(reports(tmp_path), all_here=False, has_copies=False).problems == []


def test_what_is_in_the_hands_of_two_is_a_fault_unless_there_are_copies(tmp_path: Path) -> None:
    ids = handed_over(tmp_path, is_settled=False)
    trio = Trio(tmp_path)
    trio.do("a", SettleOffer(7, ()))
    for spool in trio.spools.values():
        spool.close()
    assert [text.split(":")[0] for text in compare(tmp_path).problems] == [f"{id_:016x}" for id_ in ids[:4]]
    found = compare(tmp_path, has_copies=True)
    assert (found.twice, found.problems) == (((ids[0], 4),), [])


def test_what_moves_while_the_spools_are_read_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed_over(tmp_path)
    found = reports(tmp_path)
    found["b"].kept = ()  # it was read before it took them
    looked = []
    look = module._look
    monkeypatch.setattr(module, "_look", lambda path, spans: looked.append(path.name) or look(path, spans))
    assert audit_moved(found, all_here=True, has_copies=False) == MovedReport()
    assert looked == ["a", "b", "c"]

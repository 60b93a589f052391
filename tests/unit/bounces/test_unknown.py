"""The table of replies that no rule knows."""

from engine.bounces.classifier import Classifier
from engine.bounces.judge import Judge
from engine.bounces.unknown import MAX_WORDINGS, UnknownReplies, wording_of
from engine.values.outcome import Outcome, OutcomeKind, Scope
from engine.values.reply import Reply


def test_the_same_wording_is_counted_once() -> None:
    table = UnknownReplies()
    table.note(Reply(554, "5.7.1", "no, 192.0.2.1, not <user@example.com> (x17z)"), 1000)
    table.note(Reply(554, "5.7.1", "no, 192.0.2.9, not <other@example.com> (x99z)"), 2000)
    ((wording, row),) = table.rows()
    assert wording == "554 5.7.1 no, # not # #"
    assert (row.count, row.first_ms, row.last_ms) == (2, 1000, 2000)
    assert "other@example.com" in row.sample


def test_it_survives_being_stored() -> None:
    table = UnknownReplies()
    table.note(Reply(554, "", "xyzzy"), 1000)
    assert table.is_dirty
    again = UnknownReplies(table.encode())
    assert again.rows() == table.rows()
    assert not table.is_dirty
    assert not again.is_dirty


def test_it_is_bounded_and_keeps_the_latest() -> None:
    table = UnknownReplies()
    words = [
        "".join(chr(97 + int(digit)) for digit in f"{number:04d}") for number in range(MAX_WORDINGS + 50)
    ]
    for number, word in enumerate(words):
        table.note(Reply(554, "", word + " " + "y" * 5000), number)
    assert len(table.rows()) == MAX_WORDINGS
    assert not any(wording.startswith(f"554 {words[0]}") for wording, _ in table.rows())
    assert len(table.encode()) < MAX_WORDINGS * 1000


def test_only_attempts_are_counted() -> None:
    judge = Judge(Classifier([]), UnknownReplies())
    for kind in OutcomeKind:
        judge.classify(Outcome(1, kind, Scope.RECIPIENT, Reply(554, "", str(kind)), 0, "", 5))
    assert {wording for wording, _ in judge.unknown.rows()} == {"554 bounced", "554 deferred", "554 expired"}


def test_the_wording_of_a_reply_without_text() -> None:
    assert wording_of(Reply(554, "", "")) == "554"

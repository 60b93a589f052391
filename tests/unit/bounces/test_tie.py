"""Whose failure a report tells: that of our recipient, or of somebody whom his mail goes on to."""

from pathlib import Path

import pytest

from engine.bounces.report import Failure, ReportKind, read_report
from engine.bounces.tie import is_same_mailbox, tied
from engine.values.reply import Reply

REPORTS = Path(__file__).parent / "reports"
ANNA = "anna@example.org"
CARL = "carl@forward.example"
GONE = Reply(550, "5.1.1", "user unknown")


@pytest.mark.parametrize(
    ("name", "recipient", "elsewhere"),
    [
        ("postfix-failed", ANNA, ""),
        ("exim-text", ANNA, ""),
        ("qmail", ANNA, ""),
        ("yahoo-text", "anna@yahoo.example", ""),
        ("exchange", "Anna@corp.example.org", ""),
        ("internal-name", "anna+news@example.org", ""),
        ("nobody-named", ANNA, ""),
        ("forwarded-postfix", ANNA, CARL),
        ("forwarded-sendmail", ANNA, CARL),
        ("forwarded-exim", ANNA, CARL),
        ("forwarded-qmail", ANNA, CARL),
        ("sendmail-two", "list@example.org", CARL),
        ("postfix-failed", "bert@example.org", ANNA),
    ],
)
def test_reports_as_they_come(name: str, recipient: str, elsewhere: str) -> None:
    report = read_report((REPORTS / f"{name}.eml").read_bytes(), sender="")
    assert report.kind is ReportKind.FAILED
    found = tied(recipient, report.failures, is_partial=report.is_partial)
    assert found is not None
    assert found.elsewhere.lower() == elsewhere


def test_a_report_about_others_some_of_whom_did_not_fail_is_a_lists() -> None:
    report = read_report((REPORTS / "sendmail-two.eml").read_bytes(), sender="")
    assert tied("another@example.org", report.failures, is_partial=True) is None
    assert tied(ANNA, [], is_partial=False) is None


def test_of_several_failures_that_of_our_recipient_counts() -> None:
    full = Reply(552, "5.2.2", "full")
    failures = [Failure((CARL,), GONE), Failure((ANNA, CARL), GONE), Failure(("ANNA@example.org",), full)]
    assert tied(ANNA, failures, is_partial=True) == (failures[2], "")
    assert tied(ANNA, failures[:2], is_partial=True) == (failures[1], CARL)
    assert tied(ANNA, [Failure((CARL,), GONE), Failure((), full)], is_partial=False) == (
        Failure((), full),
        "",
    )


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (ANNA, "ANNA@EXAMPLE.ORG", True),
        (ANNA, "anna+tag@mx1.example.org", True),
        ("anna@b\u00fccher.example", "anna@xn--bcher-kva.example", True),
        ('"anna"@example.org', ANNA, True),
        (ANNA, "anna@notexample.org", False),
        (ANNA, "hanna@example.org", False),
        (ANNA, "anna", False),
        (ANNA, "@example.org", False),
        ("+@example.org", "+x@example.org", False),
    ],
)
def test_the_same_mailbox(one: str, other: str, same: bool) -> None:
    assert is_same_mailbox(one, other) is same
    assert is_same_mailbox(other, one) is same

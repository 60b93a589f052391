"""Reports in the shapes that servers send; the samples in reports/ were written for these tests."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.bounces.classifier import shipped_classifier
from engine.bounces.parts import read_fields
from engine.bounces.report import Report, ReportKind, parse_reply, read_report
from engine.values.outcome import OutcomeKind, Scope
from engine.values.reply import Reply
from tests.support.deadline import deadline

REPORTS = Path(__file__).parent / "reports"
FAILED = ReportKind.FAILED


def read(name: str, sender: str = "") -> Report:
    return read_report((REPORTS / f"{name}.eml").read_bytes(), sender=sender)


@pytest.mark.parametrize(
    ("name", "addresses", "code", "enhanced", "words", "meaning"),
    [
        (
            "postfix-failed",
            ("Anna@example.org", "anna@example.org"),
            550,
            "5.1.1",
            "Recipient address rejected: User unknown",
            ("bad-mailbox", True),
        ),
        (
            "exim-text",
            ("anna@example.org",),
            550,
            "5.2.1",
            "account anna is disabled",
            ("inactive-mailbox", True),
        ),
        ("qmail", ("anna@example.org",), 553, "", "no mailbox here by that name", ("bad-mailbox", True)),
        (
            "exchange",
            ("anna@corp.example.org",),
            550,
            "5.1.10",
            "RESOLVER.ADR.RecipientNotFound",
            ("bad-mailbox", True),
        ),
        (
            "exchange-without-diagnostic",
            ("anna@corp.example.org",),
            550,
            "5.1.1",
            "User unknown",
            ("bad-mailbox", True),
        ),
        ("yahoo-text", ("anna@yahoo.example",), 554, "", "This user doesn't have", ("bad-mailbox", True)),
        (
            "sendmail-two",
            ("list@example.org", "carl@forward.example"),
            552,
            "5.2.2",
            "over quota",
            ("quota-issues", False),
        ),
        ("expired", ("anna@example.org",), 0, "4.4.1", "did not accept our requests", (None, False)),
        (
            "base64-status",
            ("anna@example.org",),
            554,
            "5.7.1",
            "blocked by policy see our pages",
            (None, False),
        ),
    ],
)
def test_a_failure(
    name: str,
    addresses: tuple[str, ...],
    code: int,
    enhanced: str,
    words: str,
    meaning: tuple[str | None, bool],
) -> None:
    report = read(name)
    assert report.kind is FAILED
    (failure,) = report.failures
    assert failure.addresses == addresses
    assert (failure.reply.code, failure.reply.enhanced) == (code, enhanced)
    assert words in failure.reply.text
    assert report.is_partial == (name == "sendmail-two")
    found = shipped_classifier().classify(OutcomeKind.BOUNCED, Scope.RECIPIENT, failure.reply)
    assert found.hard == meaning[1]
    if meaning[0] is not None:
        assert str(found.category) == meaning[0]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("postfix-delayed", ReportKind.DELAYED),
        ("exim-warning", ReportKind.DELAYED),
        ("delivered", ReportKind.DELIVERED),
        ("vacation", ReportKind.AUTO_REPLY),
        ("out-of-office", ReportKind.AUTO_REPLY),
        ("challenge", ReportKind.UNKNOWN),
        ("arf-not-spam", ReportKind.OTHER_FEEDBACK),
    ],
)
def test_what_is_no_failure(name: str, kind: ReportKind) -> None:
    assert read(name) == Report(kind, feedback="not-spam" if name == "arf-not-spam" else "")


def test_a_complaint_names_what_ties_it_to_a_message() -> None:
    report = read("arf-abuse", sender="feedback@provider.example")
    assert report.kind is ReportKind.COMPLAINT
    assert report.feedback == "abuse"
    assert {sender.lower() for sender in report.senders} == {f"b+{'a' * 34}@bounce.example.com"}
    assert report.links == ("https://news.example.com/u/abc.DEF-_1",)


@pytest.mark.parametrize("name", sorted(path.stem for path in REPORTS.glob("*.eml")))
def test_line_ends_do_not_matter(name: str) -> None:
    data = (REPORTS / f"{name}.eml").read_bytes()
    assert b"\r\n" in data
    assert read_report(data.replace(b"\r\n", b"\n"), sender="") == read_report(data, sender="")


def test_of_a_repeated_field_the_first_counts() -> None:
    assert read_fields(b"A: 1\n 2\na : 3\nB:4") == {"a": "1 2", "b": "4"}


def test_a_person_who_quotes_a_bounce_is_no_bounce() -> None:
    data = (
        b"From: Anna <anna@example.org>\r\nSubject: your mail\r\n\r\nI got: 550 5.1.1 User unknown. Why?\r\n"
    )
    assert read_report(data, sender="anna@example.org").kind is ReportKind.UNKNOWN


def test_a_postmaster_who_answers_is_no_bounce_whatever_he_quotes() -> None:
    data = (
        b"From: postmaster@d.example\r\nSubject: Re: Undelivered mail\r\n\r\n"
        b"We have looked into it. You wrote: 550 5.1.1 <anna@d.example>: User unknown\r\n"
    )
    assert read_report(data, sender="").kind is ReportKind.UNKNOWN
    assert read_report(data.replace(b"Re: ", b""), sender="").kind is FAILED, (
        "the answer makes the difference"
    )


GONE = (
    "\r\n\r\nThis is the mailbox of Anna, who has left. User unknown, account disabled: <bob@d.example>.\r\n"
)
AUTOMATIC = "\r\nAuto-Submitted: auto-replied"


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        ("From: Anna <anna@d.example>\r\nSubject: I have left" + AUTOMATIC, ReportKind.AUTO_REPLY),
        (
            "From: Postmaster <postmaster@d.example>\r\nSubject: Out of office" + AUTOMATIC,
            ReportKind.AUTO_REPLY,
        ),
        ("From: postmaster@d.example\r\nSubject: Automatic reply: Rejected", ReportKind.AUTO_REPLY),
        ("From: postmaster@d.example\r\nSubject: Autoreply: bounce", ReportKind.AUTO_REPLY),
        ("From: Anna <anna@d.example>\r\nSubject: Re: Delivery status of your parcel", ReportKind.UNKNOWN),
        ("From: Anna <anna@d.example>\r\nSubject: AW: undeliverable", ReportKind.UNKNOWN),
        (
            "From: Anna <anna@d.example>\r\nSubject: your mail was rejected until you confirm",
            ReportKind.UNKNOWN,
        ),
    ],
)
def test_whoever_answers_by_himself_is_no_bounce(head: str, kind: ReportKind) -> None:
    assert read_report((head + GONE).encode(), sender="").kind is kind


@pytest.mark.parametrize(
    ("action", "status", "kind"),
    [
        ("failure", "5.1.1", FAILED),
        ("bounced", "5.2.2", FAILED),
        ("", "5.1.1", FAILED),
        ("retrying", "4.4.1", ReportKind.DELAYED),
        ("ok", "2.0.0", ReportKind.DELIVERED),
        ("expanded (to 2)", "2.0.0", ReportKind.DELIVERED),
    ],
)
def test_an_action_in_other_words(action: str, status: str, kind: ReportKind) -> None:
    data = (
        "Content-Type: multipart/report; boundary=b\r\n\r\n--b\r\nContent-Type: message/delivery-status\r\n\r\n"
        f"Reporting-MTA: dns; x\r\n\r\nFinal-Recipient: rfc822; a@d.example\r\nAction: {action}\r\n"
        f"Status: {status}\r\n--b--\r\n"
    )
    assert read_report(data.encode(), sender="").kind is kind


def test_an_original_recipient_in_xtext_is_found() -> None:
    data = (
        b"Content-Type: multipart/report; boundary=b\r\n\r\n--b\r\nContent-Type: message/delivery-status\r\n\r\n"
        b"Reporting-MTA: dns; x\r\n\r\nOriginal-Recipient: rfc822;a+2Bnews@d.example\r\n"
        b"Final-Recipient: rfc822; b@d.example\r\nAction: failed\r\nStatus: 5.1.1\r\n--b--\r\n"
    )
    (failure,) = read_report(data, sender="").failures
    assert failure.addresses == ("a+news@d.example", "a+2Bnews@d.example", "b@d.example")


@pytest.mark.parametrize(
    ("value", "addresses"),
    [
        ("rfc822; anna@d.example (Anna Smith)", ("anna@d.example",)),
        ("rfc822; Anna Smith <anna@d.example>", ("anna@d.example",)),
        ("rfc822;<anna@d.example>;", ("anna@d.example",)),
        ("rfc822; anna@d.example ;", ("anna@d.example",)),
        ("anna@d.example", ("anna@d.example",)),
        ("rfc822; @relay.example,@other.example:anna@d.example", ("anna@d.example",)),
        ('rfc822; "anna (x) b"@d.example', ('"anna (x) b"@d.example',)),
        ("utf-8; \\x{7528}\\x{6237}@d.example", ("用户@d.example",)),
        ("utf-8; 用户@d.example", ("用户@d.example",)),
        ("utf-8; \\x{FFFFFF}\\x{0A}@d.example", ("\\x{FFFFFF}\\x{0A}@d.example",)),
        ("LOCAL; \\anna", ()),
        ("x400; /S=anna/OU=d/", ()),
    ],
)
def test_a_recipient_as_it_is_written(value: str, addresses: tuple[str, ...]) -> None:
    data = (
        "Content-Type: multipart/report; boundary=b\r\n\r\n--b\r\nContent-Type: message/delivery-status\r\n\r\n"
        f"Reporting-MTA: dns; x\r\n\r\nFinal-Recipient: {value}\r\nAction: failed\r\nStatus: 5.1.1\r\n--b--\r\n"
    )
    (failure,) = read_report(data.encode(), sender="").failures
    assert failure.addresses == addresses


def test_a_disposition_notification_is_no_bounce() -> None:
    """RFC 8098: whoever sends one has got the message, even one that says `failed`."""
    data = (
        b"From: anna@d.example\r\nSubject: Rejected: hello\r\n"
        b"Content-Type: multipart/report; report-type=disposition-notification; boundary=b\r\n\r\n"
        b"--b\r\n\r\nuser unknown\r\n--b\r\nContent-Type: message/disposition-notification\r\n\r\n"
        b"Final-Recipient: rfc822; anna@d.example\r\nDisposition: automatic-action/MDN-sent-automatically; failed\r\n"
        b"--b--\r\n"
    )
    assert read_report(data, sender="").kind is ReportKind.AUTO_REPLY


def test_what_qmail_adds_is_not_what_the_host_said() -> None:
    data = (
        b"From: MAILER-DAEMON@d.example\r\nSubject: failure notice\r\n\r\nHi. This is the qmail-send program at "
        b"d.example.\r\nI'm afraid I wasn't able to deliver your message to the following addresses.\r\n\r\n"
        b"<anna@d.example>:\r\n192.0.2.1 does not like recipient.\r\n"
        b"Remote host said: 550 5.1.1 <anna@d.example>... User unknown\r\nGiving up on 192.0.2.1.\r\n"
    )
    (failure,) = read_report(data, sender="").failures
    assert failure.reply == Reply(550, "5.1.1", "<anna@d.example>... User unknown")
    assert shipped_classifier().classify(OutcomeKind.BOUNCED, Scope.RECIPIENT, failure.reply).hard


def test_a_message_enclosed_without_a_report() -> None:
    """As Microsoft's complaint programme sends it."""
    path = f"b+{'a' * 34}@bounce.example.com"
    data = (
        "From: staff@hotmail.com\r\nSubject: complaint about message from 192.0.2.1\r\n"
        "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: message/rfc822\r\n\r\n"
        f"Return-Path: {path}\r\nList-Unsubscribe: <https://news.example.com/u/T>\r\n\r\n<b+{'c' * 34}@x.example>\r\n"
        "--b--\r\n"
    )
    report = read_report(data.encode(), sender="staff@hotmail.com")
    assert report.kind is ReportKind.UNKNOWN
    assert (report.senders, report.links) == ((path,), ("https://news.example.com/u/T",))


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("550 5.1.1 no such user", Reply(550, "5.1.1", "no such user")),
        ("550-5.1.1 no such 550 5.1.1 user here", Reply(550, "5.1.1", "no such user here")),
        ("550 #5.1.0 Address rejected.", Reply(550, "5.1.0", "Address rejected.")),
        ("host 192.0.2.7 said: 554 rejected", Reply(554, "", "rejected")),
        ("5.4.4 unrouteable", Reply(0, "5.4.4", "5.4.4 unrouteable")),
        ("nothing known", Reply(0, "", "nothing known")),
        ("", Reply(0, "", "")),
        ("550 5.1.1 a\x00b\x1b[31m", Reply(550, "5.1.1", "a b [31m")),
    ],
)
def test_a_diagnostic_as_a_reply(text: str, reply: Reply) -> None:
    assert parse_reply(text) == reply


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=2000))
def test_any_bytes_are_read(data: bytes) -> None:
    read_report(data, sender="")


def test_damaged_reports_are_read() -> None:
    """Pieces of real reports cut, doubled and shuffled: never an exception."""
    rng = random.Random(3)
    pieces = [line for path in REPORTS.glob("*.eml") for line in path.read_bytes().splitlines(keepends=True)]
    for _ in range(300):
        size = rng.randrange(1, 60)
        read_report(b"".join(rng.choices(pieces, k=size)), sender=rng.choice(["", "a@example.org"]))


def test_hostile_sizes_are_bounded() -> None:
    """Many parts, deep nesting, huge headers, one endless line, all codes: work stays linear, results bounded."""
    head = b"From: mailer-daemon@x.example\r\nSubject: failure notice\r\n"
    many = head + b"Content-Type: multipart/report; boundary=b\r\n\r\n" + b"--b\r\n\r\n" * 100_000
    deep = head
    for level in range(2000):
        deep += b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (level, level)
    fields = head + b"X-A: b\r\n" * 50_000 + b"\r\n"
    codes = head + b"\r\n" + b"450 4.1.1 x\r\n\r\n" * 50_000
    groups = (
        head
        + b"Content-Type: multipart/report; boundary=b\r\n\r\n--b\r\nContent-Type: message/delivery-status\r\n\r\n"
        + b"Final-Recipient: rfc822; a@b.example\r\nAction: failed\r\nStatus: 5.1.1\r\n\r\n" * 10_000
    )
    dashes = head + b"\r\n" + b"-" * 64_000
    with deadline():
        for data in (many, deep, fields, codes, groups, dashes, dashes.replace(b"-", b"450 ")):
            report = read_report(data, sender="")
            assert len(report.failures) <= 50

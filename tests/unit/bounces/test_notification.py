"""Notifications as a mail program and our own reader of reports see them."""

from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

import pytest

from engine.bounces.notification import MAX_RETURNED, compose
from engine.bounces.report import ReportKind, read_report
from engine.spool.notices import Action, Notice
from engine.values.options import Flag, Options
from engine.values.reply import Reply

BODY = b"From: a@example.com\r\nSubject: gr\xc3\xbc\xc3\x9fe\r\n\r\nhello\nthere\r\n.\r\n"
NOW_MS = 1_800_000_000_000


def notice(**fields: Any) -> Notice:
    values: dict[str, Any] = {
        "key": (77).to_bytes(8, "big") + b"\1",
        "action": Action.FAILED,
        "sender": "a@example.com",
        "recipient": "b@example.org",
        "content": [1, 0, 1, 0],
        "accepted_ms": NOW_MS - 1000,
        "expires_ms": NOW_MS + 86_400_000,
        "options": Options(ret="FULL", envid="order 17", orcpt="rfc822;B@example.org"),
        "reply": Reply(550, "5.1.1", "no such user"),
        "host": "mx.example.org",
        "at_ms": NOW_MS,
        "stream": 0,
        "tenant": "default",
    }
    return Notice(**{**values, **fields})


def parsed(
    of: Notice, body: bytes | None = BODY
) -> tuple[EmailMessage, list[EmailMessage], list[EmailMessage]]:
    """The message, its parts, and the groups of the delivery status."""
    data = compose(of, body, reporter="mta.example.com", now_ms=NOW_MS)
    assert b"\n" not in data.replace(b"\r\n", b"")
    assert max(map(len, data.split(b"\r\n"))) <= 998
    message = message_from_bytes(data, policy=policy.default)
    assert isinstance(message, EmailMessage)
    parts: Any = list(message.iter_parts())
    groups: Any = parts[1].get_payload()
    return message, parts, groups


def test_a_failure_in_full() -> None:
    message, parts, groups = parsed(notice())
    assert message.get_content_type() == "multipart/report"
    assert message.get_param("report-type") == "delivery-status"
    assert (message["To"], message["Auto-Submitted"]) == ("a@example.com", "auto-replied")
    assert [part.get_content_type() for part in parts] == [
        "text/plain",
        "message/delivery-status",
        "message/rfc822",
    ]
    assert groups[0]["Original-Envelope-Id"] == "order 17"
    assert groups[0]["Reporting-MTA"] == "dns; mta.example.com"
    assert dict(groups[1].items()) == {
        "Original-Recipient": "rfc822; B@example.org",
        "Final-Recipient": "rfc822; b@example.org",
        "Action": "failed",
        "Status": "5.1.1",
        "Remote-MTA": "dns; mx.example.org",
        "Diagnostic-Code": "smtp; 550 5.1.1 no such user",
        "Last-Attempt-Date": groups[1]["Last-Attempt-Date"],
    }
    assert "hello" in parts[2].get_payload()[0].get_content()  # type: ignore[union-attr, index]


@pytest.mark.parametrize(
    ("options", "body", "kind"),
    [
        (Options(ret="HDRS"), BODY, "text/rfc822-headers"),
        (Options(), BODY, "text/rfc822-headers"),
        (Options(ret="FULL"), BODY + b"x" * MAX_RETURNED, "text/rfc822-headers"),
        (Options(ret="FULL", flags=Flag.REQUIRE_TLS), BODY, "text/rfc822-headers"),
        (Options(ret="FULL"), None, None),
    ],
)
def test_what_is_returned(options: Options, body: bytes | None, kind: str | None) -> None:
    _, parts, _ = parsed(notice(options=options), body)
    assert [part.get_content_type() for part in parts[2:]] == ([] if kind is None else [kind])
    if kind is not None:
        text = parts[2].get_payload(decode=True)
        assert isinstance(text, bytes)
        assert "Subject: grüße" in text.decode()
        assert b"hello" not in text


def test_a_delay() -> None:
    _, parts, groups = parsed(notice(action=Action.DELAYED, reply=Reply(451, "4.7.1", "greylisted")))
    assert (groups[1]["Action"], groups[1]["Status"]) == ("delayed", "4.7.1")
    assert groups[1]["Will-Retry-Until"]
    assert parts[2].get_content_type() == "text/rfc822-headers"


@pytest.mark.parametrize(
    ("reply", "action", "status"),
    [
        (Reply(550, "", "no"), Action.FAILED, "5.0.0"),
        (Reply(451, "", "later"), Action.FAILED, "4.4.7"),
        (Reply(0, "4.4.1", "no connection"), Action.FAILED, "4.4.1"),
        (Reply(550, "5.1.1", "no"), Action.DELAYED, "4.0.0"),
    ],
)
def test_the_status(reply: Reply, action: Action, status: str) -> None:
    _, _, groups = parsed(notice(reply=reply, action=action))
    assert groups[1]["Status"] == status


def test_nobody_can_add_a_field() -> None:
    evil = "x\r\nAction: delivered\r\n\r\n--b\x00\x1b[31m é"
    _, _, groups = parsed(
        notice(reply=Reply(550, "5.1.1", evil * 50), host=evil, recipient='"\\x"@example.org')
    )
    assert len(groups) == 2
    assert groups[1].get_all("Action") == ["failed"]


def test_an_address_that_is_not_ascii() -> None:
    _, _, groups = parsed(notice(recipient="用@example.org"))
    assert groups[1]["Final-Recipient"] == "utf-8; \\x{7528}@example.org"


def test_we_read_what_we_write() -> None:
    data = compose(notice(), BODY, reporter="mta.example.com", now_ms=NOW_MS)
    report = read_report(data, sender="")
    assert report.kind is ReportKind.FAILED
    assert report.failures[0].addresses == ("B@example.org", "b@example.org")
    assert report.failures[0].reply == Reply(550, "5.1.1", "no such user")


def test_what_was_passed_on() -> None:
    reply = Reply(250, "2.1.5", "ok")
    message, parts, groups = parsed(notice(action=Action.RELAYED, reply=reply))
    assert message["Subject"] == "Mail was passed on"
    assert "was passed on" in parts[0].get_content()
    fields = dict(groups[1].items())
    assert (fields["Action"], fields["Status"], fields["Remote-MTA"]) == (
        "relayed",
        "2.1.5",
        "dns; mx.example.org",
    )
    assert fields.keys().isdisjoint({"Diagnostic-Code", "Will-Retry-Until"})
    assert parts[2].get_content_type() == "text/rfc822-headers", (
        "RET is about failures (RFC 3461 section 4.3)"
    )
    data = compose(notice(action=Action.RELAYED, reply=reply), BODY, reporter="m.example.com", now_ms=NOW_MS)
    assert read_report(data, sender="").kind is ReportKind.DELIVERED
    _, _, groups = parsed(notice(action=Action.RELAYED, reply=Reply(250, "", "ok")))
    assert groups[1]["Status"] == "2.0.0"

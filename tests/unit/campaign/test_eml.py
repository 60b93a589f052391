"""Messages that exist already: envelope, Bcc, line ends, and a key that makes sending them idempotent."""

import os
from pathlib import Path

import pytest

from engine.campaign.eml import EmlError, EmlOptions, find_eml, read_eml
from engine.values.stream import Stream

OPTIONS = EmlOptions()
MAIL = (
    b"From: Ann <ann@example.com>\n"
    b"To: Bob <bob@example.org>,\n  carl@example.org\n"
    b"Cc: Bob@example.org\n"
    b"Bcc: hidden@example.org,\n\tsecret@example.org\n"
    b"Date: Tue, 14 Nov 2023 22:13:20 +0000\n"
    b"Message-ID: <1@example.com>\n"
    b"Subject: x\n"
    b"\n"
    b"Bcc: in the body\n.\n"
)


def write(tmp_path: Path, data: bytes = MAIL, name: str = "m.eml") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    os.utime(path, (1_700_000_000, 1_700_000_000))
    return path


def test_envelope_from_the_fields_and_bcc_taken_out(tmp_path: Path) -> None:
    message = read_eml(write(tmp_path), OPTIONS)
    assert message.sender == "ann@example.com"
    assert message.recipients == (
        "bob@example.org",
        "carl@example.org",
        "Bob@example.org",
        "hidden@example.org",
        "secret@example.org",
    )
    head, _, body = message.body.partition(b"\r\n\r\n")
    assert b"hidden" not in message.body
    assert b"secret" not in message.body
    assert head.startswith(
        b"From: Ann <ann@example.com>\r\nTo: Bob <bob@example.org>,\r\n  carl@example.org\r\nCc:"
    )
    assert body == b"Bcc: in the body\r\n.\r\n"
    assert b"\n" not in message.body.replace(b"\r\n", b"")


def test_what_is_given_replaces_the_envelope_and_not_the_fields(tmp_path: Path) -> None:
    options = EmlOptions(sender="", recipients=("x@example.net",), stream=Stream.NOTIFICATION, tenant="t")
    message = read_eml(write(tmp_path), options)
    assert (message.sender, message.recipients) == ("", ("x@example.net",))
    assert (message.stream, message.tenant) == (Stream.NOTIFICATION, "t")
    assert b"To: Bob" in message.body
    assert b"hidden" not in message.body


def test_return_path_and_sender_come_before_from(tmp_path: Path) -> None:
    assert read_eml(write(tmp_path, b"Sender: s@example.com\n" + MAIL), OPTIONS).sender == "s@example.com"
    assert (
        read_eml(write(tmp_path, b"Return-Path: <r@example.com>\n" + MAIL), OPTIONS).sender == "r@example.com"
    )
    assert read_eml(write(tmp_path, b"Return-Path: <>\n" + MAIL), OPTIONS).sender == ""


def test_missing_date_and_message_id_are_added_the_same_each_time(tmp_path: Path) -> None:
    data = b"From: a@example.com\nTo: b@example.org\n\nx\n"
    first = read_eml(write(tmp_path, data), OPTIONS)
    assert b"Date: Tue, 14 Nov 2023 22:13:20 -0000\r\n" in first.body
    assert b"Message-ID: <" in first.body
    assert read_eml(write(tmp_path, data), OPTIONS) == first
    assert read_eml(write(tmp_path), OPTIONS).body.count(b"Message-ID") == 1


def test_the_key_is_that_of_campaign_envelope_and_content(tmp_path: Path) -> None:
    path = write(tmp_path)
    keys = {
        read_eml(path, OPTIONS).key,
        read_eml(path, EmlOptions(campaign="again")).key,
        read_eml(path, EmlOptions(recipients=("x@example.net",))).key,
        read_eml(write(tmp_path, MAIL + b"more\n", "n.eml"), OPTIONS).key,
    }
    assert len(keys) == 4
    assert read_eml(write(tmp_path, MAIL, "copy.eml"), OPTIONS).key in keys


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a message"),
        (b"hello world\n\nx\n", "'hello world' is no header field"),
        (b"From: a@example.com\nSubject: x\n\nx\n", "no recipient"),
        (b"To: a@example.com\n\nx\n", "no sender"),
        (b"From: a@example.com\nTo: nobody\n\nx\n", "no @"),
        (b"From: a@example.com\nTo: b@example.org <c@example.org\n\nx\n", "envelope"),
    ],
)
def test_files_that_cannot_be_sent(tmp_path: Path, data: bytes, reason: str) -> None:
    path = write(tmp_path, data)
    with pytest.raises(EmlError) as caught:
        read_eml(path, OPTIONS)
    assert reason in caught.value.message
    assert str(path) in str(caught.value)


def test_a_message_without_body(tmp_path: Path) -> None:
    message = read_eml(write(tmp_path, b"From: a@example.com\nTo: b@example.org"), OPTIONS)
    assert message.body.startswith(b"From: a@example.com\r\nTo: b@example.org\r\nDate: ")
    assert message.body.endswith(b"\r\n\r\n")


def test_finding_files(tmp_path: Path) -> None:
    (tmp_path / "d" / "e").mkdir(parents=True)
    for name in ("d/b.eml", "d/a.eml", "d/e/c.eml", "d/readme.txt", "single"):
        (tmp_path / name).write_bytes(MAIL)
    found = [str(path.relative_to(tmp_path)) for path in find_eml([tmp_path / "single", tmp_path / "d"])]
    assert found == ["single", "d/a.eml", "d/b.eml", "d/e/c.eml"]

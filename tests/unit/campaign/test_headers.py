"""Header fields: 7-bit, folded, and no value can add a line."""

from email import message_from_bytes
from email.header import decode_header, make_header
from email.policy import default

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.campaign.headers import decoded as without_encoded_words
from engine.campaign.headers import mailbox, mailbox_field, unstructured
from engine.values.address import AddressError
from tests.support.deadline import deadline


def decoded(field: bytes) -> str:
    name, value = field.split(b": ", 1)
    assert name == b"Subject"
    unfolded = value.decode("ascii").replace("\r\n", "")
    return str(make_header(decode_header(unfolded)))


@given(st.text(max_size=200) | st.text("aä€😀 =?_\r\n", max_size=300))
def test_any_subject_survives_in_one_field(text: str) -> None:
    field = unstructured("Subject", text)
    assert field.endswith(b"\r\n")
    lines = field[:-2].split(b"\r\n")
    assert all(len(line) <= 76 or b" " not in line[1:].strip() for line in lines)
    assert all(line.startswith(b" ") and line.strip() for line in lines[1:])
    assert field.isascii()
    message = message_from_bytes(field + b"X: y\r\n\r\n", policy=default)
    assert message.keys() == ["Subject", "X"]


@pytest.mark.parametrize(
    "text",
    ["plain", "Grüße aus Köln", "спецпредложение " * 20, "a=?utf-8?q?b?=", "😀" * 60, "word " * 60 + "end"],
)
def test_subject_is_read_as_it_was_written(text: str) -> None:
    assert decoded(unstructured("Subject", text)) == text.strip()


def test_an_injected_line_becomes_a_space() -> None:
    field = unstructured("Subject", "Hello\r\nBcc: victim@example.com\r\n\r\nbody\x00\u2028x")
    assert field == b"Subject: Hello Bcc: victim@example.com body x\r\n"


def test_a_word_that_no_line_can_hold_is_encoded() -> None:
    field = unstructured("Subject", "x" * 2000)
    assert max(map(len, field.split(b"\r\n"))) <= 76
    assert decoded(field) == "x" * 2000


def test_a_run_of_spaces_that_no_line_can_hold_is_encoded() -> None:
    field = unstructured("Subject", "a" + " " * 2000 + "b")
    assert max(map(len, field.split(b"\r\n"))) <= 76
    assert decoded(field) == "a" + " " * 2000 + "b"


@pytest.mark.parametrize("text", [" " * 2_000_000, "=?utf-8?q?a?= " * 500_000, "ab " * 500_000])
def test_a_huge_field_takes_no_longer_than_it_must(text: str) -> None:
    with deadline():
        unstructured("Subject", without_encoded_words(f"x{text}x"))


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ("news@example.com", b"From: news@example.com\r\n"),
        ("Shop <news@Example.com>", b"From: Shop <news@example.com>\r\n"),
        ('"Shop, Inc." <news@example.com>', b'From: "Shop, Inc." <news@example.com>\r\n'),
        ("Müller <m@example.com>", b"From: =?utf-8?b?TcO8bGxlcg==?= <m@example.com>\r\n"),
        ("S <a@b.example>\r\nBcc: x@y.example", None),
        ("a@b.example, c@d.example", None),
        ("nobody", None),
        ("", None),
    ],
)
def test_mailbox(value: str, field: bytes | None) -> None:
    if field is None:
        with pytest.raises(AddressError):
            mailbox_field("From", value)
    else:
        assert mailbox_field("From", value) == field


def test_mailbox_parts() -> None:
    name, address = mailbox('"Zoë \\"Z\\" Ö" <zoe@bücher.example>')
    assert name == 'Zoë "Z" Ö'
    assert address.text == "zoe@xn--bcher-kva.example"

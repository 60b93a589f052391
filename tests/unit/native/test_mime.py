"""The canonical form, and the smuggling sequences it must not let through."""

import re

import pytest

from native.mime import canonicalise

# Outbound sequences of the SMTP-Smuggling-Tools list: what some server takes for the end of data.
SMUGGLING = [
    b"\n.\n",
    b"\n.\r",
    b"\r.\n",
    b"\r.\r",
    b"\n.\r\n",
    b"\r.\r\n",
    b"\r\n.\r\n",
    b"\r\n.\r\r\n",
    b"\r\r\n.\r\r\n",
    b"\r\n\0.\r\n",
    b"\r\n.\0\r\n",
    b"\r\0\n.\r\0\n",
]


@pytest.mark.parametrize("sequence", SMUGGLING)
def test_no_smuggling_sequence_survives(sequence: bytes) -> None:
    wire = canonicalise(b"Subject: x\r\n\r\nbody" + sequence + b"MAIL FROM:<evil@example.com>\r\n", True)
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n", wire), "a bare CR or LF"
    assert b"\0" not in wire
    assert not re.search(rb"(^|\n)\.(?!\.)", wire), "an unstuffed dot at a line start"
    assert wire.endswith(b"\r\n")


@pytest.mark.parametrize("sequence", SMUGGLING)
def test_normalising_is_idempotent(sequence: bytes) -> None:
    once = canonicalise(b"a" + sequence + b"b", False)
    assert canonicalise(once, False) is once


def test_a_canonical_message_is_returned_as_it_is() -> None:
    message = b"Subject: x\r\n\r\nhello\r\n"
    assert canonicalise(message, True) is message
    assert canonicalise(message, False) is message


@pytest.mark.parametrize(
    ("message", "stuffed", "plain"),
    [
        (b"", b"\r\n", b"\r\n"),
        (b".", b"..\r\n", b".\r\n"),
        (b"..\r\n", b"...\r\n", b"..\r\n"),
        (b"a\r\n.b\r\n", b"a\r\n..b\r\n", b"a\r\n.b\r\n"),
        (b"a.b\r\n", b"a.b\r\n", b"a.b\r\n"),
        (b"a\nb\rc", b"a\r\nb\r\nc\r\n", b"a\r\nb\r\nc\r\n"),
        (b"a\n\r\nb", b"a\r\n\r\nb\r\n", b"a\r\n\r\nb\r\n"),
        (b"a\r\r\n", b"a\r\n\r\n", b"a\r\n\r\n"),
        (b"\r\n", b"\r\n", b"\r\n"),
        (b"\0", b"\r\n", b"\r\n"),
    ],
)
def test_forms(message: bytes, stuffed: bytes, plain: bytes) -> None:
    assert canonicalise(message, True) == stuffed
    assert canonicalise(message, False) == plain


def test_unstuffing_gives_the_plain_form() -> None:
    message = b"a\n..\n.\r\r.\nb"
    stuffed = canonicalise(message, True)
    lines = stuffed.split(b"\r\n")
    assert b"\r\n".join(line.removeprefix(b".") for line in lines) == canonicalise(message, False)

"""The canonical form, and the smuggling sequences it must not let through."""

import re

import pytest

from native import mime
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
        (b"a\r\0\0\nb", b"a\r\nb\r\n", b"a\r\nb\r\n"),
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


@pytest.mark.parametrize(
    ("message", "head_size", "body_start", "flags"),
    [
        (b"\r\n", 0, 2, 0),
        (b"A: b\r\n\r\n", 6, 8, 0),
        (b"A: b\r\n", 6, 6, 0),
        (
            b"dATE : b\r\n\tc\r\nmessage-ID:\r\n\r\nDate: x\r\n",
            27,
            29,
            mime.HAS_DATE | mime.HAS_MESSAGE_ID | mime.NAME_SPACE,
        ),
        (b"A\t: b\r\n\r\nB : c\r\n", 7, 9, mime.NAME_SPACE),
        (b"A: b\r\n c : d\r\n\r\nB : c\r\n", 14, 16, 0),
        (b"X-Date: b\r\nDates: c\r\n\r\n", 21, 23, 0),
        (b"A: b\r\nno field\r\n\r\nx\r\n", 6, 6, 0),
        (b" A: b\r\n", 0, 0, 0),
        (b"A b: c\r\n\r\n", 0, 0, 0),
        (b"A: b\r\nB\xc3\xa9: c\r\n\r\n", 6, 6, mime.BODY_8BIT),
        (b"A: \xff\r\n\r\nb\r\n", 6, 8, mime.HEAD_8BIT),
        (b"A: b\r\n\r\n1234567\xff12345678\r\n", 6, 8, mime.BODY_8BIT),
        (b"A: b\r\n\r\n12345678123\xff\r\n", 6, 8, mime.BODY_8BIT),
        (b"A: b\r\n\r\n" + b"x" * 998 + b"\r\n", 6, 8, 0),
        (b"A: b\r\n\r\n" + b"x" * 999 + b"\r\n", 6, 8, mime.LONG_LINE),
        (b"A: " + b"x" * 996 + b"\r\n\r\n", 1001, 1003, mime.LONG_LINE),
    ],
)
def test_survey(message: bytes, head_size: int, body_start: int, flags: int) -> None:
    assert mime.survey(message) == (head_size, body_start, flags)


def test_survey_wants_a_canonical_message() -> None:
    assert mime.survey(b"") == (0, 0, 0)
    with pytest.raises(ValueError, match="not canonical"):
        mime.survey(b"A: b\r\n\r\nno end")

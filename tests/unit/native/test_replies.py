"""Replies as servers send them, and those nobody should believe."""

import pytest

from native.replies import MAX_LINE, MAX_REPLY, MAX_TEXT, MalformedReply, ReplyParser


def test_multi_line_reply_is_joined_without_repeated_status() -> None:
    wire = b"421-4.7.28 Gmail has detected\r\n421-4.7.28 an unusual rate\r\n421 4.7.28 of mail - gsmtp\r\n"
    assert ReplyParser().feed(wire) == [(421, "4.7.28", "Gmail has detected an unusual rate of mail - gsmtp")]


def test_control_characters_and_bad_utf8_do_not_reach_the_text() -> None:
    ((code, enhanced, text),) = ReplyParser().feed(b"550 5.1.1 a\x00b\x1b[31m\x7f\xff\r\n")
    assert (code, enhanced) == (550, "5.1.1")
    assert text == "a b [31m �"


def test_a_reply_without_text() -> None:
    assert ReplyParser().feed(b"250\r\n354 \r\n") == [(250, "", ""), (354, "", "")]


@pytest.mark.parametrize(
    "wire",
    [
        b"hello\r\n",
        b"25\r\n",
        b"150 x\r\n",
        b"650 x\r\n",
        b"250;x\r\n",
        b"\r\n",
        b"250-a\r\n550 b\r\n",
        b"\0250 x\r\n",
    ],
)
def test_malformed(wire: bytes) -> None:
    parser = ReplyParser()
    with pytest.raises(MalformedReply):
        parser.feed(wire)
    with pytest.raises(MalformedReply):
        parser.feed(b"250 fine again\r\n")


def test_an_endless_line_ends() -> None:
    parser = ReplyParser()
    for _ in range(MAX_LINE // 1024):
        assert parser.feed(b"2" * 1024) == []
    with pytest.raises(MalformedReply):
        parser.feed(b"2")


def test_an_endless_reply_ends() -> None:
    parser = ReplyParser()
    for _ in range(MAX_REPLY // 100):
        assert parser.feed(b"250-" + b"x" * 94 + b"\r\n") == []
    with pytest.raises(MalformedReply):
        parser.feed(b"250-" + b"x" * 94 + b"\r\n")
    with pytest.raises(MalformedReply):  # also one that comes all at once
        ReplyParser().feed(
            (b"250-" + b"x" * 94 + b"\r\n") * (MAX_REPLY // 100) + b"250 " + b"x" * 94 + b"\r\n"
        )


def test_texts_are_cut() -> None:
    ((_, _, text),) = ReplyParser().feed(b"250 " + b"y" * 5000 + b"\r\n")
    assert text == "y" * MAX_TEXT

"""Any stream, cut anywhere, reads as the slow reference reads it whole."""

from hypothesis import given, settings
from hypothesis import strategies as st

from native.replies import MalformedReply, ReplyParser
from tests.reference.replies import read_replies

texts = st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"")) | st.sampled_from(
    [
        b"2.1.0 Ok",
        b"5.7.1 no",
        b"4.7.28 a",
        b"4.7.28",
        b"5.7",
        b"  spaces  ",
        b"\xc3\xa9\xc3",
        b"",
        b"\t x \t",
    ]
)
codes = st.sampled_from([b"220", b"250", b"354", b"421", b"550", b"599"])
ends = st.sampled_from([b"\r\n", b"\r\n", b"\n"])


@st.composite
def reply(draw: st.DrawFn) -> bytes:
    code = draw(codes)
    wire = b"".join(code + b"-" + draw(texts) + draw(ends) for _ in range(draw(st.integers(0, 3))))
    if draw(st.integers(0, 19)) == 0:
        code = draw(codes)
    return wire + code + draw(st.sampled_from([b" " + draw(texts), b"", b"x" + draw(texts)])) + draw(ends)


streams = st.lists(reply() | st.binary(max_size=12), max_size=6).map(b"".join)


@settings(max_examples=400, deadline=None)
@given(streams, st.lists(st.integers(1, 7), min_size=1, max_size=8))
def test_any_chunking_reads_the_same(stream: bytes, sizes: list[int]) -> None:
    expected, malformed = read_replies(stream)
    parser = ReplyParser()
    found = []
    failed = False
    position = 0
    turn = 0
    while position < len(stream):
        size = sizes[turn % len(sizes)]
        turn += 1
        try:
            found += parser.feed(stream[position : position + size])
        except MalformedReply:
            failed = True
            break
        position += size
    assert failed == malformed
    # replies completed in the very chunk that broke the stream are not handed out
    assert found == expected if not failed else expected[: len(found)] == found


@settings(max_examples=30, deadline=None)
@given(st.integers(8 * 1024 - 12, 8 * 1024 + 4), st.integers(1, 4096))
def test_the_line_limit_is_exact(length: int, size: int) -> None:
    stream = b"250 " + b"x" * (length - 6) + b"\r\n"
    expected, malformed = read_replies(stream)
    assert malformed == (length > 8 * 1024)
    parser = ReplyParser()
    found = []
    failed = False
    for position in range(0, len(stream), size):
        try:
            found += parser.feed(stream[position : position + size])
        except MalformedReply:
            failed = True
            break
    assert (found, failed) == (expected, malformed)

"""Canonical forms: the RFC's own example, the edges, and agreement with the slow reference."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from native.dkim import relaxed_body, relaxed_headers
from native.mime import canonicalise
from tests.reference import dkim as reference

# RFC 6376 section 3.4.5
HEAD = b"A: X\r\nB : Y\t\r\n\tZ  \r\n"
BODY = b" C \r\nD \t E\r\n\r\n\r\n"

octets = st.binary(max_size=400)
lines = st.lists(
    st.sampled_from([b"", b" ", b"\t ", b"a", b" a  b\t", b"\xe9", b".", b"a\rb", b"a\nb", b"\0", b"x" * 50])
).map(b"\r\n".join)


def test_the_example_of_the_rfc() -> None:
    assert relaxed_body(BODY) == b" C\r\nD E\r\n"
    names = ((b"a", False), (b"b", False))
    assert relaxed_headers([HEAD], names) == [([b"a", b"b"], b"a:X\r\nb:Y Z\r\n")]


@pytest.mark.parametrize(
    ("body", "canonical"),
    [
        (b"", b""),
        (b"\r\n", b""),
        (b" \t\r\n\r\n", b""),
        (b"a", b"a\r\n"),
        (b"a \r\n \r\n", b"a\r\n"),
        (b"\r\n\r\na\r\n", b"\r\n\r\na\r\n"),
        (b"\n\n\n", b"\n\n\n\r\n"),
        (b"a\r \r\n", b"a\r\r\n"),
    ],
)
def test_body_edges(body: bytes, canonical: bytes) -> None:
    assert relaxed_body(body) == canonical


@pytest.mark.parametrize("odd", [b"  ", b" \r\n", b"\t", b" \t", b"\t\t \r\n\r\n", b" \rx", b"\r\n", b" "])
def test_whatever_stands_across_the_octets_that_are_looked_at_together(odd: bytes) -> None:
    for place in range(140):
        body = b"x" * place + odd + b"y" * (200 - place) + b"\r\n"
        assert relaxed_body(body) == reference.relaxed_body(body)
        assert relaxed_body(body[: place + len(odd)]) == reference.relaxed_body(body[: place + len(odd)])


def test_a_long_body_and_one_that_is_canonical() -> None:
    line = b"some text, a few words, and so on\r\n"
    assert relaxed_body(b" \t" + line * 3000 + b" \r\n") == b" " + line * 3000
    plain = line * 30
    assert relaxed_body(plain) is plain


def test_fields_are_taken_from_the_bottom_and_oversigned_names_once_more() -> None:
    head = b"Received: 1\r\nTo: a\r\nreceived: 2\r\nFROM: x\r\nnot a field\r\n"
    names = ((b"received", False), (b"from", True), (b"cc", True), (b"bcc", False))
    listed, canonical = relaxed_headers([head], names)[0]
    assert listed == [b"received", b"received", b"from", b"from", b"cc"]
    assert canonical == b"received:2\r\nreceived:1\r\nfrom:x\r\n"


def test_bounds() -> None:
    with pytest.raises(ValueError, match="more than 1000 header fields"):
        relaxed_headers([b"A: 1\r\n" * 1001], ((b"a", False),))
    with pytest.raises(ValueError, match="at most 1024"):
        relaxed_headers([b""] * 1025, ((b"a", False),))
    with pytest.raises(ValueError, match="each one once"):
        relaxed_headers([b""], ((b"a", False), (b"a", True)))
    with pytest.raises(ValueError, match="lower case"):
        relaxed_headers([b""], ((b"A", False),))
    with pytest.raises(TypeError):
        relaxed_body(None)  # type: ignore[arg-type]


@given(st.lists(st.one_of(octets, lines), max_size=5))
def test_bodies_agree_with_the_reference(bodies: list[bytes]) -> None:
    wire = [canonicalise(body, False) for body in bodies]
    assert [relaxed_body(body) for body in wire] == [reference.relaxed_body(body) for body in wire]


@given(st.one_of(octets, lines))
def test_any_octets_are_safe(body: bytes) -> None:
    assert len(relaxed_body(body)) <= len(body) + 2
    relaxed_headers([body], ((b"a", True),))
    assert relaxed_headers([b"a:\n" * 900], ((b"a", False),))[0][1] == b"a:\r\n" * 900


field = st.builds(
    lambda name, value: name + b":" + value,
    st.sampled_from([b"From", b"to", b"Subject ", b"X-Odd\t", b"subject", b"Received"]),
    st.lists(
        st.sampled_from([b" ", b"\t", b"\r\n ", b"\r\n\t", b"word", b"a:b", b"\xc3\xa9", b"=?x?="]),
        max_size=8,
    ).map(b"".join),
)


@given(st.lists(st.lists(field, max_size=8).map(lambda fields: b"".join(f + b"\r\n" for f in fields))))
def test_headers_agree_with_the_reference(heads: list[bytes]) -> None:
    names = ((b"from", True), (b"subject", True), (b"x-odd", False), (b"received", False))
    assert relaxed_headers(heads, names) == [reference.relaxed_headers(head, names) for head in heads]

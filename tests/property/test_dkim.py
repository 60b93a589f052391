"""A thousand random messages, signed with RSA and Ed25519: dkimpy and Debian's opendkim find every signature good."""

import time
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.dkim.signer import Signer, SigningError, Unsigned
from native.mime import canonicalise
from tests.support.dkim import opendkim_results, records_of, ring_of, verified

spaces = st.sampled_from([" ", "  ", "\t", " \t ", "\r\n ", "\r\n\t", "\r\n  "])
words = st.one_of(
    st.sampled_from(
        ["", "word", "a:b", "=?utf-8?q?=C3=A4?=", "<x@example.org>", ";", "=", "\u00e4\u00df", "h=b="]
    ),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30),
    st.integers(1, 900).map(lambda count: "x" * count),
)
values = st.lists(st.tuples(spaces, words), min_size=1, max_size=8).map(
    lambda pairs: "".join(space + word for space, word in pairs)
)
names = st.sampled_from(
    [
        "To",
        "Cc",
        "Subject",
        "subject",
        "DATE",
        "Message-ID",
        "Reply-To",
        "List-Unsubscribe",
        "X-Odd",
        "Received",
    ]
)
lines = st.one_of(
    st.sampled_from(
        [b"", b" ", b"\t", b".", b"..", b"a  b \t", b"\x00", b"bare\rcr", b"bare\nlf", b"From x"]
    ),
    st.binary(max_size=60),
    st.integers(900, 998).map(lambda count: b"y" * count),
)
bodies = st.one_of(
    st.just(b""),
    st.lists(st.just(b""), min_size=1, max_size=4).map(b"\r\n".join),
    st.lists(lines, max_size=12).map(b"\r\n".join),
)


def _head(fields: list[tuple[str, str]], place: int) -> bytes:
    """Fields with a From among them; a fold must not leave a line of spaces alone (RFC 5322 section 2.2.3)."""
    written = [f"{name}:{value} end\r\n" for name, value in fields]
    written.insert(min(place, len(written)), "From: Ann <ann@news.example.com>\r\n")
    kept = []
    for field in written:
        parts = field.split("\r\n")
        kept.append("\r\n".join(part for part in parts[:-1] if part.strip()) + "\r\n")
    return "".join(kept).encode()


def test_random_messages_verify(tmp_path: Path) -> None:
    ring = ring_of(tmp_path / "keys", "example.com")
    records = records_of(ring, "example.com")
    signer = Signer(ring)
    now_s = int(time.time())
    signed: list[bytes] = []

    @settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.lists(st.tuples(names, values), max_size=8), st.integers(0, 8), bodies)
    def examine(fields: list[tuple[str, str]], place: int, body: bytes) -> None:
        head = canonicalise(_head(fields, place), False)
        body = canonicalise(body, False) if body else b""
        [added] = signer.sign([Unsigned(head, body, now_s, now_s + 86400)])
        assert not isinstance(added, SigningError)
        message = added + head + b"\r\n" + body
        assert max(map(len, added.split(b"\r\n"))) <= 80
        assert verified(message, records, 2)
        signed.append(message)

    examine()
    assert len(signed) >= 1000
    results = opendkim_results(tmp_path, signed, records)
    assert results == ["pass"] * 2 * len(signed)

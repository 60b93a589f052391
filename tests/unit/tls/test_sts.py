"""MTA-STS records and policies: what is understood, what is refused, which hosts match (RFC 8461)."""

import pytest

from engine.tls.sts import MAX_AGE_S, MAX_POLICY, StsInvalid, StsPolicy, parse_policy, record_id

GOOD = b"version: STSv1\r\nmode: enforce\r\nmx: mx1.example.org\r\nmx: *.Example.NET.\r\nmax_age: 86400\r\n"


def test_a_policy_as_it_is_published() -> None:
    for text in (GOOD, GOOD.replace(b"\r\n", b"\n"), GOOD.rstrip(), GOOD + b"\r\nfuture: thing\r\n"):
        policy = parse_policy("example.org", text)
        assert policy == StsPolicy("example.org", "enforce", ("mx1.example.org", "*.example.net"), 86400)
    assert policy.lines()[:3] == ("version: STSv1", "mode: enforce", "mx: mx1.example.org")


def test_the_first_of_a_repeated_key_counts_and_max_age_has_a_limit() -> None:
    policy = parse_policy("d.test", GOOD + b"mode: none\r\nmax_age: 1\r\n")
    assert (policy.mode, policy.max_age_s) == ("enforce", 86400)
    assert parse_policy("d.test", GOOD.replace(b"86400", b"9999999999")).max_age_s == MAX_AGE_S


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"<html>no such page</html>",
        GOOD.replace(b"STSv1", b"STSv2"),
        GOOD.replace(b"version: STSv1\r\n", b""),
        GOOD.replace(b"enforce", b"Enforce"),
        GOOD.replace(b"mode: enforce\r\n", b""),
        GOOD.replace(b"86400", b"-1"),
        GOOD.replace(b"86400", b"1e9"),
        GOOD.replace(b"max_age: 86400\r\n", b""),
        b"version: STSv1\nmode: testing\nmax_age: 86400\n",
        GOOD.replace(b"mx1.example.org", b"*.*.example.org"),
        GOOD.replace(b"mx1.example.org", b"mx*.example.org"),
        GOOD.replace(b"mx1.example.org", b"*"),
        GOOD.replace(b"mx1.example.org", b"mx1 example.org"),
        GOOD.replace(b"mx1.example.org", b""),
        GOOD + b"\xff\xfe: x\r\n",
        GOOD + b"mx: a.test\r\n" * 300,
        GOOD + b"x: " + b"y" * MAX_POLICY,
    ],
)
def test_what_is_no_policy(text: bytes) -> None:
    with pytest.raises(StsInvalid):
        parse_policy("d.test", text)


def test_mode_none_needs_no_hosts() -> None:
    assert parse_policy("d.test", b"version: STSv1\nmode: none\nmax_age: 0\n").mx == ()


@pytest.mark.parametrize(
    ("pattern", "host", "expected"),
    [
        ("mx.example.org", "mx.example.org", True),
        ("mx.example.org", "amx.example.org", False),
        ("*.example.org", "mx.example.org", True),
        ("*.example.org", "a.mx.example.org", False),
        ("*.example.org", "example.org", False),
        ("*.example.org", "mxexample.org", False),
        ("example.org", "mx.example.org", False),
    ],
)
def test_a_wildcard_stands_for_one_label(pattern: str, host: str, expected: bool) -> None:
    assert StsPolicy("d.test", "enforce", (pattern,), 1).matches(host) is expected


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["v=STSv1; id=20260101T000000;"], "20260101T000000"),
        (["v=STSv1;id=1"], "1"),
        (["v=STSv1; id=1; id=2"], "1"),
        (["v=STSv1 ; id = a1 ; ext=2"], "a1"),
        (["v=spf1 -all", "v=STSv1; id=9;"], "9"),
        (["v=STSv1; id=1;", "v=STSv1; id=2;"], None),
        (["v=STSv10; id=1;"], None),
        (["V=STSv1; id=1;"], None),
        ([" v=STSv1; id=1;"], None),
        (["v=STSv1"], None),
        ([], None),
    ],
)
def test_the_record(texts: list[str], expected: str | None) -> None:
    assert record_id(texts) == expected


@pytest.mark.parametrize("text", ["v=STSv1;", "v=STSv1; id=;", "v=STSv1; id=a b;", "v=STSv1; id=" + "1" * 33])
def test_a_record_without_a_good_id(text: str) -> None:
    with pytest.raises(StsInvalid, match="letters and digits"):
        record_id([text])

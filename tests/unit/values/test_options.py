"""Per-message options: what is refused, xtext, and one value per recipient."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.values.options import (
    Flag,
    Notify,
    OptionError,
    Options,
    format_notify,
    parse_notify,
    parse_xtext,
    spread,
    unpack_options,
    xtext,
)

ALL = Options(
    flags=Flag.REQUIRE_TLS | Flag.VERP,
    ret="HDRS",
    envid="QQ314159",
    notify=Notify.SUCCESS | Notify.DELAY,
    orcpt="rfc822;ann@example.com",
)


def test_round_trip() -> None:
    ALL.check()
    assert unpack_options(list(ALL.pack())) == ALL
    assert unpack_options(None) is None
    assert ALL.requires_tls
    assert ALL.wants_verp
    assert not Options().requires_tls
    assert Options(flags=Flag.ANY_TLS | Flag.VERP).tls_wish == Flag.ANY_TLS


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (Options(flags=32), "flags"),
        (Options(flags=Flag.REQUIRE_TLS | Flag.ANY_TLS), "flags"),
        (Options(flags=-1), "flags"),
        (Options(flags=True), "flags"),
        (Options(ret="ALL"), "ret"),
        (Options(envid="a\r\nRCPT TO:<x>"), "envid"),
        (Options(envid="x" * 101), "envid"),
        (Options(envid="é"), "envid"),
        (Options(notify=16), "notify"),
        (Options(notify=Notify.NEVER | Notify.FAILURE), "notify"),
        (Options(orcpt="ann@example.com"), "orcpt"),
        (Options(orcpt="rfc822;"), "orcpt"),
        (Options(orcpt="rfc 822;a@b"), "orcpt"),
        (Options(orcpt="rfc822;a\x7f@b"), "orcpt"),
        (Options(orcpt="rfc822;" + "a" * 500), "orcpt"),
        (Options(orcpt=b"rfc822;a@b"), "orcpt"),  # type: ignore[arg-type]
    ],
)
def test_refused(options: Options, field: str) -> None:
    with pytest.raises(OptionError) as refused:
        options.check()
    assert refused.value.field == f"options.{field}"


def test_notify() -> None:
    assert parse_notify("success,Failure") == Notify.SUCCESS | Notify.FAILURE
    assert parse_notify("NEVER") == Notify.NEVER
    assert format_notify(Notify.SUCCESS | Notify.DELAY) == "SUCCESS,DELAY"
    for bad in ("", "NEVER,DELAY", "SOON", "SUCCESS,"):
        with pytest.raises(OptionError):
            parse_notify(bad)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)))
def test_xtext_round_trip(text: str) -> None:
    encoded = xtext(text)
    assert parse_xtext("ENVID", encoded) == text
    assert " " not in encoded
    assert "=" not in encoded


@pytest.mark.parametrize("bad", ["a b", "a=b", "+4", "+4g", "a+0D+0A", "+7F", "é"])
def test_xtext_refused(bad: str) -> None:
    with pytest.raises(OptionError):
        parse_xtext("ENVID", bad)


def test_spread() -> None:
    assert spread((), 2) == (None, None)
    assert spread((ALL,), 2) == (ALL, ALL)
    assert spread((ALL, Options()), 2) == (ALL, Options())
    with pytest.raises(OptionError, match="one per recipient"):
        spread((ALL, ALL), 3)
    with pytest.raises(OptionError, match="ret"):
        spread((Options(ret="x"),), 1)

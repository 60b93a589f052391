"""check_host() of RFC 7208: every mechanism, the macros of section 7.4, and the limits of section 4.6.4."""

import asyncio

import pytest

from engine.doctor.check_spf import merged
from engine.doctor.spf import SpfVerdict, check_host
from engine.doctor.spf_record import SpfSyntaxError, expand, is_spf, parse_record
from tests.support.zones import ZoneResolver

IP = "203.0.113.7"
CHAIN = "\n".join(f"c{n}.test TXT v=spf1 include:c{n + 1}.test ?all" for n in range(12))
ZONE = f"""
{CHAIN}
c12.test          TXT v=spf1 -all
a.test            A 203.0.113.7
six.test          AAAA 2001:db8::7
mx.test           MX 10 a.test
mx.test           MX 5 nowhere.test
hollow.test       MX 9 a.test
many.test         A 192.0.2.1
7.113.0.203.in-addr.arpa PTR host.ptr.test
7.113.0.203.in-addr.arpa PTR liar.test
host.ptr.test     A 203.0.113.7
liar.test         A 192.0.2.1
good.test         TXT v=spf1 ip4:203.0.113.0/24 -all
soft.test         TXT v=spf1 ~all
none.test         TXT something else
twice.test        TXT v=spf1 -all
twice.test        TXT v=spf1 +all
broken.test       TXT v=spf1 ipv4:1.2.3.4 -all
down.test         FAIL -
7.113.0.203.seen.test A 127.0.0.2
""" + "\n".join(f"many.test MX {n} many.test" for n in range(11))
ZONE += "".join(f"\nhollow.test MX {n} x{n}.test" for n in range(4))


def check(record: str, ip: str = IP, zone: str = ZONE) -> SpfVerdict:
    resolver = ZoneResolver(f"{zone}\nexample.test TXT {record}")
    return asyncio.run(
        check_host(resolver, ip, "example.test", sender="user+tag@example.test", helo="mta.example.test")
    )


@pytest.mark.parametrize(
    ("record", "result"),
    [
        ("v=spf1", "neutral"),
        ("v=spf1 -all", "fail"),
        ("V=SPF1 ~ALL", "softfail"),
        ("v=spf1 ?all ip4:203.0.113.7", "neutral"),
        ("v=spf1 ip4:203.0.113.7 -all", "pass"),
        ("v=spf1 -ip4:203.0.113.0/29 +all", "fail"),
        ("v=spf1 ip4:203.0.113.8/32 -all", "fail"),
        ("v=spf1 ip6:2001:db8::/32 -all", "fail"),
        ("v=spf1 a:a.test -all", "pass"),
        ("v=spf1 a:six.test -all", "fail"),
        ("v=spf1 a:many.test/8 -all", "fail"),
        ("v=spf1 a:a.test/8 -all", "pass"),
        ("v=spf1 mx:mx.test -all", "pass"),
        ("v=spf1 mx:mx.test//64 -all", "pass"),
        ("v=spf1 mx:many.test -all", "permerror"),
        ("v=spf1 mx:hollow.test -all", "pass"),  # hosts without an address are no terms
        ("v=spf1 ptr:ptr.test -all", "pass"),
        ("v=spf1 ptr:liar.test -all", "fail"),
        ("v=spf1 exists:%{ir}.seen.test -all", "pass"),
        ("v=spf1 exists:%{p}.none.test -all", "fail"),
        ("v=spf1 include:good.test -all", "pass"),
        ("v=spf1 include:soft.test -all", "fail"),
        ("v=spf1 include:none.test -all", "permerror"),
        ("v=spf1 include:twice.test -all", "permerror"),
        ("v=spf1 include:broken.test -all", "permerror"),
        ("v=spf1 include:down.test -all", "temperror"),
        ("v=spf1 a:down.test -all", "temperror"),
        ("v=spf1 ptr:down.test redirect=good.test", "pass"),
        ("v=spf1 redirect=soft.test", "softfail"),
        ("v=spf1 redirect=none.test", "permerror"),
        ("v=spf1 redirect=good.test -all", "fail"),
        ("v=spf1 unknown=%{s} -all", "fail"),
        ("v=spf1 a:x.test a:y.test -all", "fail"),
        ("v=spf1 a:x.test a:y.test a:z.test -all", "permerror"),
        ("v=spf1 include:c2.test -all", "permerror"),
        ("v=spf1 include:c4.test -all", "fail"),
    ],
)
def test_result(record: str, result: str) -> None:
    assert check(record).result.value == result


def test_ipv6_and_mapped_addresses() -> None:
    assert check("v=spf1 a:six.test -all", "2001:db8::7").result.value == "pass"
    assert check("v=spf1 ip6:2001:db8::/32 -all", "2001:db8::7").result.value == "pass"
    assert check("v=spf1 ip4:203.0.113.7 -all", "::ffff:203.0.113.7").result.value == "pass"


def test_the_verdict_says_what_it_cost_and_why() -> None:
    verdict = check("v=spf1 include:good.test -all")
    assert (verdict.lookups, verdict.voids) == (1, 0)
    assert verdict.reason == "include:good.test of example.test"
    verdict = check("v=spf1 include:c2.test -all")
    assert verdict.lookups == 11
    assert "more than 10 terms" in verdict.reason
    assert "3 SPF records" not in check("v=spf1 include:twice.test").reason


def test_no_record_and_no_domain() -> None:
    resolver = ZoneResolver("x.test TXT v=spf10 -all\n")
    for domain, result in (
        ("x.test", "none"),
        ("missing.test", "none"),
        ("test", "none"),
        ("a..test", "none"),
    ):
        verdict = asyncio.run(check_host(resolver, IP, domain, sender=f"u@{domain}", helo="h.test"))
        assert verdict.result.value == result
    assert not is_spf("v=spf1-all")


@pytest.mark.parametrize(
    "term",
    [
        "ipv4:1.2.3.4", "ip4:1.2.3", "ip4:1.2.3.4/33", "ip4:1.2.3.4/08", "ip4:1.2.3.4/", "ip4", "ip6:1.2.3.4",
        "all:x.test", "include", "include:", "include:x", "exists:", "a:x.test/33", "a:x.test//129", "a/024",
        "mxx", "a:%x.test", "a:%{x}.test", "a:%{s0}.test", "a:%{c}.test", "redirect=",
        "redirect=x.test redirect=x.test",
        "a:caf\N{LATIN SMALL LETTER E WITH ACUTE}.test", "a:1.2.3.4", "-", "a b=%{q}",
    ],
)  # fmt: skip
def test_a_syntax_error_anywhere_is_one_of_the_record(term: str) -> None:
    with pytest.raises(SpfSyntaxError):
        parse_record(f"v=spf1 +all {term}")


@pytest.mark.parametrize(
    ("text", "expanded"),
    [  # RFC 7208 section 7.4
        ("%{s}", "strong-bad@email.example.com"),
        ("%{o}", "email.example.com"),
        ("%{d4}", "email.example.com"),
        ("%{d2}", "example.com"),
        ("%{d1}", "com"),
        ("%{dr}", "com.example.email"),
        ("%{d2r}", "example.email"),
        ("%{l-}", "strong.bad"),
        ("%{lr-}", "bad.strong"),
        ("%{l1r-}", "strong"),
        ("%{ir}.%{v}._spf.%{d2}", "3.2.0.192.in-addr._spf.example.com"),
        ("%%%_%-", "% %20"),
        ("%{S}", "strong-bad%40email.example.com"),
    ],
)
def test_macros(text: str, expanded: str) -> None:
    values = {
        "s": "strong-bad@email.example.com",
        "l": "strong-bad",
        "o": "email.example.com",
        "d": "email.example.com",
        "i": "192.0.2.3",
        "v": "in-addr",
        "h": "x",
    }
    assert expand(text, values) == expanded


def test_a_proposed_record_permits_what_the_old_one_did_not() -> None:
    record = merged("v=spf1 include:soft.test -all", [IP, "2001:db8::9", IP])
    assert record == f"v=spf1 ip4:{IP} ip6:2001:db8::9 include:soft.test -all"
    assert check(record).result.value == "pass"

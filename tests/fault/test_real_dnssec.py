"""The DNS edge against an authoritative server (knot) and a validating resolver (unbound), signed zones and not."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from engine.providers.profiles import load_profiles
from engine.routing.answers import NameAnswer, Status, Tlsa
from engine.routing.resolver import DnsResolver, build_resolver
from engine.routing.route import Failure
from engine.routing.router import Router
from engine.values.clock import SystemClock
from tests.support.fleets import fleet
from tests.support.nameservers import knot, needs_unbound, unbound

HEAD = "$TTL 600\n@ SOA ns admin 1 3600 600 86400 120\n@ NS ns\nns A 127.0.0.1\n"
SIGNED = (
    HEAD
    + """\
@            MX   10 mx
mx           A    203.0.113.1
mx           AAAA 2001:db8::1
alias        CNAME mx
strange      CNAME mx.plain.test.
_25._tcp.mx  TLSA 3 1 1 00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff
_25._tcp.mx  TLSA 2 0 0 abcd
_25._tcp.odd TLSA 3 1 1 ab
text         TXT  "v=spf1 " "-all"
text         TXT  "caf\\195\\169 \\255"
nomail       MX   0 .
child        NS   ns.child
ns.child     A    127.0.0.1
"""
)
PLAIN = HEAD + "@ MX 10 mx\nmx A 203.0.113.2\n_25._tcp.mx TLSA 3 1 0 aa\ntext TXT hello\n"
REVERSE = HEAD + "1 PTR mx.signed.test.\n1 PTR Other.Test.\n"
ZONES = {
    "signed.test": SIGNED,
    "child.signed.test": PLAIN,
    "plain.test": PLAIN,
    "bogus.test": PLAIN,
    "113.0.203.in-addr.arpa": REVERSE,
}
KINDS = {
    "signed.test": "signed",
    "child.signed.test": "insecure",
    "plain.test": "insecure",
    "bogus.test": "bogus",
    "113.0.203.in-addr.arpa": "insecure",
}

pytestmark = needs_unbound


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """Ports of knot and unbound."""
    with (
        knot(tmp_path_factory.mktemp("knot"), ZONES, signed=("signed.test", "bogus.test")) as authority,
        unbound(tmp_path_factory.mktemp("unbound"), authority, KINDS) as validator,
    ):
        yield authority, validator


def resolver(port: int, dnssec: str = "trust", timeout: str = "3s") -> DnsResolver:
    settings = {"nameservers": ["127.0.0.1"], "port": port, "timeout": timeout, "dnssec": dnssec}
    return build_resolver(fleet(resolver=settings).resolver)


@pytest.fixture
def secure(ports: tuple[int, int]) -> DnsResolver:
    return resolver(ports[1])


def test_signed_answers_are_authenticated(secure: DnsResolver) -> None:
    mx = asyncio.run(secure.mx("signed.test"))
    assert (mx.status, mx.hosts, mx.authenticated) == (Status.FOUND, ((10, "mx.signed.test"),), True)
    v4 = asyncio.run(secure.addresses("mx.signed.test", ipv6=False))
    assert (v4.addresses, v4.authenticated, v4.canonical) == (("203.0.113.1",), True, "mx.signed.test")
    text = asyncio.run(secure.text("text.signed.test"))
    assert text.authenticated
    assert set(text.texts) == {"v=spf1 -all", "café \ufffd"}


def test_tlsa_records_as_published(secure: DnsResolver) -> None:
    found = asyncio.run(secure.tlsa("mx.signed.test", port=25))
    assert found.status is Status.FOUND, found
    digest = bytes.fromhex("00112233445566778899aabbccddeeff" * 2)
    assert set(found.records) == {Tlsa(3, 1, 1, digest), Tlsa(2, 0, 0, b"\xab\xcd")}
    assert (found.status, found.authenticated) == (Status.FOUND, True)


def test_a_record_of_a_wrong_length_does_not_spoil_the_answer(ports: tuple[int, int]) -> None:
    """What it is good for is for the policy to say (tests/fault/test_real_dane.py): no name can be proved by it."""
    found = asyncio.run(resolver(ports[1]).tlsa("odd.signed.test", port=25))
    assert (found.status, found.authenticated) == (Status.FOUND, True)
    assert found.records == (Tlsa(3, 1, 1, b"\xab"),)


def test_no_answer_and_no_name_are_authenticated_too(secure: DnsResolver) -> None:
    empty = asyncio.run(secure.tlsa("text.signed.test", port=25))
    assert (empty.status, empty.authenticated) == (Status.MISSING, True)
    none = asyncio.run(secure.text("mx.signed.test"))
    assert (none.status, none.authenticated, none.ttl_s) == (Status.EMPTY, True, 120)


@pytest.mark.parametrize("name", ["plain.test", "child.signed.test"])
def test_unsigned_answers_are_not(secure: DnsResolver, name: str) -> None:
    mx = asyncio.run(secure.mx(name))
    assert (mx.status, mx.authenticated) == (Status.FOUND, False)
    tlsa = asyncio.run(secure.tlsa(f"mx.{name}", port=25))
    assert (tlsa.status, tlsa.authenticated) == (Status.FOUND, False)


def test_what_does_not_validate_has_failed(secure: DnsResolver) -> None:
    questions: list[Any] = [
        secure.mx("bogus.test"),
        secure.addresses("mx.bogus.test", ipv6=False),
        secure.text("text.bogus.test"),
        secure.tlsa("mx.bogus.test", port=25),
        secure.alias("mx.bogus.test"),
    ]
    for question in questions:
        answer = asyncio.run(question)
        assert (answer.status, answer.authenticated) == (Status.FAILED, False)


def test_aliases(secure: DnsResolver) -> None:
    inside = asyncio.run(secure.addresses("alias.signed.test", ipv6=False))
    assert (inside.canonical, inside.authenticated) == ("mx.signed.test", True)
    outside = asyncio.run(secure.addresses("strange.signed.test", ipv6=False))
    assert (outside.canonical, outside.addresses) == ("mx.plain.test", ("203.0.113.2",))
    assert not outside.authenticated, "one link of the chain is not signed"
    first = asyncio.run(secure.alias("strange.signed.test"))
    assert first == NameAnswer(Status.FOUND, ("mx.plain.test",), first.ttl_s, "", True)


def test_reverse(secure: DnsResolver) -> None:
    found = asyncio.run(secure.reverse("203.0.113.1"))
    assert set(found.names) == {"mx.signed.test", "other.test"}
    assert asyncio.run(secure.reverse("203.0.113.77")).status is Status.MISSING


def test_the_bit_counts_only_if_the_configuration_says_so(ports: tuple[int, int]) -> None:
    assert not asyncio.run(resolver(ports[1], "ignore").mx("signed.test")).authenticated
    assert not asyncio.run(resolver(ports[0]).mx("signed.test")).authenticated, "knot does not validate"


def test_names_that_are_none(secure: DnsResolver) -> None:
    assert asyncio.run(secure.tlsa("a" * 64 + ".test", port=25)).status is Status.MISSING
    assert asyncio.run(secure.text("a..test")).status is Status.MISSING


@pytest.mark.parametrize(
    ("domain", "kind", "enhanced"),
    [
        ("bogus.test", "deferred", "4.4.3"),
        ("missing.signed.test", "bounced", "5.1.2"),
        ("missing.plain.test", "bounced", "5.1.2"),
        ("nomail.signed.test", "bounced", "5.1.10"),
        ("text.signed.test", "bounced", "5.1.2"),
    ],
)
def test_no_route_behind_a_validating_resolver(
    ports: tuple[int, int], domain: str, kind: str, enhanced: str
) -> None:
    settings = {"nameservers": ["127.0.0.1"], "port": ports[1], "timeout": "3s", "dnssec": "trust"}
    config = fleet(resolver=settings)
    router = Router(config, load_profiles({}), build_resolver(config.resolver), SystemClock())
    answer = asyncio.run(router.route(domain))
    assert isinstance(answer, Failure)
    assert (answer.kind, answer.reply.enhanced) == (kind, enhanced)

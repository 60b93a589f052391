import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from engine.providers.profiles import load_profiles
from engine.routing.answers import AddressAnswer, MxAnswer, Status
from engine.routing.hosts import is_public
from engine.routing.route import Credentials, Failure, HostAnswer, HostStatus, HostTarget, Route
from engine.routing.router import TURN_S, Router
from tests.support.clock import ManualClock
from tests.support.dns_answers import FakeResolver
from tests.support.fleets import fleet


class Bed:
    def __init__(self, **sections: Any) -> None:
        config = fleet(**sections)
        self.dns = FakeResolver()
        self.clock = ManualClock()
        self.router = Router(config, load_profiles(config.providers), self.dns, self.clock)

    def route(self, domain: str) -> Route | Failure:
        return asyncio.run(self.router.route(domain))

    def run(self, body: Callable[[], Awaitable[None]]) -> None:
        asyncio.run(body())  # type: ignore[arg-type]


def answer_of(bed: Bed, host: str) -> HostAnswer:
    return asyncio.run(bed.router.addresses(host))


def found(answer: Route | Failure) -> Route:
    assert isinstance(answer, Route), answer
    return answer


def failed(answer: Route | Failure) -> tuple[str, str]:
    assert isinstance(answer, Failure), answer
    assert answer.reply.code == 0
    return answer.kind, answer.reply.enhanced


def test_mx_in_order_of_preference_always_port_25() -> None:
    bed = Bed()
    bed.dns.set_mx("example.org", (20, "b.example.net"), (10, "a.example.net"), (20, "aa.example.net"))
    route = found(bed.route("Example.ORG."))
    assert route.hosts == (
        HostTarget("a.example.net", 25, 10),
        HostTarget("aa.example.net", 25, 20),
        HostTarget("b.example.net", 25, 20),
    )
    assert (route.site, route.provider, route.tls, route.auth) == (
        "mx:example.net",
        "default",
        "required",
        None,
    )


def test_the_provider_is_that_of_the_best_mx() -> None:
    bed = Bed()
    bed.dns.set_mx("customer.example", (5, "backup.example.net"), (1, "aspmx.l.google.com"))
    route = found(bed.route("customer.example"))
    assert (route.site, route.provider) == ("google", "google")


def test_two_domains_of_one_operator_share_a_site() -> None:
    bed = Bed()
    bed.dns.set_mx("one.example", (1, "mx1.hoster.co.uk"))
    bed.dns.set_mx("two.example", (1, "mx2.hoster.co.uk"))
    assert found(bed.route("one.example")).site == found(bed.route("two.example")).site == "mx:hoster.co.uk"


def test_null_mx_is_final() -> None:
    bed = Bed()
    bed.dns.set_mx("example.org", (0, ""))
    assert failed(bed.route("example.org")) == ("bounced", "5.1.10")


def test_a_null_mx_beside_others_is_passed_over() -> None:
    bed = Bed()
    bed.dns.set_mx("example.org", (0, ""), (10, "mx.example.net"))
    assert [host.name for host in found(bed.route("example.org")).hosts] == ["mx.example.net"]


def test_no_such_domain_is_final() -> None:
    assert failed(Bed().route("nowhere.example")) == ("bounced", "5.1.2")


def test_a_dns_failure_is_temporary() -> None:
    bed = Bed()
    bed.dns.mx_of["example.org"] = MxAnswer(Status.FAILED, reason="SERVFAIL")
    assert failed(bed.route("example.org")) == ("deferred", "4.4.3")


@pytest.mark.parametrize("ipv6", [False, True])
def test_the_domain_is_its_own_host_only_without_mx(ipv6: bool) -> None:
    bed = Bed()
    bed.dns.mx_of["example.org"] = MxAnswer(Status.EMPTY, ttl_s=60)
    if ipv6:
        bed.dns.set_aaaa("example.org", "2606:4700::1111")
    else:
        bed.dns.set_a("example.org", "8.8.8.8")
    route = found(bed.route("example.org"))
    assert route.hosts == (HostTarget("example.org", 25, 0),)
    assert route.site == "mx:example.org"


def test_with_mx_records_the_own_address_is_never_used() -> None:
    bed = Bed()
    bed.dns.set_mx("example.org", (10, "gone.example.net"))
    bed.dns.set_a("example.org", "8.8.8.8")
    assert [host.name for host in found(bed.route("example.org")).hosts] == ["gone.example.net"]
    assert ("A", "example.org") not in bed.dns.asked


def test_neither_mx_nor_address_is_final_but_a_failed_address_question_is_not() -> None:
    bed = Bed()
    bed.dns.mx_of["example.org"] = MxAnswer(Status.EMPTY, ttl_s=60)
    assert failed(bed.route("example.org")) == ("bounced", "5.1.2")
    bed.clock.advance(3600)
    bed.dns.v6_of["example.org"] = AddressAnswer(Status.FAILED, reason="timeout")
    assert failed(bed.route("example.org")) == ("deferred", "4.4.3")


def test_static_routes_come_first_the_most_specific_one() -> None:
    bed = Bed(
        routes=[
            {"domains": ["*"], "hosts": ["127.0.0.1:12529"]},
            {"domains": ["*.test"], "provider": "yahoo", "hosts": ["127.0.0.1:12527"]},
            {
                "domains": ["gmail.test"],
                "provider": "google",
                "hosts": ["smart.example.com:587", "127.0.0.1:12525"],
                "auth": {"username": "u", "password_file": "/etc/p"},
            },
        ]
    )
    google = found(bed.route("gmail.test"))
    assert google.hosts == (HostTarget("smart.example.com", 587, 0), HostTarget("127.0.0.1", 12525, 1))
    assert google.site == "google"
    assert isinstance(google.auth, Credentials)
    assert found(bed.route("x.test")).provider == "yahoo"
    assert found(bed.route("elsewhere.example")).site == "mx:127.0.0.1:12529"
    assert bed.dns.asked == []


def test_a_route_without_hosts_sets_the_provider_and_goes_by_mx() -> None:
    bed = Bed(routes=[{"domains": ["example.org"], "provider": "qq"}])
    bed.dns.set_mx("example.org", (1, "mx.example.net"))
    route = found(bed.route("example.org"))
    assert (route.provider, route.site, route.hosts[0].port) == ("qq", "qq", 25)


def test_tls_is_required_except_where_written() -> None:
    reason = {"mode": "disabled", "reason": "test"}
    bed = Bed(
        routes=[{"domains": ["strict.test"], "provider": "qq", "hosts": ["h"], "tls": "required"}],
        tls={"exceptions": [{"domain": "*.plain.test", **reason}, {"provider": "qq", **reason}]},
    )
    for domain in ("a.plain.test", "plain.test"):
        bed.dns.set_mx(domain, (1, "mx.example.net"))
    bed.dns.set_mx("china.test", (1, "mx3.qq.com"))
    assert found(bed.route("a.plain.test")).tls == "disabled"
    assert not found(bed.route("a.plain.test")).is_by_provider
    assert found(bed.route("plain.test")).tls == "required"
    assert found(bed.route("china.test")).tls == "disabled"
    assert found(bed.route("china.test")).is_by_provider
    assert found(bed.route("strict.test")).tls == "required"


def test_answers_are_kept_by_ttl_within_the_clamps() -> None:
    bed = Bed(resolver={"min_ttl": "30s", "max_ttl": "1h", "negative_ttl": "5m", "failure_ttl": "20s"})

    async def kept(domain: str, seconds: float) -> bool:
        bed.clock.advance(seconds)
        return bed.router.cached(domain) is not None

    async def body() -> None:
        bed.dns.set_mx("short.test", (1, "m.example.net"), ttl_s=0)
        bed.dns.set_mx("long.test", (1, "m.example.net"), ttl_s=1e6)
        bed.dns.mx_of["fail.test"] = MxAnswer(Status.FAILED)
        bed.dns.mx_of["no.test"] = MxAnswer(Status.MISSING, ttl_s=1e6)
        for domain, lives in (("short.test", 30), ("long.test", 3600), ("fail.test", 20), ("no.test", 300)):
            assert bed.router.cached(domain) is None
            answer = await bed.router.route(domain)
            assert bed.router.cached(domain) == answer
            assert await kept(domain, lives - 1), domain
            assert not await kept(domain, 2), domain

    bed.run(body)


def test_concurrent_questions_are_one() -> None:
    bed = Bed()
    bed.dns.set_mx("example.org", (1, "mx.example.net"))

    async def body() -> None:
        answers = await asyncio.gather(*[bed.router.route("example.org") for _ in range(50)])
        assert len(set(answers)) == 1

    bed.run(body)
    assert bed.dns.asked == [("MX", "example.org")]


def test_the_cache_is_bounded() -> None:
    bed = Bed(resolver={"cache_entries": 5})

    async def body() -> None:
        for number in range(20):
            await bed.router.route(f"d{number}.test")

    bed.run(body)
    assert bed.router.stats()["routes"] == 5


def test_a_resolver_that_never_answers_is_a_deferral() -> None:
    bed = Bed(resolver={"timeout": "10ms"})

    async def body() -> None:
        bed.dns.gate = asyncio.Event()
        assert failed(await bed.router.route("example.org")) == ("deferred", "4.4.3")
        assert (await bed.router.addresses("mx.example.net")).status is HostStatus.FAILED

    bed.run(body)


def test_addresses_of_both_families_by_turns() -> None:
    bed = Bed()
    bed.dns.set_a("mx.example.net", "8.8.8.8", "8.8.4.4")
    bed.dns.set_aaaa("mx.example.net", "2606:4700::1")
    assert answer_of(bed, "mx.example.net").addresses == (
        (socket.AF_INET6, "2606:4700::1"),
        (socket.AF_INET, "8.8.8.8"),
        (socket.AF_INET, "8.8.4.4"),
    )


def test_addresses_are_bounded_and_one_family_may_fail() -> None:
    bed = Bed(resolver={"max_hosts": 3})
    bed.dns.set_a("mx.example.net", *[f"8.8.8.{n}" for n in range(9)])
    bed.dns.v6_of["mx.example.net"] = AddressAnswer(Status.FAILED)
    used: set[str] = set()
    for _ in range(60):
        answer = answer_of(bed, "mx.example.net").addresses
        assert len(answer) == 3
        used |= {address for _, address in answer}
        bed.clock.advance(301)
    assert len(used) == 9, "not always the same ones"


def test_of_too_many_equal_hosts_each_has_its_turn() -> None:
    bed = Bed(resolver={"max_hosts": 4})
    many = [(10, f"mx{n}.example.net") for n in range(12)]
    hosts = [(5, "best.example.net"), (5, "best2.example.net"), *many, (90, "last.example.net")]
    for domain in ("one.example", "two.example"):
        bed.dns.set_mx(domain, *hosts, ttl_s=86400.0)
    used: set[str] = set()
    for _ in range(6):
        one, two = found(bed.route("one.example")), found(bed.route("two.example"))
        assert one == two  # they go on sharing sessions
        assert one.hosts == tuple(sorted(one.hosts, key=lambda host: (host.preference, host.name)))
        assert [host.name for host in one.hosts[:2]] == ["best.example.net", "best2.example.net"]
        assert [host.preference for host in one.hosts] == [5, 5, 10, 10]
        used |= {host.name for host in one.hosts[2:]}
        bed.clock.advance(TURN_S)  # whatever the TTL says
    assert used == {name for _, name in many}


INSIDE = ["127.0.0.1", "10.1.2.3", "169.254.169.254", "192.168.0.1", "0.0.0.0", "224.0.0.1", "100.64.0.1"]
INSIDE_6 = [
    "::1",
    "::ffff:127.0.0.1",
    "fd00::1",
    "fe80::1",
    "64:ff9b::a00:1",
    "2002:7f00:1::",
    "::127.0.0.1",
    "::ffff:0:10.0.0.1",
    "64:ff9b:1::10.0.0.1",
    "fec0::1",
    "3fff::1",
    "5f00::1",
    "ff02::1",
    "::",
]


@pytest.mark.parametrize("address", INSIDE + INSIDE_6)
def test_the_dns_of_a_stranger_cannot_direct_us_inside(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    bed = Bed()
    bed.dns.set_mx("literal.test", (1, address))
    assert failed(bed.route("literal.test")) == ("bounced", "5.4.4")
    if ":" in address:
        bed.dns.set_aaaa("mx.evil.test", address)
        bed.dns.set_aaaa("own.test", address)
    else:
        bed.dns.set_a("mx.evil.test", address)
        bed.dns.set_a("own.test", address)
    bed.dns.mx_of["own.test"] = MxAnswer(Status.EMPTY)
    assert failed(bed.route("own.test")) == ("bounced", "5.4.4")
    assert answer_of(bed, "mx.evil.test").status is HostStatus.REFUSED
    assert answer_of(bed, "mx.evil.test").addresses == ()


@pytest.mark.parametrize(
    "address", ["64:ff9b::808:808", "::ffff:8.8.8.8", "2002:808:808::", "2a00::1", "8.8.8.8"]
)
def test_a_translated_address_is_judged_as_what_it_is(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def test_addresses_of_a_host_are_kept_as_long_as_those_that_live_shorter() -> None:
    bed = Bed()
    bed.dns.set_a("mx.example.net", "192.0.2.1", ttl_s=600.0)
    bed.dns.set_aaaa("mx.example.net", "2a00::1", ttl_s=120.0)

    async def body() -> None:
        for seconds, questions in ((0, 2), (119, 2), (2, 4)):
            bed.clock.advance(seconds)
            await bed.router.addresses("mx.example.net")
            assert len(bed.dns.asked) == questions

    bed.run(body)


def test_inside_is_allowed_for_tests_and_for_static_hosts() -> None:
    open_bed = Bed(resolver={"private_addresses": "allow"})
    open_bed.dns.set_a("mx.example.net", "127.0.0.1")
    assert answer_of(open_bed, "mx.example.net").addresses == ((socket.AF_INET, "127.0.0.1"),)
    named = Bed(resolver={"private_networks": ["10.20.0.0/16", "fd00::/8"]})
    named.dns.set_a("mx.example.net", "10.20.0.1", "10.21.0.1", "127.0.0.1")
    named.dns.set_aaaa("mx.example.net", "fd00::1", "::1")
    assert [a for _, a in answer_of(named, "mx.example.net").addresses] == ["fd00::1", "10.20.0.1"]
    bed = Bed(routes=[{"domains": ["*"], "hosts": ["smart.internal:2525", "127.0.0.1:26"]}])
    bed.dns.set_a("smart.internal", "10.0.0.1")
    assert answer_of(bed, "smart.internal").addresses == ((socket.AF_INET, "10.0.0.1"),)
    assert answer_of(bed, "127.0.0.1").addresses == ((socket.AF_INET, "127.0.0.1"),)
    assert answer_of(bed, "127.0.0.2").status is HostStatus.REFUSED


@pytest.mark.parametrize(
    ("mx", "hosts"),
    [
        ([(10, "mta1.example.com"), (20, "backup.test")], None),
        ([(10, "better.test"), (10, "mta1.example.com"), (20, "backup.test")], None),
        ([(5, "better.test"), (10, "mta1.example.com"), (10, "equal.test")], ["better.test"]),
        (
            [(5, "better.test"), (10, "mta1.example.com.other.test")],
            ["better.test", "mta1.example.com.other.test"],
        ),
    ],
)
def test_mail_never_comes_back_to_one_of_our_sources(mx: Any, hosts: list[str] | None) -> None:
    """RFC 5321 section 5.1: hosts that are not more preferred than ourselves are dropped."""
    bed = Bed()
    bed.dns.set_mx("example.org", *mx)
    answer = bed.route("example.org")
    if hosts is None:
        assert failed(answer) == ("bounced", "5.4.6")
    else:
        assert [host.name for host in found(answer).hosts] == hosts


def test_a_domain_without_mx_that_is_ourselves() -> None:
    bed = Bed()
    bed.dns.mx_of["mta1.example.com"] = MxAnswer(Status.EMPTY)
    bed.dns.set_a("mta1.example.com", "8.8.8.8")
    assert failed(bed.route("mta1.example.com")) == ("bounced", "5.4.6")


def test_a_host_with_our_address_is_ourselves_unless_a_route_names_it() -> None:
    bed = Bed()
    bed.dns.set_a("mx.example.net", "8.8.8.8", "127.0.0.11")
    assert answer_of(bed, "mx.example.net").status is HostStatus.OWN
    assert answer_of(bed, "mta1.example.com").status is HostStatus.OWN
    named = Bed(routes=[{"domains": ["example.org"], "hosts": ["mx.example.net", "mta1.example.com"]}])
    named.dns.set_a("mx.example.net", "127.0.0.11")
    named.dns.set_a("mta1.example.com", "127.0.0.11")
    assert answer_of(named, "mx.example.net").status is HostStatus.USABLE
    assert answer_of(named, "mta1.example.com").status is HostStatus.USABLE


def test_a_host_says_why_it_has_no_address() -> None:
    bed = Bed(routes=[{"domains": ["static.test"], "hosts": ["smart.test"]}])
    assert answer_of(bed, "none.test").status is HostStatus.NONE
    assert answer_of(bed, "smart.test").status is HostStatus.FAILED, "the operator's own host is never final"
    bed.dns.v6_of["half.test"] = AddressAnswer(Status.FAILED, reason="servfail")
    assert answer_of(bed, "half.test") == HostAnswer(HostStatus.FAILED, reason="servfail")


def test_a_host_is_authentic_only_if_all_of_it_is() -> None:
    bed = Bed()
    signed = AddressAnswer(Status.FOUND, ("8.8.8.8",), 300, authenticated=True, canonical="real.test")
    bed.dns.v4_of["mx.test"] = bed.dns.v4_of["half.test"] = signed
    bed.dns.set_aaaa("half.test", "2606:4700::1")
    answer = answer_of(bed, "mx.test")
    assert (answer.is_authenticated, answer.canonical) == (True, "real.test")
    assert not answer_of(bed, "half.test").is_authenticated


def test_an_mx_record_whose_host_is_no_host_name_is_passed_over() -> None:
    """The DNS allows any octets in a name; TLS and logs do not."""
    bed = Bed()
    odd = "\\000" * 16 + ".example.net"
    bed.dns.set_mx("example.org", (5, odd), (7, "mx\\032a.example.net"), (10, "mx_1.example.net"))
    bed.dns.set_mx("odd.test", (5, odd))
    assert [host.name for host in found(bed.route("example.org")).hosts] == ["mx_1.example.net"]
    assert failed(bed.route("odd.test")) == ("bounced", "5.4.4")

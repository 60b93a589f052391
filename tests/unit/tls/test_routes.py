"""Which policy holds for which host: the order, and that a failed look-up is never "no DANE"."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from engine.providers.profiles import load_profiles
from engine.routing.answers import AddressAnswer, MxAnswer, NameAnswer, Status, Tlsa, TlsaAnswer
from engine.routing.route import HostAnswer
from engine.tls.policy import Check, Fault, HostPolicy, PolicyKind, PolicyRefusal, TlsFault
from engine.tls.routes import SecuredRoute, build_routes
from engine.tls.sts import StsPolicy
from engine.tls.sts_policies import StsAnswer
from engine.values.options import Flag
from tests.support.clock import ManualClock
from tests.support.dns_answers import FakeResolver
from tests.support.fleets import fleet

GOOD = Tlsa(3, 1, 1, bytes(32))
UNUSABLE = Tlsa(1, 1, 1, bytes(32))
MX = "mx.example.net"
PORT = "_25._tcp."


class Bed:
    """example.org with one MX host; every answer authenticated unless a test says otherwise."""

    def __init__(self, **sections: Any) -> None:
        self.dns = FakeResolver()
        self.dns.mx_of["example.org"] = MxAnswer(Status.FOUND, ((10, MX),), 300.0, authenticated=True)
        self.address(MX)
        config = fleet(resolver={"private_addresses": "allow"}, **sections)
        self.clock = ManualClock()
        self.routes = build_routes(config, load_profiles({}), self.dns, self.clock, directory=None)

    def address(self, name: str, *, authenticated: bool = True, canonical: str = "") -> None:
        self.dns.v4_of[name] = AddressAnswer(
            Status.FOUND, ("192.0.2.1",), 300.0, "", authenticated, canonical or name
        )

    def tlsa(self, name: str, *records: Tlsa, authenticated: bool = True) -> None:
        self.dns.tlsa_of[f"{PORT}{name}"] = TlsaAnswer(Status.FOUND, records, 300.0, "", authenticated)

    def policy(self, domain: str = "example.org", *, wish: int = 0) -> HostPolicy | PolicyRefusal:
        return asyncio.run(self._policy(domain, wish))

    async def _policy(self, domain: str, wish: int) -> HostPolicy | PolicyRefusal:
        route = await self.routes.route(domain)
        assert isinstance(route, SecuredRoute), route
        if wish:
            route = self.routes.wished(route, wish)
        host = route.hosts[0]
        answer: HostAnswer = await self.routes.addresses(host.name)
        return await self.routes.policy(route, host, answer)


def kind_of(policy: HostPolicy | PolicyRefusal) -> tuple[PolicyKind, Check]:
    assert isinstance(policy, HostPolicy), policy
    return policy.kind, policy.check


REQUIRED = PolicyKind.REQUIRED, Check.ENCRYPT
DANE = PolicyKind.DANE, Check.DANE


def test_tls_is_required_where_nothing_else_is_known() -> None:
    assert kind_of(Bed().policy()) == REQUIRED


def test_dane_where_everything_is_authenticated() -> None:
    bed = Bed()
    bed.tlsa(MX, GOOD, UNUSABLE)
    policy = bed.policy()
    assert isinstance(policy, HostPolicy)
    assert (policy.kind, policy.check, policy.names, policy.records) == (*DANE, (MX,), (GOOD,))


@pytest.mark.parametrize("insecure", ["mx", "address", "tlsa"])
def test_one_unsigned_answer_and_there_is_no_dane(insecure: str) -> None:
    bed = Bed()
    bed.tlsa(MX, GOOD, authenticated=insecure != "tlsa")
    if insecure == "mx":
        bed.dns.set_mx("example.org", (10, MX))
    if insecure == "address":
        bed.address(MX, authenticated=False)
    assert kind_of(bed.policy()) == REQUIRED
    asked = [name for kind, name in bed.dns.asked if kind in ("TLSA", "CNAME")]
    assert bool(asked) == (insecure == "tlsa"), "unsigned zones are not asked"


def test_a_failed_look_up_is_a_deferral_until_it_works_again() -> None:
    bed = Bed()
    bed.dns.tlsa_of[f"{PORT}{MX}"] = TlsaAnswer(Status.FAILED, reason="SERVFAIL")
    policy = bed.policy()
    assert isinstance(policy, PolicyRefusal)
    assert (policy.reply.code, policy.reply.enhanced) == (0, "4.7.5")
    assert "SERVFAIL" in policy.reply.text
    bed.tlsa(MX, GOOD)
    assert isinstance(bed.policy(), PolicyRefusal), "not asked again at once"
    bed.clock.advance(31)
    assert kind_of(bed.policy()) == DANE


def test_unusable_records_demand_tls_all_the_same() -> None:
    bed = Bed()
    bed.tlsa(MX, UNUSABLE)
    assert kind_of(bed.policy()) == REQUIRED


@pytest.mark.parametrize("status", [Status.EMPTY, Status.MISSING])
def test_no_records(status: Status) -> None:
    bed = Bed()
    bed.dns.tlsa_of[f"{PORT}{MX}"] = TlsaAnswer(status, authenticated=True)
    assert kind_of(bed.policy()) == REQUIRED


def test_an_alias_is_asked_by_its_end_first() -> None:
    bed = Bed()
    bed.address(MX, canonical="real.example.com")
    bed.tlsa(MX, UNUSABLE)
    bed.tlsa("real.example.com", GOOD)
    policy = bed.policy()
    assert isinstance(policy, HostPolicy)
    assert policy.names == ("real.example.com", MX)
    bed = Bed()
    bed.address(MX, canonical="real.example.com")
    bed.tlsa(MX, GOOD)
    policy = bed.policy()
    assert isinstance(policy, HostPolicy)
    assert policy.names == (MX,)


def test_an_alias_out_of_a_signed_zone() -> None:
    bed = Bed()
    bed.address(MX, authenticated=False, canonical="real.example.com")
    bed.tlsa(MX, GOOD)
    assert kind_of(bed.policy()) == REQUIRED, "the alias itself is unsigned"
    bed.clock.advance(4000)
    bed.dns.alias_of[MX] = NameAnswer(Status.FOUND, ("real.example.com",), 300.0, "", True)
    assert kind_of(bed.policy()) == DANE
    bed = Bed()
    bed.address(MX, authenticated=False, canonical="real.example.com")
    bed.dns.alias_of[MX] = NameAnswer(Status.FAILED, reason="timeout")
    assert isinstance(bed.policy(), PolicyRefusal)


@pytest.mark.parametrize(
    ("mode", "expected"), [("disabled", Check.PLAIN), ("unverified", Check.ENCRYPT), ("verified", Check.NAME)]
)
def test_the_written_exception_ends_the_search(mode: str, expected: Check) -> None:
    exception = {"domain": "example.org", "mode": mode, "reason": "a test"}
    bed = Bed(tls={"exceptions": [exception]})
    bed.tlsa(MX, GOOD)
    assert kind_of(bed.policy()) == (PolicyKind.EXCEPTION, expected)


class Enforced:
    """The policy of every domain."""

    def __init__(self, mode: str, host: str = "*.l.google.com") -> None:
        self.turn(mode, host)

    def turn(self, mode: str, host: str) -> None:
        self._answer = StsAnswer(StsPolicy("example.org", mode, (host,), 86400))

    def cached(self, domain: str) -> StsAnswer:
        return self._answer

    async def get(self, domain: str) -> StsAnswer:
        return self._answer


@pytest.mark.parametrize(
    ("by", "mode", "expected"),
    [
        (["provider"], "enforce", (PolicyKind.STS, Check.NAME)),
        (["provider"], "testing", (PolicyKind.EXCEPTION, Check.PLAIN)),
        (["domain"], "enforce", (PolicyKind.EXCEPTION, Check.PLAIN)),
        (["provider", "domain"], "enforce", (PolicyKind.EXCEPTION, Check.PLAIN)),
    ],
)
def test_forged_mx_records_do_not_choose_an_exception(
    monkeypatch: pytest.MonkeyPatch, by: list[str], mode: str, expected: tuple[PolicyKind, Check]
) -> None:
    """Unsigned MX records say which provider it is: that must not switch the domain's own policy off."""
    forged = "aspmx.l.google.com"
    names = {"provider": "google", "domain": "example.org"}
    bed = Bed(tls={"exceptions": [{one: names[one], "mode": "disabled", "reason": "a test"} for one in by]})
    bed.dns.set_mx("example.org", (10, forged))
    bed.address(forged, authenticated=False)
    monkeypatch.setattr(bed.routes, "_sts", Enforced(mode))
    assert kind_of(bed.policy()) == expected


def test_a_policy_that_its_domain_changes_is_heeded_while_the_route_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bed = Bed()
    bed.dns.set_mx("example.org", (10, MX))
    policies = Enforced("testing", MX)
    monkeypatch.setattr(bed.routes, "_sts", policies)

    def found() -> tuple[str, bool]:
        policy = bed.policy()
        assert isinstance(policy, HostPolicy)
        known = bed.routes.cached("example.org")
        return known.sts.policy.mode, policy.is_testing

    assert found() == ("testing", True)
    policies.turn("enforce", MX)
    assert found() == ("enforce", False)
    policies.turn("enforce", "elsewhere.test")
    assert isinstance(bed.policy(), PolicyRefusal)
    assert [kind for kind, _ in bed.dns.asked].count("MX") == 1, "the route was not looked up again"


def test_requiretls_hardens_every_policy() -> None:
    bed = Bed(tls={"exceptions": [{"domain": "plain.test", "mode": "disabled", "reason": "a test"}]})
    bed.dns.mx_of["plain.test"] = bed.dns.mx_of["example.org"]
    for domain in ("example.org", "plain.test"):
        policy = bed.policy(domain, wish=Flag.REQUIRE_TLS)
        assert isinstance(policy, HostPolicy)
        assert (policy.check, policy.requires_tls) == (Check.NAME, True)
    bed.tlsa(MX, GOOD)
    bed.clock.advance(4000)
    policy = bed.policy(wish=Flag.REQUIRE_TLS)
    assert isinstance(policy, HostPolicy)
    assert (policy.check, policy.requires_tls) == (Check.DANE, True)


def test_requiretls_wants_somebody_to_vouch_for_the_host() -> None:
    """RFC 8689 section 4.2.1: signed MX records, an MTA-STS policy that names it, or the configuration."""
    static = [{"domains": ["static.test"], "hosts": [MX]}]
    bed = Bed(
        tls={"exceptions": [{"domain": "plain.test", "mode": "disabled", "reason": "a test"}]}, routes=static
    )
    for domain in ("unsigned.test", "plain.test"):
        bed.dns.set_mx(domain, (10, MX))
        policy = bed.policy(domain, wish=Flag.REQUIRE_TLS)
        assert isinstance(policy, PolicyRefusal)
        assert (policy.reply.enhanced, policy.is_final) == ("5.7.30", True)
        assert isinstance(bed.policy(domain), HostPolicy), "other mail does not mind"
    assert isinstance(bed.policy("static.test", wish=Flag.REQUIRE_TLS), HostPolicy)


@pytest.mark.parametrize(
    ("mode", "hosts", "is_vouched"),
    [
        ("enforce", (MX,), True),
        ("testing", ("*.example.net",), True),
        ("enforce", ("other.test",), False),
        ("testing", ("other.test",), False),
    ],
)
def test_an_sts_policy_vouches_for_its_hosts(mode: str, hosts: tuple[str, ...], is_vouched: bool) -> None:
    bed = Bed()
    policy = StsPolicy("unsigned.test", mode, hosts, 86400)

    async def go() -> HostPolicy | PolicyRefusal:
        bed.dns.set_mx("unsigned.test", (10, MX))
        route = await bed.routes.route("unsigned.test")
        strict = bed.routes.wished(replace(route, sts=StsAnswer(policy)), Flag.REQUIRE_TLS)
        return await bed.routes.policy(strict, route.hosts[0], await bed.routes.addresses(MX))

    found = asyncio.run(go())
    assert isinstance(found, HostPolicy if is_vouched else PolicyRefusal), found
    if isinstance(found, HostPolicy):
        assert (found.check, found.requires_tls, found.is_testing) == (Check.NAME, True, False)


def test_a_policy_that_cannot_be_had_now_is_waited_for() -> None:
    bed = Bed()

    async def go() -> HostPolicy | PolicyRefusal:
        bed.dns.set_mx("unsigned.test", (10, MX))
        route = await bed.routes.route("unsigned.test")
        answer = StsAnswer(None, fault=TlsFault(Fault.STS_FETCH, "status 500"))
        strict = bed.routes.wished(replace(route, sts=answer), Flag.REQUIRE_TLS)
        return await bed.routes.policy(strict, route.hosts[0], await bed.routes.addresses(MX))

    found = asyncio.run(go())
    assert isinstance(found, PolicyRefusal)
    assert (found.reply.enhanced, found.is_final) == ("4.7.5", False)
    assert "status 500" in found.reply.text


def test_equal_routes_share_sessions_and_unequal_ones_do_not() -> None:
    bed = Bed()
    bed.dns.mx_of["other.org"] = bed.dns.mx_of["example.org"]
    bed.dns.set_mx("unsigned.org", (10, MX))

    async def routes() -> list[Any]:
        return [await bed.routes.route(name) for name in ("example.org", "other.org", "unsigned.org")]

    one, other, unsigned = asyncio.run(routes())
    assert one == other
    assert one != unsigned
    strict, lenient = (bed.routes.wished(one, wish) for wish in (Flag.REQUIRE_TLS, Flag.ANY_TLS))
    assert len({one, strict, lenient}) == 3
    assert bed.routes.wished(other, Flag.REQUIRE_TLS) is strict
    assert bed.routes.cached("example.org") is one


def test_with_any_tls_no_policy_of_the_recipients_side_holds_a_message_back() -> None:
    """RFC 8460 section 5.3.1. It is encrypted all the same, and what the operator has written holds."""
    exceptions = [{"domain": "verified.test", "mode": "verified", "reason": "by contract"}]
    bed = Bed(tls={"exceptions": exceptions})
    bed.dns.mx_of["verified.test"] = bed.dns.mx_of["example.org"]
    assert bed.policy(wish=Flag.ANY_TLS) == bed.policy()
    assert bed.policy("verified.test", wish=Flag.ANY_TLS) == bed.policy("verified.test")
    bed.clock.advance(4000)
    bed.tlsa(MX, GOOD)
    policy, other = bed.policy(wish=Flag.ANY_TLS), bed.policy()
    assert isinstance(policy, HostPolicy)
    assert isinstance(other, HostPolicy)
    assert (policy.check, policy.is_testing) == (Check.DANE, True)
    assert not other.is_testing, "other mail minds"
    bed.clock.advance(4000)
    bed.dns.tlsa_of[f"{PORT}{MX}"] = TlsaAnswer(Status.FAILED, reason="SERVFAIL")
    policy = bed.policy(wish=Flag.ANY_TLS)
    assert isinstance(policy, HostPolicy)
    assert (policy.kind, policy.check, policy.is_testing) == (PolicyKind.DANE, Check.ENCRYPT, True)
    assert policy.fault is not None
    assert policy.fault.fault is Fault.DNSSEC_INVALID
    assert isinstance(bed.policy(), PolicyRefusal)

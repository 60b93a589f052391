"""Each policy against each behaviour of a server, with real handshakes and certificates: one table.

A cell is what must come of it. Opened: `plain` in clear text, `tls` encrypted but verified by nobody, `name` or `dane`
what has vouched for the peer; behind a slash the fault that is reported although the session was opened. Not opened:
`-` and the fault for which the mail is deferred. Faults: S starttls-not-supported, H certificate-host-mismatch,
E certificate-expired, T certificate-not-trusted, V validation-failure, I injected plaintext, D dnssec-invalid. `any/`:
a message with ANY_TLS, as TLS reports are.
"""

import asyncio
import random
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.delivery.hosts import Found, NotFound, find_host
from engine.routing.answers import Status, Tlsa, TlsaAnswer
from engine.routing.route import Failure, HostAnswer, HostStatus, HostTarget, Route
from engine.smtp.opener import Opened, OpenFailure, SessionOpener, Target
from engine.tls.policy import Fault, TlsFault
from engine.tls.routes import SecureRoutes
from engine.tls.sts import StsPolicy
from engine.tls.sts_policies import NO_POLICY, StsAnswer
from engine.values.options import Flag, Options
from engine.values.outcome import OutcomeKind, Scope
from tests.support.certificates import (
    Identity,
    authority,
    make,
    server_context,
    stranger,
    tlsa,
    write_authorities,
)
from tests.support.clock import ManualClock
from tests.support.dns_answers import FakeResolver
from tests.support.pools import Source, World, hand_over, make_pool, settled
from tests.support.tls_server import TlsServer

MX = "mx.example.net"
DOMAIN = "example.org"
MIDDLE = make("Middle", issuer=authority(), is_authority=True)
PRIVATE = make("Private Middle", issuer=stranger(), is_authority=True)
CERTIFICATES = {
    "self": make(MX),
    "expired": make(MX, issuer=authority(), days=(-9, -1)),
    "other": make("mx.other.test", issuer=authority()),
    "strange": make(MX, issuer=PRIVATE, send=(PRIVATE, stranger())),
    "good": make(MX, issuer=authority()),
    "chain": make("*.example.net", issuer=MIDDLE, send=(MIDDLE,)),
    "old": make(MX, issuer=authority(), rsa_bits=1024),
    "cn-only": make(MX, issuer=authority(), names=()),
}
FAULTS = {
    "S": Fault.NO_STARTTLS,
    "H": Fault.HOST_MISMATCH,
    "E": Fault.EXPIRED,
    "T": Fault.NOT_TRUSTED,
    "V": Fault.VALIDATION,
    "I": Fault.INJECTED,
    "D": Fault.DNSSEC_INVALID,
}
TABLE = """
                  absent declined injected closed garbage tls1.1 self  expired other strange good  chain old   cn-only
required          -S     -S       -I       -V     -V      -V     tls   tls     tls   tls     tls   tls   tls   tls
disabled          plain  plain    plain    plain  plain   plain  plain plain   plain plain   plain plain plain plain
unverified        -S     -S       -I       -V     -V      -V     tls   tls     tls   tls     tls   tls   tls   tls
verified          -S     -S       -I       -V     -V      -V     -T    -E      -H    -T      name  name  -V    -H
sts-enforce       -S     -S       -I       -V     -V      -V     -T    -E      -H    -T      name  name  -V    -H
sts-other-mx      -V     -V       -V       -V     -V      -V     -V    -V      -V    -V      -V    -V    -V    -V
sts-testing       -S     -S       -I       -V     -V      -V     tls/T tls/E   tls/H tls/T   name  name  tls/V tls/H
sts-test-mx       -S     -S       -I       -V     -V      -V     tls/V tls/V   tls/V tls/V   tls/V tls/V tls/V tls/V
dane-ee           -S     -S       -I       -V     -V      -V     dane  dane    dane  dane    dane  dane  dane  dane
dane-ee-wrong     -S     -S       -I       -V     -V      -V     -V    -V      -V    -V      -V    -V    -V    -V
dane-ta           -S     -S       -I       -V     -V      -V     -V    -V      -V    dane    -V    -V    -V    -V
dane-ta-full      -S     -S       -I       -V     -V      -V     -T    -E      -H    -T      dane  dane  dane  -H
dane-over-sts     -S     -S       -I       -V     -V      -V     dane  dane    dane  dane    dane  dane  dane  dane
dane-unusable     -S     -S       -I       -V     -V      -V     tls   tls     tls   tls     tls   tls   tls   tls
dane-bogus        -D     -D       -D       -D     -D      -D     -D    -D      -D    -D      -D    -D    -D    -D
dane-unsigned     -S     -S       -I       -V     -V      -V     tls   tls     tls   tls     tls   tls   tls   tls
any/required      -S     -S       -I       -V     -V      -V     tls   tls     tls   tls     tls   tls   tls   tls
any/verified      -S     -S       -I       -V     -V      -V     -T    -E      -H    -T      name  name  -V    -H
any/sts-enforce   -S     -S       -I       -V     -V      -V     tls/T tls/E   tls/H tls/T   name  name  tls/V tls/H
any/sts-other-mx  -S     -S       -I       -V     -V      -V     tls/V tls/V   tls/V tls/V   tls/V tls/V tls/V tls/V
any/dane-ee-wrong -S     -S       -I       -V     -V      -V     tls/V tls/V   tls/V tls/V   tls/V tls/V tls/V tls/V
any/dane-ta-full  -S     -S       -I       -V     -V      -V     tls/T tls/E   tls/H tls/T   dane  dane  dane  tls/H
any/dane-bogus    -S     -S       -I       -V     -V      -V     tls/D tls/D   tls/D tls/D   tls/D tls/D tls/D tls/D
"""


def cells() -> list[Any]:
    head, *rows = [line.split() for line in TABLE.strip().splitlines()]
    return [
        pytest.param(policy, server, cell, id=f"{policy}-{server}")
        for policy, *row in rows
        for server, cell in zip(head, row, strict=True)
    ]


class OneRoute:
    """A domain with one MX host on loopback, all of it authenticated."""

    def __init__(self, port: int, tls: Any) -> None:
        host = HostTarget(MX, port, 10)
        self._route = Route("mx:example.net", "default", (host,), tls, is_authenticated=True)

    def cached(self, domain: str) -> Route | Failure | None:
        return self._route

    async def route(self, domain: str) -> Route | Failure:
        return self._route

    async def addresses(self, host: str) -> HostAnswer:
        return HostAnswer(HostStatus.USABLE, ((2, "127.0.0.1"),), is_authenticated=True, canonical=host)


class OneSts:
    def __init__(self, answer: StsAnswer) -> None:
        self._answer = answer

    def cached(self, domain: str) -> StsAnswer:
        return self._answer

    async def get(self, domain: str) -> StsAnswer:
        return self._answer


def sts_of(policy: str) -> StsAnswer:
    if not policy.startswith("sts-") and policy != "dane-over-sts":
        return NO_POLICY
    mx = ("mx.elsewhere.test",) if policy.endswith("-mx") else ("*.example.net",)
    return StsAnswer(StsPolicy(DOMAIN, "testing" if "-test" in policy else "enforce", mx, 86400))


def tlsa_of(policy: str, identity: Identity) -> TlsaAnswer:
    records: dict[str, list[Tlsa]] = {
        "dane-ee": [tlsa(identity, 3)],
        "dane-ee-wrong": [tlsa(make(MX), 3), tlsa(make(MX), 3, 0, 2)],
        "dane-ta": [tlsa(stranger(), 2)],
        "dane-ta-full": [tlsa(authority(), 2, 0, 0)],
        "dane-over-sts": [tlsa(identity, 3)],
        "dane-unusable": [tlsa(identity, 1), Tlsa(3, 1, 1, b"short")],
        "dane-unsigned": [tlsa(make(MX), 3)],
    }
    if policy == "dane-bogus":
        return TlsaAnswer(Status.FAILED, reason="SERVFAIL")
    if policy not in records:
        return TlsaAnswer(Status.MISSING, ttl_s=60.0, authenticated=True)
    return TlsaAnswer(Status.FOUND, tuple(records[policy]), 60.0, "", policy != "dane-unsigned")


def server_of(server: str) -> tuple[TlsServer, Identity]:
    identity = CERTIFICATES.get(server, CERTIFICATES["good"])
    if server == "tls1.1":
        context = server_context(identity)
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        return TlsServer(context), identity
    if server == "old":  # keys and ciphers of 2010
        context = server_context(
            identity, ciphers="AES128-SHA:AES256-SHA:@SECLEVEL=0", maximum_version=ssl.TLSVersion.TLSv1_2
        )
        return TlsServer(context), identity
    behaviour = "good" if server in CERTIFICATES else server
    return TlsServer(server_context(identity), behaviour), identity


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize(("policy", "server", "expected"), cells())
def test_policy_and_server(tmp_path: Path, policy: str, server: str, expected: str) -> None:
    asyncio.run(_meet(tmp_path, policy, server, expected))


async def _meet(folder: Path, policy: str, server: str, expected: str) -> None:
    script, identity = server_of(server)
    wish, _, policy = policy.rpartition("/")
    async with script:
        resolver = FakeResolver()
        resolver.tlsa_of[f"_{script.port}._tcp.{MX}"] = tlsa_of(policy, identity)
        tls = policy if policy in ("disabled", "unverified", "verified") else "required"
        sts: Any = OneSts(sts_of(policy))
        routes = SecureRoutes(OneRoute(script.port, tls), resolver, ManualClock(), limit=10, sts=sts)
        opener = SessionOpener(write_authorities(folder / "ca.pem", authority()))
        faults: list[TlsFault] = []

        async def watched(target: Target, *, timeout_s: float) -> Opened | OpenFailure:
            result = await opener(target, timeout_s=timeout_s)
            if isinstance(result, OpenFailure) and result.fault is not None:
                faults.append(result.fault)
            return result

        route = await routes.route(DOMAIN)
        if wish:
            route = routes.wished(route, Flag.ANY_TLS)
        refused = await routes.policy(route, route.hosts[0], await routes.addresses(MX))
        found = await find_host(
            route, Source(), routes=routes, opener=watched, rng=random.Random(1), timeout_s=20.0
        )
        if expected.startswith("-"):
            assert isinstance(found, NotFound), found
            assert (found.verdict.kind, found.verdict.scope) == (OutcomeKind.DEFERRED, Scope.HOST)
            fault = faults[0] if faults else refused.fault
            assert fault is not None
            assert fault.fault is FAULTS[expected[1:]], fault
            assert found.reply.enhanced == ("4.7.10" if expected == "-S" else "4.7.5")
            assert not any(line.upper().startswith(b"MAIL") for line in script.plain_commands)
            return
        assert isinstance(found, Found), found
        verified, _, noted = expected.partition("/")
        result = found.opened.tls
        assert (result is None) == (expected == "plain")
        if result is not None:
            assert result.verified == ("" if verified == "tls" else verified)
            assert (result.fault.fault if result.fault else None) is (FAULTS[noted] if noted else None)
            assert result.version in ("TLSv1.2", "TLSv1.3")
            assert script.server_names[-1] == MX
        found.opened.transport.abort()


def test_a_mail_for_one_domain_does_not_ride_on_the_session_of_another() -> None:
    """Domains that share an MX host share a lane, and so sessions, only if their policies are the same."""
    policy = StsPolicy("a.test", "enforce", ("*.example.net",), 86400)

    async def secured(domain: str, sts: StsAnswer) -> Any:
        one: Any = OneSts(sts)
        routes = SecureRoutes(OneRoute(25, "required"), FakeResolver(), ManualClock(), limit=10, sts=one)
        return await routes.route(domain)

    async def go() -> None:
        plain = await secured("x.test", NO_POLICY)
        assert plain == await secured("y.test", NO_POLICY)
        enforced = await secured("a.test", StsAnswer(policy))
        assert enforced != plain
        other = await secured("b.test", StsAnswer(replace(policy, domain="b.test")))
        assert other != enforced, "the same text, but another domain's policy"
        assert await secured("a.test", StsAnswer(replace(policy, mode="testing"))) != enforced

    asyncio.run(go())


@pytest.mark.parametrize(
    ("extensions", "certificate", "expected"),
    [
        (("REQUIRETLS",), "good", None),
        ((), "good", "5.7.30"),
        (("REQUIRETLS",), "self", "4.7.5"),
        (("REQUIRETLS",), "other", "4.7.5"),
    ],
)
@pytest.mark.parametrize("tls", ["required", "disabled", "unverified"])
def test_requiretls(
    tmp_path: Path, tls: str, extensions: tuple[str, ...], certificate: str, expected: str | None
) -> None:
    async def go() -> Found | NotFound:
        async with TlsServer(server_context(CERTIFICATES[certificate]), extensions=extensions) as script:
            routes = SecureRoutes(OneRoute(script.port, tls), FakeResolver(), ManualClock(), limit=10)
            route = routes.wished(await routes.route(DOMAIN), Flag.REQUIRE_TLS)
            opener = SessionOpener(write_authorities(tmp_path / "ca.pem", authority()))
            found = await find_host(
                route, Source(), routes=routes, opener=opener, rng=random.Random(1), timeout_s=20.0
            )
            if isinstance(found, Found):
                found.opened.transport.abort()
            return found

    found = asyncio.run(go())
    assert isinstance(found, Found if expected is None else NotFound)
    if isinstance(found, NotFound):
        assert found.reply.enhanced == expected
        kind = OutcomeKind.BOUNCED if expected == "5.7.30" else OutcomeKind.DEFERRED
        assert found.verdict.kind is kind


def test_a_tls_report_arrives_where_other_mail_waits_for_a_good_certificate() -> None:
    """RFC 8460 section 5.3.1, through a whole pool: the same domain, the same host, each in a session of its own."""

    async def go() -> None:
        async with TlsServer(server_context(CERTIFICATES["self"])) as script:
            sts: Any = OneSts(sts_of("sts-enforce"))
            routes = SecureRoutes(
                OneRoute(script.port, "required"), FakeResolver(), ManualClock(), limit=10, sts=sts
            )
            world = World({}, options={2: Options(flags=Flag.ANY_TLS)})
            pool = make_pool(world, router=routes)
            await hand_over(pool, [1, 2])
            await settled(world, 2)
            await pool.stop(5)
            assert world.of(1).kind is OutcomeKind.DEFERRED
            assert world.of(1).reply.enhanced == "4.7.5"
            assert world.of(2).kind is OutcomeKind.DELIVERED
            assert len(script.messages) == 1
            assert not any(line.upper().startswith(b"MAIL") for line in script.plain_commands)

    asyncio.run(go())

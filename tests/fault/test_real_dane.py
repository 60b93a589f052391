"""DANE from the signed zone to the session: knot signs, unbound validates, a real server shows a certificate."""

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from engine.delivery.hosts import Found, NotFound, find_host
from engine.ops.free_port import free_port
from engine.providers.profiles import load_profiles
from engine.routing.resolver import build_resolver
from engine.routing.route import Failure, HostAnswer, Route
from engine.routing.router import Router
from engine.smtp.opener import SessionOpener
from engine.tls.routes import SecureRoutes
from engine.values.clock import SystemClock
from engine.values.options import Flag
from engine.values.outcome import OutcomeKind
from tests.support.certificates import make, server_context, tlsa
from tests.support.fleets import fleet
from tests.support.nameservers import knot, needs_unbound, unbound
from tests.support.pools import Source
from tests.support.tls_server import TlsServer

pytestmark = needs_unbound

HEAD = "$TTL 600\n@ SOA ns admin 1 3600 600 86400 120\n@ NS ns\nns A 127.0.0.1\n"
PORT = free_port()
MX = make("mx.signed.test")
ROOT = make("Private Root", is_authority=True)
ISSUED = make("mx2.signed.test", issuer=ROOT, send=(ROOT,))


def record(name: str, *, usage: int, of: object, selector: int = 1, matching: int = 1) -> str:
    found = tlsa(of, usage, selector, matching)  # type: ignore[arg-type]
    return f"_{PORT}._tcp.{name} TLSA {usage} {selector} {matching} {found.data.hex()}\n"


SIGNED = (
    HEAD
    + "@ MX 10 mx\nmx A 127.0.0.1\n"
    + record("mx", usage=3, of=MX)
    + "ta MX 10 mx2\nmx2 A 127.0.0.1\n"
    + record("mx2", usage=2, of=ROOT, selector=0, matching=2)
    + "alias MX 10 mxa\nmxa CNAME mx\n"
    + "wrong MX 10 mx3\nmx3 A 127.0.0.1\n"
    + record("mx3", usage=3, of=ROOT)
    + "nodane MX 10 mx4\nmx4 A 127.0.0.1\n"
    + "unusable MX 10 mx5\nmx5 A 127.0.0.1\n"
    + record("mx5", usage=1, of=ROOT)
    + "short MX 10 mx7\nmx7 A 127.0.0.1\n"
    + f"_{PORT}._tcp.mx7 TLSA 3 1 1 {'ab' * 20}\n"
    + "mixed MX 10 mx8\nmx8 A 127.0.0.1\n"
    + f"_{PORT}._tcp.mx8 TLSA 3 1 1 {'ab' * 20}\n"
    + record("mx8", usage=3, of=MX)
    + "outside MX 10 mx.plain.test.\n"
    + "broken MX 10 mx.bogus.test.\nbroken2 MX 10 mx6\nmx6 A 127.0.0.1\n"
    + f"_{PORT}._tcp.mx6 CNAME _{PORT}._tcp.mx.bogus.test.\n"
)
PLAIN = HEAD + "@ MX 10 mx\nmx A 127.0.0.1\n" + record("mx", usage=3, of=ROOT)
ZONES = {"signed.test": SIGNED, "plain.test": PLAIN, "bogus.test": PLAIN}
KINDS = {"signed.test": "signed", "plain.test": "insecure", "bogus.test": "bogus"}


@pytest.fixture(scope="module")
def validator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with (
        knot(tmp_path_factory.mktemp("knot"), ZONES, signed=("signed.test", "bogus.test")) as authority,
        unbound(tmp_path_factory.mktemp("unbound"), authority, KINDS) as port,
    ):
        yield port


@dataclass
class Ported:
    """The router, with the port of the test in place of 25."""

    router: Router

    def cached(self, domain: str) -> Route | Failure | None:
        return None

    async def route(self, domain: str) -> Route | Failure:
        route = await self.router.route(domain)
        if isinstance(route, Failure):
            return route
        return replace(route, hosts=tuple(replace(host, port=PORT) for host in route.hosts))

    async def addresses(self, host: str) -> HostAnswer:
        return await self.router.addresses(host)


async def deliver(
    validator: int, domain: str, dnssec: str = "trust", *, strict: bool = False
) -> Found | NotFound | Failure:
    settings = {
        "nameservers": ["127.0.0.1"],
        "port": validator,
        "timeout": "3s",
        "dnssec": dnssec,
        "private_addresses": "allow",
    }
    config = fleet(resolver=settings)
    resolver = build_resolver(config.resolver)
    clock = SystemClock()
    router = Router(config, load_profiles({}), resolver, clock)
    routes = SecureRoutes(Ported(router), resolver, clock, limit=10)
    identity = ISSUED if domain == "ta.signed.test" else MX
    async with TlsServer(server_context(identity), port=PORT, extensions=("REQUIRETLS",)):
        route = await routes.route(domain)
        if isinstance(route, Failure):
            return route
        if strict:
            route = routes.wished(route, Flag.REQUIRE_TLS)
        found = await find_host(
            route, Source(), routes=routes, opener=SessionOpener(), rng=random.Random(1), timeout_s=3.0
        )
        if isinstance(found, Found):
            found.opened.transport.abort()
        return found


@pytest.mark.parametrize(
    ("domain", "verified"),
    [
        ("signed.test", "dane"),
        ("ta.signed.test", "dane"),
        ("alias.signed.test", "dane"),
        ("nodane.signed.test", ""),
        ("unusable.signed.test", ""),
        ("short.signed.test", ""),
        ("mixed.signed.test", "dane"),
        ("outside.signed.test", ""),
        ("plain.test", ""),
    ],
)
def test_opened(validator: int, domain: str, verified: str) -> None:
    found = asyncio.run(deliver(validator, domain))
    assert isinstance(found, Found), found
    assert found.opened.tls is not None
    assert found.opened.tls.verified == verified


@pytest.mark.parametrize(
    ("domain", "text"),
    [
        ("wrong.signed.test", "no TLSA record matches"),
        ("broken.signed.test", "no address can be found"),
        ("broken2.signed.test", "TLSA records cannot be looked up"),
    ],
)
def test_deferred(validator: int, domain: str, text: str) -> None:
    found = asyncio.run(deliver(validator, domain))
    assert isinstance(found, NotFound), found
    assert found.verdict.kind is OutcomeKind.DEFERRED
    assert text in found.reply.text


def test_requiretls_goes_only_where_the_dns_is_signed(validator: int) -> None:
    assert isinstance(asyncio.run(deliver(validator, "signed.test", strict=True)), Found)
    for domain, dnssec in (("plain.test", "trust"), ("signed.test", "ignore")):
        found = asyncio.run(deliver(validator, domain, dnssec, strict=True))
        assert isinstance(found, NotFound), found
        assert (found.verdict.kind, found.reply.enhanced) == (OutcomeKind.BOUNCED, "5.7.30")


def test_without_trust_in_the_resolver_there_is_no_dane(validator: int) -> None:
    for domain in ("signed.test", "wrong.signed.test"):
        found = asyncio.run(deliver(validator, domain, dnssec="ignore"))
        assert isinstance(found, Found), found
        assert found.opened.tls is not None
        assert found.opened.tls.verified == ""


def test_records_that_do_not_validate_are_a_deferral(validator: int, tmp_path: Path) -> None:
    found = asyncio.run(deliver(validator, "bogus.test"))
    assert isinstance(found, Failure)
    assert found.kind == "deferred"

"""Routing against a real authoritative server (knot), and against servers that are silent or broken."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from engine.providers.profiles import load_profiles
from engine.routing.resolver import build_resolver
from engine.routing.route import Failure, HostStatus, Route
from engine.routing.router import Router
from engine.values.clock import SystemClock
from tests.support.fleets import fleet
from tests.support.nameservers import knot, needs_knot

ZONE = """\
$TTL 600
@        SOA ns.test. admin.test. 1 3600 600 86400 120
@        NS  ns
ns       A   127.0.0.1
plain    MX  20 b.mx
plain    MX  10 a.mx
plain    A   203.0.113.9
a.mx     A   203.0.113.1
a.mx     A   203.0.113.2
a.mx     AAAA 2001:db8::1
b.mx     A   203.0.113.3
null     MX  0 .
bare     A   203.0.113.4
six      AAAA 2001:db8::6
empty    TXT "neither mail nor address"
alias    CNAME plain
mxalias  MX  10 cname.mx
cname.mx CNAME a.mx
*.wild   MX  5 a.mx
dangling MX  5 nowhere.mx
long.ttl 9000000 MX 5 a.mx
short    1 MX 5 a.mx
"""
BIG = "".join(f"big MX {n} a-host-with-quite-a-long-name-{n:03}.mx\n" for n in range(100))

pytestmark = needs_knot


@pytest.fixture(scope="module")
def nameserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Port of a knotd on loopback that is authoritative for test."""
    with knot(tmp_path_factory.mktemp("knot"), {"test": ZONE + BIG}) as port:
        yield port


def router(port: int, **resolver: Any) -> Router:
    settings = {"nameservers": ["127.0.0.1"], "port": port, "timeout": "3s", "private_addresses": "allow"}
    config = fleet(resolver=settings | resolver)
    return Router(config, load_profiles({}), build_resolver(config.resolver), SystemClock())


def ask(port: int, domain: str, **resolver: Any) -> Route | Failure:
    return asyncio.run(router(port, **resolver).route(domain))


def names(answer: Route | Failure) -> list[str]:
    assert isinstance(answer, Route), answer
    assert all(host.port == 25 for host in answer.hosts)
    return [host.name for host in answer.hosts]


@pytest.mark.parametrize(
    ("domain", "hosts"),
    [
        ("plain.test", ["a.mx.test", "b.mx.test"]),
        ("alias.test", ["a.mx.test", "b.mx.test"]),
        ("mxalias.test", ["cname.mx.test"]),
        ("anything.wild.test", ["a.mx.test"]),
        ("bare.test", ["bare.test"]),
        ("six.test", ["six.test"]),
        ("dangling.test", ["nowhere.mx.test"]),
    ],
)
def test_hosts(nameserver: int, domain: str, hosts: list[str]) -> None:
    assert names(ask(nameserver, domain)) == hosts


@pytest.mark.parametrize(
    ("domain", "kind", "enhanced"),
    [
        ("null.test", "bounced", "5.1.10"),
        ("missing.test", "bounced", "5.1.2"),
        ("empty.test", "bounced", "5.1.2"),
        ("a" * 64 + ".test", "bounced", "5.1.2"),
        ("a..test", "bounced", "5.1.2"),
        ("not-served-here.example", "deferred", "4.4.3"),  # REFUSED by this server
    ],
)
def test_no_route(nameserver: int, domain: str, kind: str, enhanced: str) -> None:
    answer = ask(nameserver, domain)
    assert isinstance(answer, Failure)
    assert (answer.kind, answer.reply.enhanced) == (kind, enhanced)


def test_a_truncated_answer_is_read_over_tcp_and_bounded(nameserver: int) -> None:
    found = names(ask(nameserver, "big.test"))
    assert found == [f"a-host-with-quite-a-long-name-{n:03}.mx.test" for n in range(10)]


def test_addresses(nameserver: int) -> None:
    found = asyncio.run(router(nameserver).addresses("cname.mx.test"))
    assert {address for _, address in found.addresses} == {"203.0.113.1", "203.0.113.2", "2001:db8::1"}
    assert asyncio.run(router(nameserver).addresses("nowhere.mx.test")).status is HostStatus.NONE


def test_ttls_of_positive_and_negative_answers(nameserver: int) -> None:
    async def run() -> None:
        resolver = build_resolver(fleet(resolver={"nameservers": ["127.0.0.1"], "port": nameserver}).resolver)
        assert (await resolver.mx("plain.test")).ttl_s == 600
        assert (await resolver.mx("short.test")).ttl_s == 1
        assert (await resolver.mx("missing.test")).ttl_s == 120
        assert (await resolver.mx("empty.test")).ttl_s == 120

    asyncio.run(run())


class Babbler(threading.Thread):
    """A UDP nameserver that answers each question with what `reply` makes of it, or with nothing."""

    def __init__(self, reply: Any) -> None:
        super().__init__(daemon=True)
        self._reply = reply
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self.questions = 0

    def run(self) -> None:
        while True:
            question, peer = self._socket.recvfrom(4096)
            if question == b"stop":
                self._socket.close()
                return
            self.questions += 1
            answer = self._reply(question)
            if answer is not None:
                self._socket.sendto(answer, peer)

    def stop(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.sendto(b"stop", ("127.0.0.1", self.port))
        self.join(5)


def servfail(question: bytes) -> bytes:
    return question[:2] + b"\x81\x82" + question[4:]


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(servfail, id="servfail"),
        pytest.param(lambda question: None, id="silent"),
        pytest.param(lambda question: b"\xff" * 7, id="garbage"),
        pytest.param(lambda question: b"\0\0" + servfail(question)[2:], id="another question's id"),
    ],
)
def test_a_bad_server_defers_within_the_deadline_and_is_asked_once(reply: Any) -> None:
    server = Babbler(reply)
    server.start()
    try:
        bed = router(server.port, timeout="400ms")

        async def run() -> float:
            loop = asyncio.get_running_loop()
            began = loop.time()
            answers = await asyncio.gather(*[bed.route("example.org") for _ in range(20)])
            assert {(a.kind, a.reply.enhanced) for a in answers if isinstance(a, Failure)} == {
                ("deferred", "4.4.3")
            }
            before = server.questions
            assert isinstance(await bed.route("example.org"), Failure)
            assert server.questions == before, "a failure is remembered for failure_ttl"
            return loop.time() - began

        assert asyncio.run(run()) < 2.0
        assert server.questions <= 10
    finally:
        server.stop()

"""MTA-STS from the TXT record to the policy that holds: real HTTPS, a real file, a clock of the test."""

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from engine.routing.answers import Status, TextAnswer
from engine.routing.route import HostAnswer, HostStatus
from engine.tls.policy import Fault
from engine.tls.sts import MAX_POLICY, StsPolicy
from engine.tls.sts_fetch import https_context
from engine.tls.sts_policies import StsAnswer, StsPolicies
from engine.tls.sts_store import StsStore
from tests.support.certificates import Identity, authority, make, server_context, stranger, write_authorities
from tests.support.clock import ManualClock
from tests.support.dns_answers import FakeResolver
from tests.support.https_server import PolicyServer, page

DOMAIN = "example.org"
DAY_S = 86_400
TEXT = b"version: STSv1\nmode: enforce\nmx: *.example.net\nmax_age: 604800\n"
POLICY = StsPolicy(DOMAIN, "enforce", ("*.example.net",), 604_800)
SITE = make("mta-sts.example.org", issuer=authority())
WRONG_SITE = make("www.example.org", issuer=authority())
OLD_SITE = make("mta-sts.example.org", issuer=authority(), days=(-9, -1))
STRANGE_SITE = make("mta-sts.example.org", issuer=stranger())
NAMELESS_SITE = make("mta-sts.example.org", issuer=authority(), names=())


class Bed:
    def __init__(self, folder: Path, server: PolicyServer | None) -> None:
        self.clock = ManualClock()
        self.dns = FakeResolver()
        self.announce("1")
        self.folder = folder
        self.server = server
        self.policies = self.start()

    def start(self) -> StsPolicies:
        """As after a restart: nothing is left but the file."""

        async def addresses(host: str) -> HostAnswer:
            assert host == f"mta-sts.{DOMAIN}"
            if self.server is None:
                return HostAnswer(HostStatus.FAILED, reason="SERVFAIL")
            return HostAnswer(HostStatus.USABLE, ((2, "127.0.0.1"),))

        return StsPolicies(
            resolver=self.dns,
            addresses=addresses,
            store=StsStore(self.folder / "mta-sts.sqlite"),
            context=https_context(write_authorities(self.folder / "ca.pem", authority())),
            clock=self.clock,
            timeout_s=20 if self.server is None or self.server.answer is not None else 3,  # it says nothing
            limit=10,
            port=self.server.port if self.server else 1,
        )

    def announce(self, id_: str | None, status: Status = Status.FOUND) -> None:
        texts = (f"v=STSv1; id={id_};",) if id_ is not None else ()
        self.dns.text_of[f"_mta-sts.{DOMAIN}"] = TextAnswer(status, texts, 60.0)

    async def get(self) -> StsAnswer:
        return await self.policies.get(DOMAIN)


def run(
    folder: Path,
    story: Callable[[Bed, PolicyServer], Coroutine[Any, Any, None]],
    *,
    answer: bytes | None = page(TEXT),
    site: Identity = SITE,
    keeps_open: bool = False,
) -> None:
    async def go() -> None:
        async with PolicyServer(server_context(site), answer, keeps_open=keeps_open) as server:
            await story(Bed(folder, server), server)

    asyncio.run(go())


def test_fetched_once_and_kept(tmp_path: Path) -> None:
    async def story(bed: Bed, server: PolicyServer) -> None:
        assert await bed.get() == StsAnswer(POLICY)
        assert bed.policies.cached(DOMAIN) == StsAnswer(POLICY)
        (request,) = server.requests
        assert request.startswith("GET /.well-known/mta-sts.txt HTTP/1.1\r\nHost: mta-sts.example.org\r\n")
        bed.clock.advance(4000)
        assert await bed.get() == StsAnswer(POLICY)
        assert len(server.requests) == 1, "the record has the same id"
        bed.announce("2")
        server.answer = page(TEXT.replace(b"enforce", b"testing"))
        bed.clock.advance(4000)
        found = (await bed.get()).policy
        assert found is not None
        assert found.mode == "testing"

    run(tmp_path, story)


def test_no_record_no_fetch(tmp_path: Path) -> None:
    async def story(bed: Bed, server: PolicyServer) -> None:
        bed.announce(None, Status.MISSING)
        assert await bed.get() == StsAnswer()
        assert not server.requests

    run(tmp_path, story)


@pytest.mark.parametrize("how", ["gone", "failing", "malformed", "unreachable", "broken", "redirected"])
def test_what_fails_later_does_not_switch_the_policy_off(tmp_path: Path, how: str) -> None:
    """Also over a restart: the policy is on disk until its max_age is over."""

    async def story(bed: Bed, server: PolicyServer) -> None:
        assert await bed.get() == StsAnswer(POLICY)
        if how == "gone":
            bed.announce(None, Status.MISSING)
        elif how == "failing":
            bed.announce(None, Status.FAILED)
        elif how == "malformed":
            bed.announce("no id, but spaces")
        else:
            bed.announce("2")
        if how == "unreachable":
            bed.server = None
        elif how == "broken":
            server.answer = page(b"nonsense")
        elif how == "redirected":
            server.answer = page(b"", status="301 Moved", more="Location: https://elsewhere.test/\r\n")
        bed.policies = bed.start()
        assert (await bed.get()).policy == POLICY
        bed.clock.advance(6 * DAY_S)
        assert (await bed.get()).policy == POLICY
        bed.clock.advance(1 * DAY_S + 3700)
        assert (await bed.get()).policy is None, "its time is over"

    run(tmp_path, story)


def test_refreshed_every_day_so_that_it_does_not_run_out(tmp_path: Path) -> None:
    async def story(bed: Bed, server: PolicyServer) -> None:
        for _ in range(10):
            assert (await bed.get()).policy == POLICY
            bed.clock.advance(DAY_S)
        assert len(server.requests) == 10
        bed.server = None
        bed.policies = bed.start()
        bed.clock.advance(5 * DAY_S)
        assert (await bed.get()).policy == POLICY

    run(tmp_path, story)


def test_a_policy_is_not_kept_beyond_its_time_by_the_ttl_of_its_record(tmp_path: Path) -> None:
    async def story(bed: Bed, server: PolicyServer) -> None:
        bed.dns.text_of[f"_mta-sts.{DOMAIN}"] = TextAnswer(Status.FOUND, ("v=STSv1; id=1;",), 3600.0)
        assert (await bed.get()).policy is not None
        bed.server = None
        bed.clock.advance(599)
        assert (await bed.get()).policy is not None
        bed.clock.advance(2)
        assert (await bed.get()).policy is None

    run(tmp_path, story, answer=page(TEXT.replace(b"604800", b"600")))


def test_a_record_that_cannot_be_asked_for_is_not_asked_for_at_once_again(tmp_path: Path) -> None:
    async def story(bed: Bed, server: PolicyServer) -> None:
        bed.announce(None, Status.FAILED)
        for _ in range(3):
            assert await bed.get() == StsAnswer()
            bed.clock.advance(90)
        assert len(bed.dns.asked) == 1

    run(tmp_path, story)


def test_mode_none_replaces_what_was_stored(tmp_path: Path) -> None:
    async def story(bed: Bed, server: PolicyServer) -> None:
        assert (await bed.get()).policy == POLICY
        server.answer = page(b"version: STSv1\nmode: none\nmax_age: 86400\n")
        bed.announce("2")
        bed.clock.advance(4000)
        assert await bed.get() == StsAnswer()
        bed.policies = bed.start()
        assert await bed.get() == StsAnswer()

    run(tmp_path, story)


BAD_ANSWERS = {
    "redirect": page(TEXT, status="302 Found", more="Location: https://elsewhere.test/\r\n"),
    "missing": page(b"", status="404 Not Found"),
    "html": page(TEXT, kind="text/html"),
    "no type": page(TEXT).replace(b"Content-Type", b"X-Type"),
    "too large": page(b"x" * (MAX_POLICY + 1)),
    "endless": b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n" + b"x" * (MAX_POLICY + 9),
    "cut": page(TEXT)[:-5],
    "gzip": page(TEXT, more="Content-Encoding: gzip\r\n"),
    "huge head": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
    "not http": b"220 smtp.example.org ESMTP\r\n\r\n",
    "chunk bomb": b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n",
    "many chunks": b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
    + (b"400\r\n" + b"x" * 1024 + b"\r\n") * (MAX_POLICY // 1024 + 1)
    + b"0\r\n\r\n",
    "bad chunk": b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "negative": page(TEXT).replace(b"Content-Length: ", b"Content-Length: -"),
    "silence": None,
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_a_fetch_that_fails_is_no_policy_and_is_reported(tmp_path: Path, name: str) -> None:
    async def story(bed: Bed, server: PolicyServer) -> None:
        answer = await bed.get()
        assert answer.policy is None
        assert answer.fault is not None
        assert answer.fault.fault is Fault.STS_FETCH, answer.fault
        assert len(server.requests) == 1
        await bed.get()
        assert len(server.requests) == 1, "not asked again at once"
        server.answer = page(TEXT)
        bed.clock.advance(301)
        assert await bed.get() == StsAnswer(POLICY)

    run(tmp_path, story, answer=BAD_ANSWERS[name])


def test_a_text_that_is_no_policy(tmp_path: Path) -> None:
    async def story(bed: Bed, _: PolicyServer) -> None:
        answer = await bed.get()
        assert answer.policy is None
        assert answer.fault is not None
        assert answer.fault.fault is Fault.STS_INVALID

    run(tmp_path, story, answer=page(b"version: STSv1\nmode: perhaps\nmax_age: 1\n"))


@pytest.mark.parametrize("site", [WRONG_SITE, OLD_SITE, STRANGE_SITE, NAMELESS_SITE])
def test_a_site_that_cannot_prove_its_name(tmp_path: Path, site: Identity) -> None:
    async def story(bed: Bed, server: PolicyServer) -> None:
        answer = await bed.get()
        assert answer.policy is None
        assert answer.fault is not None
        assert answer.fault.fault is Fault.STS_WEBPKI
        assert not server.requests

    run(tmp_path, story, site=site)


@pytest.mark.parametrize(
    "answer",
    [
        page(TEXT),
        page(TEXT, kind="Text/Plain; charset=utf-8"),
        b"HTTP/1.1 200 OK\r\ncontent-type:text/plain\r\ntransfer-encoding: chunked\r\n\r\n5\r\n"
        + TEXT[:5]
        + b"\r\n%x;ext=1\r\n" % (len(TEXT) - 5)
        + TEXT[5:]
        + b"\r\n0\r\n\r\n",
    ],
)
def test_a_site_that_keeps_the_connection_open(tmp_path: Path, answer: bytes) -> None:
    async def story(bed: Bed, _: PolicyServer) -> None:
        assert await bed.get() == StsAnswer(POLICY)

    run(tmp_path, story, answer=answer, keeps_open=True)


def test_a_body_that_ends_with_the_connection(tmp_path: Path) -> None:
    async def story(bed: Bed, _: PolicyServer) -> None:
        assert await bed.get() == StsAnswer(POLICY)

    run(tmp_path, story, answer=b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n" + TEXT)


def test_a_damaged_file_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "mta-sts.sqlite").write_bytes(b"this is not a database, whatever its name says" * 99)

    async def story(bed: Bed, _: PolicyServer) -> None:
        assert await bed.get() == StsAnswer(POLICY)

    run(tmp_path, story)
    assert (tmp_path / "mta-sts.sqlite.damaged").exists()


def test_two_processes_share_the_file(tmp_path: Path) -> None:
    one, other = StsStore(tmp_path / "x.sqlite"), StsStore(tmp_path / "x.sqlite")
    one.put(POLICY, "1", 1000)
    stored = other.get(DOMAIN, 2000)
    assert stored is not None
    assert (stored.policy, stored.id, stored.expires_ms) == (POLICY, "1", 1000 + 604_800_000)
    assert other.get(DOMAIN, 1000 + 604_800_000) is None
    assert one.get("another.org", 2000) is None, "a policy belongs to its domain"


def test_the_store_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.tls.sts_store.MAX_POLICIES", 5)
    store = StsStore(tmp_path / "x.sqlite")
    for n in range(20):
        store.put(StsPolicy(f"d{n}.test", "enforce", ("mx.test",), 1000 + n), "1", 0)
    assert [n for n in range(20) if store.get(f"d{n}.test", 1)] == [15, 16, 17, 18, 19]


def test_the_https_context_is_strict() -> None:
    context = https_context(None)
    assert (context.check_hostname, context.verify_mode) == (True, ssl.CERT_REQUIRED)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2

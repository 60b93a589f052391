"""Reports to https addresses, over real TLS: what is posted, to whom never, and what is tried again."""

import asyncio
import gzip
import json
import ssl
from pathlib import Path

import pytest

from engine.tls.report_post import Place, PostFailed, places, post_report
from engine.tls.reporter import SPREAD_S
from tests.support.certificates import authority, make, server_context, write_authorities
from tests.support.https_server import PolicyServer, page
from tests.unit.tls.test_reports import Bed

HOST = "reports.test"
OK = page(b"", status="201 Created")


def trusting(tmp_path: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=write_authorities(tmp_path / "ca.pem", authority()))


def server(answer: bytes | None, name: str = HOST) -> PolicyServer:
    return PolicyServer(server_context(make(name, issuer=authority())), answer)


async def post(it: PolicyServer, tmp_path: Path, timeout_s: float = 60.0, target: str = "/r?a=b") -> None:
    place = Place(HOST, it.port, target)
    await post_report(place, b"data", ["127.0.0.1"], context=trusting(tmp_path), timeout_s=timeout_s)


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("https://reports.test/v1?x=1", Place(HOST, 443, "/v1?x=1")),
        ("HTTPS://Reports.Test:8443", Place(HOST, 8443, "/")),
        ("https://reports.test./%21a#x", Place(HOST, 443, "/%21a")),
        ("http://reports.test/", None),
        ("mailto:a@reports.test", None),
        ("https://user:secret@reports.test/", None),
        ("https://localhost/", None),
        ("https://127.0.0.1/", None),
        ("https://[::1]/", None),
        ("https://2130706433/", None),
        ("https://reports.test:0x50/", None),
        ("https://reports.test:99999/", None),
        ("https://reports.test/a b", None),
        ("https://reports.test/\r\nX: y", None),
        ("https://reports.test/" + "a" * 2000, None),
        ("https://bücher.test/", None),
        ("https:///x", None),
    ],
)
def test_where_a_report_may_go(uri: str, place: Place | None) -> None:
    assert places([uri]) == ({} if place is None else {uri: place})


def test_one_request(tmp_path: Path) -> None:
    async def go() -> None:
        async with server(OK) as it:
            await post(it, tmp_path)
            (head,) = it.requests
            assert head.startswith("POST /r?a=b HTTP/1.1\r\n")
            assert f"\r\nHost: {HOST}:{it.port}\r\n" in head
            assert "\r\nContent-Type: application/tlsrpt+gzip\r\n" in head
            assert it.bodies == [b"data"]

    asyncio.run(go())


@pytest.mark.parametrize(
    ("answer", "name", "text"),
    [
        (page(b"", status="302 Found", more="Location: https://127.0.0.1/\r\n"), HOST, "status 302"),
        (page(b"", status="500 No"), HOST, "status 500"),
        (b"HTTP/1.1 200 OK\r\n", HOST, "ends in the middle"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", HOST, "too long"),
        (b"220 mx.example ESMTP\r\n\r\n", HOST, "not an HTTP answer"),
        (b"", HOST, "ends in the middle"),
        (OK, "other.test", "Hostname mismatch"),
    ],
)
def test_what_is_no_success(tmp_path: Path, answer: bytes, name: str, text: str) -> None:
    async def go() -> None:
        async with server(answer, name) as it:
            with pytest.raises(PostFailed, match=text):
                await post(it, tmp_path)
            if name != HOST:
                assert it.bodies == [], "nothing is told to whoever it is"

    asyncio.run(go())


def test_an_interim_answer_and_a_stall(tmp_path: Path) -> None:
    async def go() -> None:
        async with server(b"HTTP/1.1 100 Continue\r\n\r\n" + OK) as it:
            await post(it, tmp_path)
            it.answer = None
            with pytest.raises(PostFailed, match="no answer within"):
                await post(it, tmp_path, timeout_s=0.5)

    asyncio.run(go())


def test_a_report_is_posted_within_hours_and_once(tmp_path: Path) -> None:
    async def go() -> None:
        async with server(page(b"", status="503 Later")) as it:
            bed = Bed(tmp_path / "files", trusting(tmp_path))
            uri = f"https://{HOST}:{it.port}/v1"
            bed.ask("sts.test", f"mailto:tls@sts.test,{uri},https://nowhere.example/")
            bed.clock.advance(86_400)
            assert await bed.reporter.round() == 1
            assert len(bed.accepted) == 1
            assert it.bodies == [], "not all reporters at midnight"
            bed.clock.advance(SPREAD_S)
            assert await bed.reporter.round() == 0
            assert bed.reporter.counts == {"not-posted": 2}
            it.answer = OK
            await bed.reporter.round()
            assert len(it.bodies) == 1, "not at once"
            bed.clock.advance(SPREAD_S)
            await bed.reporter.round()
            assert bed.reporter.counts == {"not-posted": 3, "posted": 1}
            for _ in range(30):
                bed.clock.advance(SPREAD_S)
                await bed.reporter.round()
            assert bed.reporter.counts["posted"] == 1
            assert bed.ledger.book.ended_days(2**60) == [], "not for ever"
            assert bed.reporter._postings == {}
            assert len(bed.accepted) == 1
            (file,) = (tmp_path / "files").iterdir()
            assert it.bodies[1] == file.read_bytes()
            assert json.loads(gzip.decompress(it.bodies[1]))["policies"]

    asyncio.run(go())


def test_without_a_sender_nothing_is_posted(tmp_path: Path) -> None:
    bed = Bed(tmp_path, sender="")
    bed.ask("sts.test", "https://reports.test/")
    assert bed.next_day() == 1
    assert bed.reporter._postings == {}

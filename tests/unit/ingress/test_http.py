"""The unsubscribe endpoint over real connections."""

import asyncio
import http.client
import socket
import ssl
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from engine.bounces.tokens import DAY_MS, TokenKeys
from engine.bounces.unsubscribe import make_token
from engine.config.bounces import IngressConfig
from engine.config.suppression import SuppressionConfig
from engine.config.unsubscribe import UnsubscribeConfig
from engine.ingress import http as http_listener
from engine.ingress import unsubscribe
from engine.ingress.http import links_listener
from engine.ingress.unsubscribe import UnsubscribeDesk
from engine.spool.errors import SpoolFull
from engine.values.suppression import Reason, Suppression, decode_rows
from tests.support.certificates import authority, make, write_authorities, write_pair
from tests.support.clock import ManualClock

KEYS = TokenKeys([(1, b"k" * 32)])
ONE_CLICK = "List-Unsubscribe=One-Click"


class Regions:
    """`away`: what each region that does not answer raises."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, Suppression]] = []
        self.away: dict[str, Exception] = {}
        self.hold: asyncio.Event | None = None

    async def unsubscribe(self, region: str, rows: bytes) -> int:
        if self.hold is not None:
            await self.hold.wait()
        if region in self.away:
            raise self.away[region]
        (row,) = decode_rows(rows)
        self.rows.append((region, row))
        return 1


class Running:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.regions = Regions()
        self.desk = UnsubscribeDesk(
            UnsubscribeConfig(),
            SuppressionConfig(),
            KEYS,
            regions=["eu", "us"],
            port=self.regions,
            clock=self.clock,
        )
        self.port = 0

    def path(self, address: str = "Ann@example.org") -> str:
        token = make_token(
            KEYS,
            tenant="acme",
            stream=2,
            address=address,
            message_id=9,
            accepted_ms=self.clock.wall_ms(),
        )
        return f"/u/{token}"

    async def ask(
        self, method: str, path: str, body: str | None = None, **headers: str
    ) -> tuple[int, str, Any]:
        def run() -> tuple[int, str, Any]:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            try:
                connection.request(method, path, body, headers)
                response = connection.getresponse()
                return response.status, response.read().decode(), response.headers
            finally:
                connection.close()

        return await asyncio.to_thread(run)


@asynccontextmanager
async def listening(**ingress: Any) -> AsyncIterator[Running]:
    running = Running()
    listener = links_listener(running.desk, IngressConfig(**ingress), ["/u"])
    running.port = await listener.start("127.0.0.1", 0)
    try:
        yield running
    finally:
        await listener.stop()


def test_get_shows_a_button_and_changes_nothing() -> None:
    async def run() -> None:
        async with listening() as it:
            for method in ("GET", "HEAD"):
                status, text, headers = await it.ask(method, it.path("<b>@example.org"))
                assert status == 200
                assert headers["Cache-Control"] == "no-store"
                assert "script" not in text
                assert headers.get("Set-Cookie") is None
            _, text, _ = await it.ask("GET", it.path('"<b>"@example.org'))
            assert '<form method="post">' in text
            assert "&lt;b&gt;" in text
            assert it.regions.rows == []

    asyncio.run(run())


@pytest.mark.parametrize("body", [ONE_CLICK, None, "", "x" * 100_000])
def test_post_unsubscribes_whatever_it_carries(body: str | None) -> None:
    async def run() -> None:
        async with listening() as it:
            try:
                status, text, _ = await it.ask("POST", it.path(), body)
            except (BrokenPipeError, ConnectionResetError):
                assert body is not None  # nobody waits for content that is not read
                assert len(body) > 50_000
            else:
                assert status == 200
                assert "Unsubscribed" in text
            ((region, row),) = it.regions.rows
            assert region == "eu"
            assert row[:4] == ("ann@example.org", "acme", 2, Reason.UNSUBSCRIBE)
            assert row.message_id == 9

    asyncio.run(run())


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/u/abc", 404),
        ("POST", "/u/abc", 404),
        ("GET", "/", 404),
        ("POST", "/u/abc/", 404),  # RFC 8058 section 3.1: never a redirect
        ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404),
        ("GET", "/u/" + "a" * 5000, 404),
        ("DELETE", "/u/abc", 405),
    ],
)
def test_what_is_no_link(method: str, path: str, status: int) -> None:
    async def run() -> None:
        async with listening() as it:
            assert (await it.ask(method, path))[0] == status
            assert it.regions.rows == []

    asyncio.run(run())


def test_an_old_link() -> None:
    async def run() -> None:
        async with listening() as it:
            path = it.path()
            it.clock.advance(367 * DAY_MS / 1000)
            assert (await it.ask("POST", path))[0] == 410
            assert it.regions.rows == []

    asyncio.run(run())


def test_the_next_region_takes_it_and_without_any_nothing_is_confirmed() -> None:
    async def run() -> None:
        async with listening() as it:
            it.regions.away["eu"] = SpoolFull("disk", 0, 1)
            assert (await it.ask("POST", it.path()))[0] == 200
            assert [region for region, _ in it.regions.rows] == ["us"]
            it.regions.away["us"] = TimeoutError("us")
            status, text, headers = await it.ask("POST", it.path())
            assert (status, headers["Retry-After"]) == (503, "60")
            assert '<form method="post">' in text

    asyncio.run(run())


def test_guessing_is_slowed_down_and_true_links_are_not() -> None:
    async def run() -> None:
        async with listening() as it:
            seen = [(await it.ask("GET", "/u/guess"))[0] for _ in range(unsubscribe.BAD_TOKENS + 2)]
            assert seen == [404] * unsubscribe.BAD_TOKENS + [429] * 2
            assert (await it.ask("POST", it.path(), ONE_CLICK))[0] == 200
            it.clock.advance(6)
            assert (await it.ask("GET", "/u/guess"))[0] == 404

    asyncio.run(run())


def test_the_memory_of_clients_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unsubscribe, "MAX_CLIENTS", 3)
    desk = Running().desk
    for number in range(10):
        desk.look("x", f"192.0.2.{number}")
    assert len(desk._bad) == 3


def test_requests_under_way_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unsubscribe, "MAX_UNDER_WAY", 2)

    async def run() -> None:
        async with listening() as it:
            it.regions.hold = asyncio.Event()
            waiting = [asyncio.create_task(it.ask("POST", it.path())) for _ in range(2)]
            async with asyncio.timeout(60):
                while it.desk._under_way < 2:
                    await asyncio.sleep(0.01)
            assert (await it.ask("POST", it.path()))[0] == 503
            it.regions.hold.set()
            assert [status for status, _, _ in await asyncio.gather(*waiting)] == [200, 200]

    asyncio.run(run())


def test_a_client_that_breaks_the_protocol_is_not_worth_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with listening() as it:
            for rest in (b"GET / HTTP/1.1\r\n\r\n", b"\x00\xff\r\n\r\n", b"zz\r\n"):
                reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
                writer.write(b"GET /u/x HTTP/1.1\r\nHost: a\r\n\r\n" + rest)
                await writer.drain()
                writer.write_eof()
                await reader.read()
                writer.close()
            assert (await it.ask("POST", it.path()))[0] == 200

    asyncio.run(run())
    assert [record.getMessage() for record in caplog.records if record.levelname != "DEBUG"] == []


def test_a_bug_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with listening() as it:
            it.regions.away["eu"] = ZeroDivisionError("bug")
            assert (await it.ask("POST", it.path()))[0] == 500

    asyncio.run(run())
    assert any(record.exc_info for record in caplog.records)


def test_it_speaks_tls_and_takes_a_new_certificate(tmp_path: Path) -> None:
    certificate, key = tmp_path / "news.pem", tmp_path / "news.key"
    write_pair(make("news.example.com", issuer=authority()), certificate, key)
    trusting = ssl.create_default_context(cafile=write_authorities(tmp_path / "ca.pem", authority()))

    async def run() -> None:
        async with listening(http_certificate=certificate, http_key=key) as it:

            def ask(method: str) -> tuple[int, bytes]:
                plain = socket.create_connection(("127.0.0.1", it.port), timeout=60)
                with trusting.wrap_socket(plain, server_hostname="news.example.com") as wrapped:
                    head = f"{method} {it.path()} HTTP/1.1\r\nHost: news.example.com\r\n"
                    wrapped.sendall(f"{head}Content-Length: 0\r\nConnection: close\r\n\r\n".encode())
                    answer = b"".join(iter(lambda: wrapped.recv(4096), b""))
                    shown = wrapped.getpeercert(True)
                    assert shown is not None
                    return int(answer.split()[1]), shown

            status, first = await asyncio.to_thread(ask, "GET")
            assert status == 200
            certificate.write_bytes(b"half")
            assert await asyncio.to_thread(ask, "GET") == (200, first)
            write_pair(make("news.example.com", issuer=authority()), certificate, key)
            status, second = await asyncio.to_thread(ask, "POST")
            assert (status, len(it.regions.rows)) == (200, 1)
            assert second != first
            old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                old.maximum_version = ssl.TLSVersion.TLSv1_1
            with pytest.raises(OSError):  # noqa: PT011 - whatever the machine's OpenSSL makes of it
                await asyncio.open_connection("127.0.0.1", it.port, ssl=old)

    asyncio.run(run())


def test_a_handshake_that_does_not_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_listener, "HANDSHAKE_S", 0.5)
    write_pair(make("news.example.com"), tmp_path / "pem", tmp_path / "key")

    async def run() -> None:
        async with listening(http_certificate=tmp_path / "pem", http_key=tmp_path / "key") as it:
            reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
            with suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 30) == b""
            writer.close()

    asyncio.run(run())


def test_connections_above_the_limit_are_closed() -> None:
    async def run() -> None:
        async with listening(max_connections=3) as it:
            pairs = [await asyncio.open_connection("127.0.0.1", it.port) for _ in range(3)]
            await asyncio.sleep(0)
            reader, writer = await asyncio.open_connection("127.0.0.1", it.port)
            with suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
            for _, other in pairs:
                other.close()
            async with asyncio.timeout(60):
                while not it.regions.rows:  # the others' ends are on their way
                    with suppress(ConnectionError):
                        await it.ask("POST", it.path())

    asyncio.run(run())


@pytest.mark.parametrize(("proxies", "client"), [(["127.0.0.1"], "203.0.113.5"), ([], "127.0.0.1")])
def test_the_client_behind_a_proxy(proxies: list[str], client: str) -> None:
    """Only a proxy that the configuration names is believed."""

    async def run() -> None:
        async with listening(proxies=proxies) as it:
            await it.ask("GET", "/u/guess", **{"X-Forwarded-For": "203.0.113.5"})
            assert list(it.desk._bad) == [client]

    asyncio.run(run())

"""Opening sessions: TLS that cannot be avoided, certificates, AUTH, and the odd ends of a handshake."""

import asyncio
import socket
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from engine.smtp.conversation import Injected, Watch
from engine.smtp.opener import Opened, OpenFailure, SessionOpener, Target, open_session
from engine.smtp.policy import FailureReason, Phase, classify
from engine.tls.policy import ENCRYPT, PLAIN, VERIFIED, Fault, HostPolicy
from engine.values.outcome import OutcomeKind
from tests.support.tls_server import TlsServer

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(scope="module")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=mx.test"
    command += " -addext subjectAltName=DNS:mx.test"
    subprocess.run(
        [*command.split(), "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context, folder / "cert.pem"


@pytest.fixture(scope="module")
def server_context(tls_files: tuple[ssl.SSLContext, Path]) -> ssl.SSLContext:
    return tls_files[0]


async def opened(
    script: Script, *, tls: HostPolicy = ENCRYPT, opener: SessionOpener = open_session, **options: str
) -> Opened | OpenFailure:
    server = await asyncio.start_server(script, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    target = Target("mx.test", "127.0.0.1", port, "127.0.0.2", "mta.example.com", tls, **options)
    result = await opener(target, timeout_s=20)
    server.close()
    if isinstance(result, Opened):
        assert (result.transport.get_extra_info("sslcontext") is not None) == (tls != PLAIN)
        assert (result.tls is not None) == (tls != PLAIN)
        result.transport.abort()
    await asyncio.sleep(0.01)
    return result


def talk(*lines: bytes, tls: ssl.SSLContext | None = None, after: tuple[bytes, ...] = ()) -> Script:
    """A server that greets, answers each command with the next line, then perhaps speaks TLS and goes on."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(lines[0])
        for line in lines[1:]:
            await reader.readline()
            writer.write(line)
        if tls is not None:
            await writer.start_tls(tls)
            for line in after:
                await reader.readline()
                writer.write(line)
        await reader.read()
        writer.close()

    return script


HELLO = b"250-mx.test\r\n250-STARTTLS\r\n250 PIPELINING\r\n"
SECOND_HELLO = b"250-mx.test\r\n250 CHUNKING\r\n"


def test_starttls_and_the_second_ehlo_counts(server_context: ssl.SSLContext) -> None:
    script = talk(b"220 hi\r\n", HELLO, b"220 go\r\n", tls=server_context, after=(SECOND_HELLO,))
    result = asyncio.run(opened(script))
    assert isinstance(result, Opened)
    assert "chunking" in result.extensions
    assert "pipelining" not in result.extensions, "what was said in the clear is forgotten"


INJECTIONS = [b"250-mx.test\r\n250 EVIL\r\n", b"x", b"220 go\r\n", b"\r\n", b"\x16\x03\x01garbage\r\n"]


@pytest.mark.parametrize("injected", INJECTIONS)
def test_plaintext_behind_the_220_is_a_failure(server_context: ssl.SSLContext, injected: bytes) -> None:
    script = talk(b"220 hi\r\n", HELLO, b"220 go\r\n" + injected, tls=server_context, after=(SECOND_HELLO,))
    result = asyncio.run(opened(script))
    assert isinstance(result, OpenFailure)
    assert (result.phase, result.answer) == (Phase.STARTTLS, FailureReason.INJECTED)
    assert result.fault is not None
    assert result.fault.fault is Fault.INJECTED


def test_plaintext_that_waits_in_the_socket_is_injected() -> None:
    """What came between the 220 and the handshake, in a segment of its own."""
    ours, theirs = socket.socketpair()

    class Transport:
        def set_protocol(self, protocol: Any) -> None:
            self.protocol = protocol

        def write(self, data: bytes) -> None:
            self.protocol.data_received(b"220 go\r\n")
            theirs.send(b"250 EVIL\r\n")

        def pause_reading(self) -> None:
            pass

        def get_extra_info(self, name: str) -> Any:
            return ours if name == "socket" else None

    async def run() -> None:
        watch = Watch(Transport(), asyncio.Protocol())
        with pytest.raises(Injected):
            await watch.start_tls(ssl.create_default_context(), "mx.test")

    with ours, theirs:
        asyncio.run(run())


def test_plaintext_that_comes_a_little_later_is_a_failure_too(server_context: ssl.SSLContext) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hi\r\n")
        await reader.readline()
        writer.write(HELLO)
        await reader.readline()
        writer.write(b"220 go\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(b"250-mx.test\r\n250 EVIL\r\n")
        await reader.read()
        writer.close()

    result = asyncio.run(opened(script))
    assert isinstance(result, OpenFailure)
    assert (result.phase, result.answer) == (Phase.STARTTLS, FailureReason.TLS_FAILED)


@pytest.mark.parametrize("tls", [ENCRYPT, PLAIN], ids=["tls", "plain"])
@pytest.mark.parametrize(
    ("greeting", "hello"),
    [
        (b"220 hi\r\n250 early\r\n", HELLO),
        (b"220 hi\r\n", HELLO + b"220 go\r\n"),
        (b"220 hi\r\n", HELLO + b"22"),
    ],
)
def test_a_reply_to_nothing_ends_the_opening(greeting: bytes, hello: bytes, tls: HostPolicy) -> None:
    result = asyncio.run(opened(talk(greeting, hello, hello), tls=tls))
    assert isinstance(result, OpenFailure)
    assert result.answer is FailureReason.PROTOCOL


@pytest.mark.parametrize("answer", [b"454 4.7.0 not now\r\n", b"500 what\r\n", b"554 5.7.1 no\r\n"])
def test_starttls_declined_is_a_deferral_about_tls(answer: bytes) -> None:
    result = asyncio.run(opened(talk(b"220 hi\r\n", HELLO, answer)))
    assert isinstance(result, OpenFailure)
    assert (result.phase, result.answer) == (Phase.STARTTLS, FailureReason.NO_TLS)
    assert (result.reply.code, result.reply.enhanced) == (0, "4.7.10")
    assert answer.decode().strip() in result.reply.text
    assert classify(result.phase, result.answer).kind is OutcomeKind.DEFERRED


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_tls_1_1_is_not_enough(tls_files: tuple[ssl.SSLContext, Path]) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old.load_cert_chain(tls_files[1], tls_files[1].with_name("key.pem"))
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version = ssl.TLSVersion.TLSv1
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    result = asyncio.run(opened(talk(b"220 hi\r\n", HELLO, b"220 go\r\n", tls=old)))
    assert isinstance(result, OpenFailure)
    assert (result.phase, result.answer) == (Phase.STARTTLS, FailureReason.TLS_FAILED)


def test_a_session_is_resumed_and_says_so(server_context: ssl.SSLContext) -> None:
    async def twice() -> list[bool]:
        opener = SessionOpener()
        script = talk(b"220 hi\r\n", HELLO, b"220 go\r\n", tls=server_context, after=(SECOND_HELLO,))
        results = [await opened(script, opener=opener) for _ in range(2)]
        assert all(isinstance(result, Opened) and result.tls for result in results)
        return [result.tls.resumed for result in results if isinstance(result, Opened) and result.tls]

    assert asyncio.run(twice()) == [False, True]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(twice()) == [False, True]


def test_what_the_handshake_gave(server_context: ssl.SSLContext) -> None:
    script = talk(b"220 hi\r\n", HELLO, b"220 go\r\n", tls=server_context, after=(SECOND_HELLO,))
    result = asyncio.run(opened(script))
    assert isinstance(result, Opened)
    assert result.tls is not None
    assert (result.tls.version, result.tls.verified, result.tls.fault) == ("TLSv1.3", "", None)
    assert result.tls.cipher.startswith("TLS_")


def test_starttls_not_offered() -> None:
    result = asyncio.run(opened(talk(b"220 hi\r\n", b"250 mx.test\r\n")))
    assert isinstance(result, OpenFailure)
    assert (result.phase, result.answer) == (Phase.STARTTLS, FailureReason.NO_TLS)


def test_garbage_instead_of_a_handshake() -> None:
    result = asyncio.run(opened(talk(b"220 hi\r\n", HELLO, b"220 go\r\n" + b"\x16\x03garbage" * 9)))
    assert isinstance(result, OpenFailure)
    assert result.phase is Phase.STARTTLS
    assert isinstance(result.answer, FailureReason)


def test_credentials_go_only_to_a_verified_host(server_context: ssl.SSLContext) -> None:
    script = talk(b"220 hi\r\n", HELLO, b"220 go\r\n", tls=server_context)
    result = asyncio.run(opened(script, tls=VERIFIED, username="user", password="secret"))
    assert isinstance(result, OpenFailure)
    assert result.phase is Phase.STARTTLS
    assert "secret" not in result.reply.text


def test_auth_over_a_verified_session(tls_files: tuple[ssl.SSLContext, Path]) -> None:
    opener = SessionOpener(tls_files[1])
    server_context = tls_files[0]
    hello = b"250-mx.test\r\n250 AUTH PLAIN\r\n"
    good = talk(
        b"220 hi\r\n", HELLO, b"220 go\r\n", tls=server_context, after=(hello, b"235 2.7.0 welcome\r\n")
    )
    result = asyncio.run(opened(good, tls=VERIFIED, opener=opener, username="user", password="secret"))
    assert isinstance(result, Opened)
    bad = talk(b"220 hi\r\n", HELLO, b"220 go\r\n", tls=server_context, after=(hello, b"535 5.7.8 no\r\n"))
    result = asyncio.run(opened(bad, tls=VERIFIED, opener=opener, username="user", password="secret"))
    assert isinstance(result, OpenFailure)
    assert (result.phase, result.reply.code) == (Phase.AUTH, 535)


@pytest.mark.parametrize("greeting", [b"421 4.3.2 busy\r\n", b"554 5.7.1 no\r\n"])
def test_the_greeting_declines(greeting: bytes) -> None:
    result = asyncio.run(opened(talk(greeting), tls=PLAIN))
    assert isinstance(result, OpenFailure)
    assert (result.phase, result.reply.code) == (Phase.GREETING, int(greeting[:3]))


def test_a_multi_line_refusal_is_one_sanitised_text() -> None:
    result = asyncio.run(opened(talk(b"554-5.7.1 line one\r\n554 5.7.1 line\x1b two\r\n"), tls=PLAIN))
    assert isinstance(result, OpenFailure)
    assert (result.reply.enhanced, result.reply.text) == ("5.7.1", "line one line  two")


def test_helo_where_ehlo_is_not_known() -> None:
    script = talk(b"220 hi\r\n", b"502 5.5.1 what\r\n", b"250 mx.test\r\n")
    result = asyncio.run(opened(script, tls=PLAIN))
    assert isinstance(result, Opened)
    assert not result.extensions


@pytest.mark.parametrize("name", ["\\000" * 16 + ".test", ".mx.test", "a..test"])
def test_a_host_name_that_has_no_form_in_tls(name: str, server_context: ssl.SSLContext) -> None:
    """The DNS allows any octets in the name of an MX host."""

    async def go() -> Opened | OpenFailure:
        async with TlsServer(server_context) as server:
            target = Target(name, "127.0.0.1", server.port, "127.0.0.2", "mta.example.com", ENCRYPT)
            return await open_session(target, timeout_s=20)

    result = asyncio.run(go())
    assert isinstance(result, OpenFailure)
    assert (result.phase, result.answer) == (Phase.STARTTLS, FailureReason.TLS_FAILED)


def test_nobody_listens() -> None:
    target = Target("mx.test", "127.0.0.1", 1, "127.0.0.2", "mta.example.com", ENCRYPT)
    result = asyncio.run(open_session(target, timeout_s=1))
    assert isinstance(result, OpenFailure)
    assert (result.phase, result.answer) == (Phase.CONNECT, FailureReason.UNREACHABLE)


def test_a_silent_host() -> None:
    async def go() -> Opened | OpenFailure:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        server = await asyncio.start_server(script, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        target = Target("mx.test", "127.0.0.1", port, "127.0.0.2", "mta.example.com", ENCRYPT)
        try:
            return await open_session(target, timeout_s=0.1)
        finally:
            server.close()

    result = asyncio.run(go())
    assert isinstance(result, OpenFailure)
    assert result.answer is FailureReason.TIMEOUT

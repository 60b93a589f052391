"""Opening sessions: TLS that cannot be avoided, certificates, AUTH, and the odd ends of a handshake."""

import asyncio
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from engine.smtp import opener
from engine.smtp.opener import Opened, OpenFailure, Target, open_session
from engine.smtp.policy import FailureReason, Phase

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


async def opened(script: Script, *, tls: str = "required", **options: str) -> Opened | OpenFailure:
    server = await asyncio.start_server(script, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    target = Target("mx.test", "127.0.0.1", port, "127.0.0.2", "mta.example.com", tls, **options)
    result = await open_session(target, timeout_s=1.0)
    server.close()
    if isinstance(result, Opened):
        assert (result.transport.get_extra_info("sslcontext") is not None) == (tls == "required")
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


def test_plaintext_behind_the_220_is_not_part_of_the_session(server_context: ssl.SSLContext) -> None:
    script = talk(
        b"220 hi\r\n",
        HELLO,
        b"220 go\r\n250-mx.test\r\n250 EVIL\r\n",
        tls=server_context,
        after=(SECOND_HELLO,),
    )
    result = asyncio.run(opened(script))
    if isinstance(result, Opened):
        assert "evil" not in result.extensions
    else:
        assert result.phase is Phase.STARTTLS


@pytest.mark.parametrize("answer", [b"454 4.7.0 not now\r\n", b"500 what\r\n"])
def test_starttls_refused(answer: bytes) -> None:
    result = asyncio.run(opened(talk(b"220 hi\r\n", HELLO, answer)))
    assert isinstance(result, OpenFailure)
    assert (result.phase, result.reply.code) == (Phase.STARTTLS, int(answer[:3]))


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
    result = asyncio.run(opened(script, username="user", password="secret"))
    assert isinstance(result, OpenFailure)
    assert result.phase is Phase.STARTTLS
    assert "secret" not in result.reply.text


def test_auth_over_a_verified_session(
    tls_files: tuple[ssl.SSLContext, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    trusting = ssl.create_default_context(cafile=str(tls_files[1]))
    server_context = tls_files[0]
    monkeypatch.setattr(opener, "_VERIFYING", trusting)
    hello = b"250-mx.test\r\n250 AUTH PLAIN\r\n"
    good = talk(
        b"220 hi\r\n", HELLO, b"220 go\r\n", tls=server_context, after=(hello, b"235 2.7.0 welcome\r\n")
    )
    result = asyncio.run(opened(good, username="user", password="secret"))
    assert isinstance(result, Opened)
    bad = talk(b"220 hi\r\n", HELLO, b"220 go\r\n", tls=server_context, after=(hello, b"535 5.7.8 no\r\n"))
    result = asyncio.run(opened(bad, username="user", password="secret"))
    assert isinstance(result, OpenFailure)
    assert (result.phase, result.reply.code) == (Phase.AUTH, 535)


@pytest.mark.parametrize("greeting", [b"421 4.3.2 busy\r\n", b"554 5.7.1 no\r\n"])
def test_the_greeting_declines(greeting: bytes) -> None:
    result = asyncio.run(opened(talk(greeting), tls="disabled"))
    assert isinstance(result, OpenFailure)
    assert (result.phase, result.reply.code) == (Phase.GREETING, int(greeting[:3]))


def test_a_multi_line_refusal_is_one_sanitised_text() -> None:
    result = asyncio.run(opened(talk(b"554-5.7.1 line one\r\n554 5.7.1 line\x1b two\r\n"), tls="disabled"))
    assert isinstance(result, OpenFailure)
    assert (result.reply.enhanced, result.reply.text) == ("5.7.1", "line one line  two")


def test_helo_where_ehlo_is_not_known() -> None:
    script = talk(b"220 hi\r\n", b"502 5.5.1 what\r\n", b"250 mx.test\r\n")
    result = asyncio.run(opened(script, tls="disabled"))
    assert isinstance(result, Opened)
    assert not result.extensions


def test_nobody_listens() -> None:
    target = Target("mx.test", "127.0.0.1", 1, "127.0.0.2", "mta.example.com", "required")
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
        target = Target("mx.test", "127.0.0.1", port, "127.0.0.2", "mta.example.com", "required")
        try:
            return await open_session(target, timeout_s=0.1)
        finally:
            server.close()

    result = asyncio.run(go())
    assert isinstance(result, OpenFailure)
    assert result.answer is FailureReason.TIMEOUT

"""Fetching an MTA-STS policy (RFC 8461 section 3.3): one HTTPS GET that follows nothing and believes little.

`https://mta-sts.DOMAIN/.well-known/mta-sts.txt`, certificate good for mta-sts.DOMAIN, TLS 1.2 at least, status 200 and
nothing else (a redirect is a failure), content type text/plain, at most 64 KiB, within one deadline for everything.
The addresses come from the caller, who has judged them: a stranger's DNS must not direct the fetch at our own network.
"""

import asyncio
import ssl
from collections.abc import Sequence
from pathlib import Path

from engine.tls.policy import Fault
from engine.tls.sts import MAX_POLICY

PATH = "/.well-known/mta-sts.txt"
MAX_HEAD = 16_384
READ = 16_384


class FetchFailed(Exception):
    """`fault` is STS_FETCH or STS_WEBPKI."""

    def __init__(self, fault: Fault, text: str) -> None:
        super().__init__(fault, text)
        self.fault = fault
        self.text = text


def https_context(authorities: Path | None) -> ssl.SSLContext:
    """Verifies the name, by the system's authorities or those of a file."""
    context = ssl.create_default_context(cafile=authorities)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.hostname_checks_common_name = False
    return context


async def fetch_policy(
    domain: str, addresses: Sequence[str], *, context: ssl.SSLContext, timeout_s: float, port: int = 443
) -> bytes:
    """The policy text of a domain; raises FetchFailed."""
    failure = FetchFailed(Fault.STS_FETCH, f"mta-sts.{domain} has no address that can be used")
    try:
        async with asyncio.timeout(timeout_s):
            for address in addresses[:3]:
                try:
                    return await _get(f"mta-sts.{domain}", address, port, context)
                except FetchFailed as error:
                    failure = error
    except TimeoutError:
        raise FetchFailed(Fault.STS_FETCH, f"mta-sts.{domain}: no policy within {timeout_s:g} s") from None
    raise failure


async def _get(host: str, address: str, port: int, context: ssl.SSLContext) -> bytes:
    writer = None
    try:
        reader, writer = await asyncio.open_connection(
            address, port, ssl=context, server_hostname=host, limit=MAX_HEAD
        )
        writer.write(
            f"GET {PATH} HTTP/1.1\r\nHost: {host}\r\nAccept: text/plain\r\n"
            "User-Agent: sendfleet\r\nConnection: close\r\n\r\n".encode("ascii")
        )
        return await _answer(host, reader)
    except ssl.SSLCertVerificationError as error:
        raise FetchFailed(Fault.STS_WEBPKI, f"{host}: {error.verify_message}") from error
    except asyncio.IncompleteReadError as error:
        raise FetchFailed(Fault.STS_FETCH, f"{host}: the answer ends in the middle") from error
    except asyncio.LimitOverrunError as error:
        raise FetchFailed(Fault.STS_FETCH, f"{host}: the answer's head is too long") from error
    except OSError as error:
        raise FetchFailed(Fault.STS_FETCH, f"{host}: {error.strerror or error}") from error
    except ValueError as error:
        raise FetchFailed(Fault.STS_FETCH, f"{host}: {error}") from error
    finally:
        if writer is not None:
            writer.transport.abort()


async def _answer(host: str, reader: asyncio.StreamReader) -> bytes:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status, *lines = head.split("\r\n")
    parts = status.split(" ", 2)
    if len(parts) < 2 or parts[0] not in ("HTTP/1.0", "HTTP/1.1"):
        raise ValueError("not an HTTP answer")
    if parts[1] != "200":
        raise ValueError(f"status {parts[1][:20]}, expected 200 (redirects are not followed)")
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "text/plain":
        raise ValueError(f"content type {kind[:40]!r}, expected text/plain")
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return await _chunks(reader)
    if "transfer-encoding" in headers or headers.get("content-encoding", "identity").lower() != "identity":
        raise ValueError("an encoding that was not asked for")
    length = headers.get("content-length")
    if length is None:
        body = await reader.read(MAX_POLICY + 1)
        while body and len(body) <= MAX_POLICY and (more := await reader.read(READ)):
            body += more
        return _bounded(body)
    if not length.isascii() or not length.isdigit() or len(length) > 9 or int(length) > MAX_POLICY:
        raise ValueError(f"content length {length[:20]!r}, expected at most {MAX_POLICY}")
    return await reader.readexactly(int(length))


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while True:
        line = (await reader.readuntil(b"\r\n")).partition(b";")[0].strip()
        if not line or len(line) > 8:
            raise ValueError("a malformed chunk")
        size = int(line, 16)
        if size == 0:
            return body
        if size < 0 or len(body) + size > MAX_POLICY:
            raise ValueError(f"more than {MAX_POLICY} bytes")
        body += (await reader.readexactly(size + 2))[:-2]


def _bounded(body: bytes) -> bytes:
    if len(body) > MAX_POLICY:
        raise ValueError(f"more than {MAX_POLICY} bytes")
    return body

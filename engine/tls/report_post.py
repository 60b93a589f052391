"""Posting a TLS report to an https address (RFC 8460 sections 3 and 5.4): one request that follows nothing.

The address comes from a stranger's DNS. So the host's addresses are judged by the caller, names are verified, nothing
but the status of the answer is read, and all of it within one deadline and `MAX_HEAD` octets.
"""

import asyncio
import re
import ssl
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

CONTENT_TYPE = "application/tlsrpt+gzip"
MAX_HEAD = 16_384
MAX_ADDRESSES = 3
_TARGET = re.compile(r"[!-~]{1,2000}")
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?: |\r\n)")


class PostFailed(Exception):
    """The report was not taken; says why."""


class Place(NamedTuple):
    """Where a report is posted. `target` is what stands in the request."""

    host: str
    port: int
    target: str


def places(uris: Sequence[str]) -> dict[str, Place]:
    """Of the URIs of a record those that are https and can be posted to."""
    found = {}
    for uri in uris:
        place = _place(uri)
        if place is not None:
            found[uri] = place
    return found


def _place(uri: str) -> Place | None:
    if not _TARGET.fullmatch(uri):
        return None
    try:
        parts = urlsplit(uri)
        host, port = (parts.hostname or "").rstrip("."), parts.port or 443
    except ValueError:
        return None
    if parts.scheme.lower() != "https" or "." not in host or not re.fullmatch(r"[a-z0-9_.-]{1,253}", host):
        return None
    if "@" in parts.netloc or host.replace(".", "").isdigit():
        return None
    return Place(host, port, (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))


async def post_report(
    place: Place, data: bytes, addresses: Sequence[str], *, context: ssl.SSLContext, timeout_s: float
) -> None:
    """Hand over compressed JSON; PostFailed unless the answer is 2xx."""
    failure = PostFailed(f"{place.host} has no address that can be used")
    try:
        async with asyncio.timeout(timeout_s):
            for address in addresses[:MAX_ADDRESSES]:
                try:
                    return await _post(place, data, address, context)
                except PostFailed as error:
                    failure = error
    except TimeoutError:
        raise PostFailed(f"{place.host}: no answer within {timeout_s:g} s") from None
    raise failure


async def _post(place: Place, data: bytes, address: str, context: ssl.SSLContext) -> None:
    host = place.host if place.port == 443 else f"{place.host}:{place.port}"
    head = (
        f"POST {place.target} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {CONTENT_TYPE}\r\n"
        f"Content-Length: {len(data)}\r\nUser-Agent: sendfleet\r\nConnection: close\r\n\r\n"
    )
    writer = None
    try:
        reader, writer = await asyncio.open_connection(
            address, place.port, ssl=context, server_hostname=place.host, limit=MAX_HEAD
        )
        writer.write(head.encode("ascii") + data)
        await writer.drain()
        answer = await reader.readuntil(b"\r\n\r\n")
        while (found := _STATUS.match(answer)) is not None and found[1][:1] == b"1":  # RFC 9110 section 15.2
            answer = await reader.readuntil(b"\r\n\r\n")
    except ssl.SSLCertVerificationError as error:
        raise PostFailed(f"{place.host}: {error.verify_message}") from error
    except asyncio.IncompleteReadError as error:
        raise PostFailed(f"{place.host}: the answer ends in the middle") from error
    except asyncio.LimitOverrunError as error:
        raise PostFailed(f"{place.host}: the answer's head is too long") from error
    except (OSError, ValueError) as error:
        raise PostFailed(f"{place.host}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        if writer is not None:
            writer.transport.abort()
    if found is None:
        raise PostFailed(f"{place.host}: not an HTTP answer")
    if found[1][:1] != b"2":
        raise PostFailed(
            f"{place.host}: status {found[1].decode()}, expected 2xx (redirects are not followed)"
        )

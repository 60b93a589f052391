"""Unsubscribe links: a signed token for every recipient, and the header fields that carry it (RFC 2369, RFC 8058).

The token says who unsubscribes from what, so nothing has to be remembered: tenant, stream, address, message id and day
of acceptance, signed (engine/bounces/tokens.py), in base64url. All attempts of a message have the same.
"""

import base64
import binascii
import re
from typing import Any, NamedTuple, Protocol

import msgpack

from engine.bounces.tokens import DAY_MS, TokenKeys
from engine.config.bounces import TokensConfig
from engine.config.unsubscribe import UnsubscribeConfig
from engine.values.stream import Stream

PURPOSE = b"sendfleet unsubscribe"
MAX_LINE = 990
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,1500}", re.ASCII)


class Unsubscription(NamedTuple):
    """What an authentic token says. `is_expired`: it is too old to act on."""

    tenant: str
    stream: int
    address: str
    message_id: int
    is_expired: bool


def make_token(
    keys: TokenKeys, *, tenant: str, stream: int, address: str, message_id: int, accepted_ms: int
) -> str:
    payload = msgpack.packb((tenant, stream, address, message_id, accepted_ms // DAY_MS))
    return base64.urlsafe_b64encode(keys.sign(PURPOSE, payload)).decode().rstrip("=")


def verify_token(keys: TokenKeys, text: str, *, now_ms: int, expire_ms: int) -> Unsubscription | None:
    """What a token says; None if it is none of ours."""
    if not _TOKEN.fullmatch(text):
        return None
    try:
        payload = keys.verify(PURPOSE, base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True))
    except (binascii.Error, ValueError):
        return None
    if payload is None:
        return None
    tenant, stream, address, message_id, day = msgpack.unpackb(payload)
    is_expired = now_ms - day * DAY_MS > expire_ms + DAY_MS
    return Unsubscription(tenant, stream, address, message_id, is_expired)


class QueueNames(Protocol):
    """The spool's reader."""

    def queue(self, number: int) -> tuple[str, int, str, str]: ...


class UnsubscribeLinks:
    """The links of the mail that a pool sends."""

    def __init__(self, config: UnsubscribeConfig, tokens: TokensConfig, queues: QueueNames) -> None:
        """Reads the key files if they are needed; KeyFileError."""
        self._config = config
        self._queues = queues
        self._keys = TokenKeys.read(tokens) if config.links else None
        self._urls: dict[tuple[str, int], str] = {}

    def url(self, record: Any) -> str:
        """The link of a record's recipient, "" where there is none."""
        if self._keys is None or not record.sender:
            return ""
        _, stream, tenant, _ = self._queues.queue(record.queue)
        base = self._urls.get((tenant, stream))
        if base is None:
            entry = self._config.link(tenant, str(Stream(stream)))
            if len(self._urls) > 10_000:
                self._urls.clear()
            base = self._urls[tenant, stream] = "" if entry is None else entry.url
        if not base:
            return ""
        token = make_token(
            self._keys,
            tenant=tenant,
            stream=stream,
            address=record.recipient,
            message_id=record.id,
            accepted_ms=record.accepted_ms,
        )
        return f"{base}/{token}"


def header_fields(url: str) -> bytes:
    """Both fields, each with its CRLF. ValueError: no header line can hold the link (RFC 5322 section 2.1.1)."""
    if len(url) > MAX_LINE:
        raise ValueError(f"an unsubscribe link of {len(url)} characters does not fit into a header")
    return f"List-Unsubscribe:\r\n <{url}>\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n".encode(
        "ascii"
    )


def has_own_field(message: bytes) -> bool:
    """Whether a message says itself how to unsubscribe."""
    end = message.find(b"\r\n\r\n")
    if end < 0:
        end = message.find(b"\n\n")
    head = b"\n" + (message if end < 0 else message[:end]).lower()
    return b"\nlist-unsubscribe:" in head or b"\nlist-unsubscribe :" in head

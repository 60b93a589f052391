"""Signed tokens: what the world brings back to us is believed only if we gave it away.

A token is HMAC-SHA256 over its purpose and its payload; the tag is cut to `TAG` bytes, enough where every guess costs a
network round trip. The number of the key stands in the token, so keys can be changed while old tokens are under way.
A return path's token has key, message id, day of dispatch and tag: 21 bytes, 34 characters of base32, which survive
hosts that change the case of a local part; with its prefix 36 of the 64 octets that RFC 5321 section 4.5.3.1.1 allows.

Keys are read from files once, at the start. They are never in a log, an error or a pickle.
"""

import base64
import binascii
import hmac
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn, Protocol

KEY_BYTES = 32
TAG = 10
DAY_MS = 86_400_000
PREFIX = "b+"
RETURN_PATH = b"sendfleet return path"
LOCAL_PART = re.compile(r"b\+([a-z2-7]{34})", re.ASCII)
_PAYLOAD = 10  # message id (8), day (2)


class KeyFileError(ValueError):
    """A key file cannot be used; says which and why, never what is in it."""


class KeyEntry(Protocol):
    """engine/config/bounces.py: TokenKey."""

    @property
    def id(self) -> int: ...
    @property
    def file(self) -> Path: ...


class TokenKeys:
    """See the module docstring. The first key signs."""

    def __init__(self, keys: Sequence[tuple[int, bytes]]) -> None:
        if not keys:
            raise KeyFileError("tokens.keys: at least one key is needed")
        self._first = keys[0][0]
        self._keys = dict(keys)

    @classmethod
    def read(cls, entries: Sequence[KeyEntry]) -> "TokenKeys":
        """Read the key files; KeyFileError."""
        return cls([(entry.id, _read_key(entry.file)) for entry in entries])

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys are not pickled: every process reads them from their files")

    def sign(self, purpose: bytes, payload: bytes) -> bytes:
        """The number of the key (1 byte), the payload and its tag."""
        signed = bytes((self._first,)) + payload
        return signed + self._tag(self._first, purpose, signed)

    def verify(self, purpose: bytes, token: bytes) -> bytes | None:
        """The payload of a token that `sign` made, None for any other."""
        signed, tag = token[:-TAG], token[-TAG:]
        if len(signed) < 2 or signed[0] not in self._keys:
            return None
        if not hmac.compare_digest(tag, self._tag(signed[0], purpose, signed)):
            return None
        return signed[1:]

    def _tag(self, key: int, purpose: bytes, signed: bytes) -> bytes:
        return hmac.digest(self._keys[key], purpose + b"\0" + signed, "sha256")[:TAG]

    def sign_return_path(self, message_id: int, now_ms: int) -> str:
        """The local part of a message's return path."""
        day = now_ms // DAY_MS & 0xFFFF
        token = self.sign(RETURN_PATH, message_id.to_bytes(8, "big") + day.to_bytes(2, "big"))
        return PREFIX + base64.b32encode(token).decode().rstrip("=").lower()


class ReturnToken(NamedTuple):
    """What an authentic return path says. `is_expired`: it was authentic, but is too old to act on."""

    message_id: int
    is_expired: bool


def verify_return_path(keys: TokenKeys, local: str, *, now_ms: int, expire_ms: int) -> ReturnToken | None:
    """The token of a local part, in any case; None if it is none of ours."""
    found = LOCAL_PART.fullmatch(local.lower())
    if found is None:
        return None
    try:
        token = base64.b32decode(found[1].upper() + "======")
    except binascii.Error:
        return None
    payload = keys.verify(RETURN_PATH, token)
    # several texts decode to the same bytes: the last character has bits to spare
    if payload is None or len(payload) != _PAYLOAD:
        return None
    if base64.b32encode(token).decode().rstrip("=").lower() != found[1]:
        return None
    message_id = int.from_bytes(payload[:8], "big")
    # a token of tomorrow is one of a node whose clock is ahead
    age_ms = now_ms - int.from_bytes(payload[8:10], "big") * DAY_MS
    return ReturnToken(message_id, not -DAY_MS <= age_ms <= expire_ms + DAY_MS)


def _read_key(path: Path) -> bytes:
    try:
        text = path.read_text(encoding="ascii").strip()
        key = bytes.fromhex(text)
    except OSError as error:
        raise KeyFileError(f"token key {path}: {error.strerror}") from None
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise KeyFileError(
            f"token key {path}: allowed are {2 * KEY_BYTES} hexadecimal digits, and nothing else"
        )
    return key


def write_key(path: Path) -> None:
    """Make a new key file, readable by its owner only. FileExistsError rather than replacing one."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(os.urandom(KEY_BYTES).hex() + "\n")
        file.flush()
        os.fsync(file.fileno())

"""Signed tokens: what the world brings back to us is believed only if we gave it away.

A token is HMAC-SHA256 over its purpose and its payload; the tag is cut to `TAG` bytes, enough where every guess costs a
network round trip. The number of the key stands in the token, so keys can be changed while old tokens are under way.
A return path's token has key, message id, day of dispatch and tag: 21 bytes, 34 characters of base32, which survive
hosts that change the case of a local part; with its prefix 36 of the 64 octets that RFC 5321 section 4.5.3.1.1 allows.

Keys come from files that are looked at again every few seconds (engine/bounces/key_files.py).
"""

import base64
import binascii
import hmac
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn, Protocol

from engine.bounces.key_files import KeyFile, KeyFileError

TAG = 10
DAY_MS = 86_400_000
PREFIX = "b+"
RETURN_PATH = b"sendfleet return path"
LOCAL_PART = re.compile(r"b\+([a-z2-7]{34})", re.ASCII)
_PAYLOAD = 10  # message id (8), day (2)


class KeyEntry(Protocol):
    """engine/config/bounces.py: TokenKey."""

    @property
    def id(self) -> int: ...
    @property
    def file(self) -> Path: ...


class TokensSection(Protocol):
    """engine/config/bounces.py: TokensConfig."""

    @property
    def keys(self) -> Sequence[KeyEntry]: ...
    @property
    def reload(self) -> float: ...


class TokenKeys:
    """See the module docstring. The first key signs. Used from any thread."""

    def __init__(self, keys: Sequence[tuple[int, bytes]]) -> None:
        """Keys that stay as they are; several may have one number."""
        self._set(keys)
        self._files: list[tuple[int, KeyFile]] = []
        self._now: Callable[[], float] = time.monotonic
        self._reload_s = self._due = 0.0

    @classmethod
    def read(cls, config: TokensSection, now: Callable[[], float] = time.monotonic) -> "TokenKeys":
        """Read the key files, now and whenever they change; KeyFileError. `now`: monotonic time in seconds."""
        files = [(entry.id, KeyFile(entry.file)) for entry in config.keys]
        keys = cls(_in_order(files))
        keys._files = files
        keys._now = now
        keys._reload_s = config.reload
        keys._due = now() + config.reload
        return keys

    def _set(self, keys: Sequence[tuple[int, bytes]]) -> None:
        if not keys:
            raise KeyFileError("tokens.keys: at least one key is needed")
        good: dict[int, list[bytes]] = {}
        for number, key in keys:
            good.setdefault(number, []).append(key)
        self._keys = keys[0], good  # at once: another thread may be signing

    def _refresh(self) -> None:
        now = self._now()
        if now < self._due:
            return
        self._due = now + self._reload_s
        changed = [file.refresh() for _, file in self._files]
        if any(changed):
            self._set(_in_order(self._files))

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys are not pickled: every process reads them from their files")

    def sign(self, purpose: bytes, payload: bytes) -> bytes:
        """The number of the key (1 byte), the payload and its tag."""
        if self._files:
            self._refresh()
        (number, key), _ = self._keys
        signed = bytes((number,)) + payload
        return signed + _tag(key, purpose, signed)

    def verify(self, purpose: bytes, token: bytes) -> bytes | None:
        """The payload of a token that `sign` made, None for any other."""
        if self._files:
            self._refresh()
        signed, tag = token[:-TAG], token[-TAG:]
        if len(signed) < 2:
            return None
        for key in self._keys[1].get(signed[0], ()):
            if hmac.compare_digest(tag, _tag(key, purpose, signed)):
                return signed[1:]
        return None

    def sign_return_path(self, message_id: int, now_ms: int) -> str:
        """The local part of a message's return path."""
        day = now_ms // DAY_MS & 0xFFFF
        token = self.sign(RETURN_PATH, message_id.to_bytes(8, "big") + day.to_bytes(2, "big"))
        return PREFIX + base64.b32encode(token).decode().rstrip("=").lower()


def _in_order(files: Sequence[tuple[int, KeyFile]]) -> list[tuple[int, bytes]]:
    return [(number, key) for number, file in files for key in file.keys]


def _tag(key: bytes, purpose: bytes, signed: bytes) -> bytes:
    return hmac.digest(key, purpose + b"\0" + signed, "sha256")[:TAG]


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

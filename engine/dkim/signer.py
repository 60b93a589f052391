"""The DKIM-Signature fields of a batch of messages (RFC 6376, RFC 8463).

Relaxed/relaxed, no `l=`, `x=` given by the caller. What is signed is the message exactly as it will be sent, before
dot-stuffing. The fields of `SIGNED` are covered as often as they occur; those marked are listed once more, so that
nobody can add another From, Subject or Date to a signed message (RFC 6376 section 8.15). List-Unsubscribe and
List-Unsubscribe-Post are covered, as RFC 8058 section 4 demands.

Signing is a pure function of keys, message and times: the same message signed again has the same bytes (RSA
PKCS#1 v1.5 and Ed25519 are deterministic), so a retry sends what the first attempt sent. Runs on any thread.

The hash of a body is kept for the bodies seen last: a campaign whose body does not vary gives the same bytes object
for every recipient, and is hashed once.
"""

import binascii
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from engine.campaign.mailboxes import split_mailboxes
from engine.config.signing import DkimConfig
from engine.dkim.keys import KeyFileError, KeyRing, SigningKey, TenantRefused
from engine.values.address import AddressError, parse_address
from native.dkim import relaxed_body, relaxed_headers

SIGNED: Final = (
    (b"from", True),
    (b"to", True),
    (b"cc", True),
    (b"subject", True),
    (b"date", True),
    (b"message-id", True),
    (b"reply-to", True),
    (b"sender", True),
    (b"mime-version", True),
    (b"content-type", True),
    (b"content-transfer-encoding", True),
    (b"in-reply-to", False),
    (b"references", False),
    (b"list-id", False),
    (b"list-help", False),
    (b"list-subscribe", False),
    (b"list-owner", False),
    (b"list-archive", False),
    (b"list-post", False),
    (b"list-unsubscribe", True),
    (b"list-unsubscribe-post", True),
    (b"feedback-id", False),
    (b"auto-submitted", False),
    (b"tls-required", False),
)
KEPT_HASHES: Final = 64
KEPT_BYTES: Final = 256 << 10  # of one body; a larger one is hashed each time
KEPT_DOMAINS: Final = 4096
_FOLD_AT = 74


class SigningError(ValueError):
    """A message that should be signed cannot be; it must not be sent. `permanent`: nor later.

    `enhanced` is the status that says so, without its class (RFC 3463).
    """

    def __init__(self, message: str, *, permanent: bool, enhanced: str = "6.0") -> None:
        super().__init__(message)
        self.permanent = permanent
        self.enhanced = enhanced


@dataclass(frozen=True, slots=True)
class Unsigned:
    """A message to sign, in its two parts: `head` ends with the CRLF of its last field, `body` may be empty.

    `signed_s` becomes t=, `expires_s` x= (unix seconds).
    """

    head: bytes
    body: bytes
    signed_s: int
    expires_s: int
    tenant: str = "default"


class Signer:
    """See the module docstring."""

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring
        self._lock = threading.Lock()
        self._hashes: OrderedDict[bytes, str] = OrderedDict()
        self._from_domains: dict[bytes, str] = {}
        self._folded: dict[tuple[bytes, ...], str] = {}
        self.hashed_bodies = 0

    def take_notices(self) -> list[tuple[str, str]]:
        """What happened to key files since the last call: (file, text)."""
        return self._ring.take_notices()

    def sign(self, messages: Sequence[Unsigned]) -> list[bytes | SigningError]:
        """The fields to put in front of each message: b"" if nobody signs for its From domain."""
        result: list[bytes | SigningError] = [b""] * len(messages)
        todo: list[tuple[int, tuple[SigningKey, ...], str, bytes]] = []
        for i, found in enumerate(_canonical_headers([message.head for message in messages])):
            if isinstance(found, SigningError):
                result[i] = found
                continue
            listed, canonical = found
            try:
                keys = self._keys(listed, canonical, messages[i].tenant)
            except SigningError as error:
                result[i] = error
                continue
            if keys:
                todo.append((i, keys, self._fold_names(tuple(listed)), canonical))
        hashes = self._body_hashes([messages[i].body for i, _, _, _ in todo])
        for (i, keys, names, canonical), body_hash in zip(todo, hashes, strict=True):
            result[i] = b"".join([_field(key, messages[i], names, body_hash, canonical) for key in keys])
        return result

    # -- which keys

    def _keys(self, listed: list[bytes], canonical: bytes, tenant: str) -> tuple[SigningKey, ...]:
        count = listed.count(b"from") - 1
        if count != 1:
            # RFC 5322 section 3.6: exactly one; which of two a reader sees is what an attacker plays with
            raise SigningError(f"{count} From fields: expected one", permanent=True)
        value = canonical[len(b"from:") : canonical.index(b"\r\n")]
        domain = self._from_domains.get(value)
        if domain is None:
            try:
                domain = self._from_domain(value)
            except AddressError as error:
                raise SigningError(f"From: {error}", permanent=True) from None
            if len(self._from_domains) >= KEPT_DOMAINS:
                self._from_domains.clear()
            self._from_domains[value] = domain
        try:
            return self._ring.keys(domain, tenant)
        except KeyFileError as error:
            raise SigningError(str(error), permanent=False, enhanced="7.5") from None
        except TenantRefused as error:
            raise SigningError(str(error), permanent=True, enhanced="7.1") from None

    def _from_domain(self, value: bytes) -> str:
        pairs = split_mailboxes(value.decode("utf-8", "replace"))
        domains = [parse_address(address).domain for _, address in pairs]
        if not domains:
            raise AddressError("no address")
        if not self._ring.covers(domains):
            raise AddressError("addresses of several signing domains")
        return domains[0]

    # -- what is signed

    def _body_hashes(self, bodies: list[bytes]) -> list[str]:
        # Hashed under the lock: another thread that meets the same body waits, and finds it.
        with self._lock:
            known = [self._hashes.get(body) for body in bodies]
            missing = {body: "" for body, found in zip(bodies, known, strict=True) if found is None}
            if missing:
                for body in missing:
                    digest = sha256(relaxed_body(body)).digest()
                    missing[body] = binascii.b2a_base64(digest, newline=False).decode()
                self.hashed_bodies += len(missing)
                self._hashes.update(
                    (body, hash_) for body, hash_ in missing.items() if len(body) <= KEPT_BYTES
                )
                while len(self._hashes) > KEPT_HASHES:
                    self._hashes.popitem(last=False)
        return [missing[body] if found is None else found for body, found in zip(bodies, known, strict=True)]

    def _fold_names(self, listed: tuple[bytes, ...]) -> str:
        folded = self._folded.get(listed)
        if folded is None:
            lines = [" h="]
            for position, name in enumerate(listed):
                piece = name.decode() + (":" if position < len(listed) - 1 else ";")
                if len(lines[-1]) + len(piece) > _FOLD_AT:
                    lines.append(" ")
                lines[-1] += piece
            folded = "\r\n".join(lines)
            if len(self._folded) >= KEPT_HASHES:
                self._folded.clear()
            self._folded[listed] = folded
        return folded


def _canonical_headers(heads: list[bytes]) -> Sequence[tuple[list[bytes], bytes] | SigningError]:
    try:
        return relaxed_headers(heads, SIGNED)
    except ValueError:
        found: list[tuple[list[bytes], bytes] | SigningError] = []
        for head in heads:
            try:
                found += relaxed_headers([head], SIGNED)
            except ValueError as error:
                found.append(SigningError(str(error), permanent=True))
        return found


def _field(key: SigningKey, message: Unsigned, names: str, body_hash: str, canonical: bytes) -> bytes:
    """One whole DKIM-Signature field with its CRLF."""
    value = (
        f" v=1; a={key.algorithm}; c=relaxed/relaxed; d={key.domain};\r\n"
        f" s={key.selector}; t={message.signed_s}; x={message.expires_s};\r\n"
        f"{names}\r\n bh={body_hash};\r\n b="
    )
    # relaxed: unfolded, and none of the white space is more than one space
    unfolded = value.replace("\r\n", "").lstrip()
    signature = key.sign(b"".join((canonical, b"dkim-signature:", unfolded.encode())))
    encoded = binascii.b2a_base64(signature, newline=False).decode()
    joined = "\r\n ".join([encoded[i : i + _FOLD_AT] for i in range(0, len(encoded), _FOLD_AT)])
    return f"DKIM-Signature:{value}{joined}\r\n".encode()


def signer_of(config: DkimConfig, now: Callable[[], float]) -> Signer | None:
    """The signer of a configuration; None if it names no domain. `now` is the monotonic time in seconds."""
    return Signer(KeyRing(config, now)) if config.domains else None

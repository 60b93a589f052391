"""DKIM key records (RFC 6376 section 3.6.1, RFC 8463 section 4): read, measured, compared with a private key."""

import base64
import binascii
from dataclasses import dataclass

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from engine.doctor.tags import TagError, parse_tags

_ED25519_BYTES = 32


class KeyRecordError(ValueError):
    """The record holds no usable key; the message says why."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A published key. `data` is in the form of engine.dkim.keys.SigningKey.public; `bits` of RSA, 256 of Ed25519."""

    kind: str
    bits: int
    data: bytes
    is_testing: bool
    is_exact: bool


def parse_key(text: str) -> PublicKey:
    """Raises KeyRecordError."""
    try:
        tags = parse_tags(text)
    except TagError as error:
        raise KeyRecordError(str(error)) from None
    if "v" in tags and (next(iter(tags)) != "v" or tags["v"] != "DKIM1"):
        raise KeyRecordError("v= is not DKIM1, or is not the first tag")
    kind = tags.get("k", "rsa")
    if "p" not in tags:
        raise KeyRecordError("p= is missing")
    if not tags["p"]:
        raise KeyRecordError("p= is empty: the key is revoked")
    services = [service.strip() for service in tags.get("s", "*").split(":")]
    if not {"*", "email"} & set(services):
        raise KeyRecordError(f"s={tags['s'][:40]}: the key is not for email")
    hashes = [name.strip() for name in tags.get("h", "sha256").split(":")]
    if "sha256" not in hashes:
        raise KeyRecordError(f"h={tags['h'][:40]}: without sha256 no signature is accepted (RFC 8301)")
    try:
        data = base64.b64decode("".join(tags["p"].split()), validate=True)
    except (binascii.Error, ValueError):
        raise KeyRecordError("p= is not base64") from None
    flags = {flag.strip() for flag in tags.get("t", "").split(":")}
    bits, data = _measured(kind, data)
    return PublicKey(kind, bits, data, "y" in flags, "s" in flags)


def _measured(kind: str, data: bytes) -> tuple[int, bytes]:
    if kind == "ed25519":
        if len(data) != _ED25519_BYTES:
            raise KeyRecordError(f"p= has {len(data)} bytes; an Ed25519 key has {_ED25519_BYTES}")
        return 8 * _ED25519_BYTES, data
    if kind != "rsa":
        raise KeyRecordError(f"k={kind[:40]}: allowed are rsa and ed25519")
    try:
        key = load_der_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise KeyRecordError("p= is no RSA key: a part of it may be missing") from None
    if not isinstance(key, RSAPublicKey):
        raise KeyRecordError("p= is no RSA key")
    return key.key_size, key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

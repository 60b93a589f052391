"""The signed message of RFC 8463 appendix A.3: our canonical forms under its two published signatures."""

import base64
import re
from hashlib import sha256
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from engine.dkim.keys import signing_key
from native.dkim import relaxed_body, relaxed_headers

HEAD = (
    b"From: Joe SixPack <joe@football.example.com>\r\n"
    b"To: Suzie Q <suzie@shopping.example.net>\r\n"
    b"Subject: Is dinner ready?\r\n"
    b"Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)\r\n"
    b"Message-ID: <20030712040037.46341.5F8J@football.example.com>\r\n"
)
BODY = b"Hi.\r\n\r\nWe lost the game.  Are you hungry yet?\r\n\r\nJoe.\r\n"
BODY_HASH = "2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8="
NAMES = tuple((name, False) for name in (b"from", b"to", b"subject", b"date", b"message-id"))

ED25519_FIELD = (
    b"DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;\r\n"
    b" d=football.example.com; i=@football.example.com;\r\n"
    b" q=dns/txt; s=brisbane; t=1528637909; h=from : to :\r\n"
    b" subject : date : message-id : from : subject : date;\r\n"
    b" bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;\r\n"
    b" b=/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11Bus\r\n"
    b" Fa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw==\r\n"
)
ED25519_SEED = "nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A="
RSA_FIELD = (
    b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed;\r\n"
    b" d=football.example.com; i=@football.example.com;\r\n"
    b" q=dns/txt; s=test; t=1528637909; h=from : to : subject :\r\n"
    b" date : message-id : from : subject : date;\r\n"
    b" bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;\r\n"
    b" b=F45dVWDfMbQDGHJFlXUNB2HKfbCeLRyhDXgFpEL8GwpsRe0IeIixNTe3\r\n"
    b" DhCVlUrSjV4BwcVcOF6+FF3Zo9Rpo1tFOeS9mPYQTnGdaSGsgeefOsk2Jz\r\n"
    b" dA+L10TeYt9BgDfQNZtKdN1WO//KgIqXP7OdEFE4LjFYNcUxZQ4FADY+8=\r\n"
)
RSA_PUBLIC = (
    "MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDkHlOQoBTzWRiGs5V6NpP3idY6Wk08a5qhdR6wy5bdOKb2jLQiY/J16JYi0Qvx/byYzCNb3W91"
    "y3FutACDfzwQ/BC/e/8uBsCR+yz1Lxj+PL6lHvqMKrM3rG4hstT5QjvHO9PzoxZyVYLzBfO2EeC3Ip3G+2kryOTIKT+l/K4w3QIDAQAB"
)


def signed_octets(field: bytes) -> tuple[bytes, bytes]:
    """What a signature field covers, and its signature."""
    value, signature = re.fullmatch(rb"(.*\bb=)([^;]*)\r\n", field, re.DOTALL).groups()  # type: ignore[union-attr]
    [(_, fields)] = relaxed_headers([HEAD], NAMES)
    [(_, own)] = relaxed_headers([value + b"\r\n"], ((b"dkim-signature", False),))
    return fields + own.removesuffix(b"\r\n"), base64.b64decode(b"".join(signature.split()))


def test_body_hash() -> None:
    canonical = relaxed_body(BODY)
    assert base64.b64encode(sha256(canonical).digest()).decode() == BODY_HASH


def test_ed25519_signature_is_the_published_one() -> None:
    private: Any = Ed25519PrivateKey.from_private_bytes(base64.b64decode(ED25519_SEED))
    key = signing_key("football.example.com", "brisbane", private)
    octets, signature = signed_octets(ED25519_FIELD)
    assert key.sign(octets) == signature
    assert key.record() == "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="


def test_rsa_signature_verifies() -> None:
    public: Any = load_der_public_key(base64.b64decode(RSA_PUBLIC))
    octets, signature = signed_octets(RSA_FIELD)
    public.verify(signature, octets, PKCS1v15(), SHA256())
    with pytest.raises(InvalidSignature):
        public.verify(signature, octets + b" ", PKCS1v15(), SHA256())

"""Real certificates, made in memory: authorities, chains, and everything that can be wrong with them."""

import hashlib
import ipaddress
import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID

from engine.routing.answers import Tlsa


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate with its key, and those that a server sends behind it."""

    certificate: x509.Certificate
    key: Any
    chain: tuple[x509.Certificate, ...] = ()

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def public_key_info(self) -> bytes:
        return self.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def pem(self) -> bytes:
        return b"".join(c.public_bytes(Encoding.PEM) for c in (self.certificate, *self.chain))

    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def make(
    name: str,
    *,
    issuer: Identity | None = None,
    is_authority: bool = False,
    names: Sequence[str] | None = None,
    addresses: Sequence[str] = (),
    days: tuple[int, int] = (-1, 30),
    send: Sequence[Identity] = (),
    rsa_bits: int = 0,
) -> Identity:
    """`names`, `addresses`: the subjectAltName, by default `name`. `days`: validity from today on. `send`: chain."""
    key: Any = ec.generate_private_key(ec.SECP256R1())
    if rsa_bits:
        key = rsa.generate_private_key(65537, rsa_bits)
    now = datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer = issuer.key if issuer is not None else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer is not None else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    alternatives = [] if is_authority else [name] if names is None else list(names)
    if alternatives:
        general: list[x509.GeneralName] = [x509.DNSName(one) for one in alternatives]
        general += [x509.IPAddress(ipaddress.ip_address(one)) for one in addresses]
        builder = builder.add_extension(x509.SubjectAlternativeName(general), critical=False)
    if is_authority:
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = builder.add_extension(usage, critical=True)
    return Identity(builder.sign(signer, hashes.SHA256()), key, tuple(one.certificate for one in send))


def server_context(identity: Identity, *, ciphers: str = "", **versions: ssl.TLSVersion) -> ssl.SSLContext:
    """A server that shows the identity and its chain."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if ciphers:
        context.set_ciphers(ciphers)
    with tempfile.NamedTemporaryFile() as file:
        file.write(identity.key_pem() + identity.pem())
        file.flush()
        context.load_cert_chain(file.name)
    for name, version in versions.items():
        setattr(context, name, version)
    return context


def write_pair(identity: Identity, certificate: Path, key: Path) -> None:
    """As a server's two files."""
    key.write_bytes(identity.key_pem())
    certificate.write_bytes(identity.pem())


def write_authorities(path: Path, *identities: Identity) -> Path:
    path.write_bytes(b"".join(one.certificate.public_bytes(Encoding.PEM) for one in identities))
    return path


def tlsa(identity: Identity, usage: int, selector: int = 1, matching: int = 1) -> Tlsa:
    """The record that names a certificate."""
    data = identity.der if selector == 0 else identity.public_key_info
    if matching == 1:
        data = hashlib.sha256(data).digest()
    elif matching == 2:
        data = hashlib.sha512(data).digest()
    return Tlsa(usage, selector, matching, data)


@cache
def authority() -> Identity:
    """The authority that the tests trust."""
    return make("Test Root", is_authority=True)


@cache
def stranger() -> Identity:
    """One that they do not."""
    return make("Strange Root", is_authority=True)

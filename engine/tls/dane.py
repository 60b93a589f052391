"""DANE for SMTP (RFC 7672): which TLSA records can be used, and whether a peer's certificates satisfy them.

- Usage 3 (DANE-EE): the peer's own certificate or key is the one in the record. Names and dates do not matter
  (section 3.1.1).
- Usage 2 (DANE-TA): the certificate in the record, given by itself or by a digest of one that the peer sends, has
  issued the peer's, which is in date and made out to the TLSA base domain or the host (section 3.1.2). A common name
  without a subjectAltName does not count (RFC 9525).
- Usages 0 and 1 cannot be used with SMTP (section 3.1.3), nor can records of unknown parameters or of a wrong length.
  If all are unusable, TLS is required and nobody is verified (section 2.2).
- Where digests of both strengths are there for one usage and selector, the weaker ones count for nothing (RFC 7671
  section 9).
"""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime

from cryptography import x509
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from engine.routing.answers import Tlsa
from engine.tls.der import subject_public_key_info
from engine.tls.policy import Fault, TlsFault

DANE_TA, DANE_EE = 2, 3
_DIGEST_SIZES = {1: 32, 2: 64}
MAX_CHAIN = 10


def usable_records(records: Sequence[Tlsa]) -> tuple[Tlsa, ...]:
    """The records that can vouch for a mail server, in a fixed order."""
    found = {record for record in records if _is_usable(record)}
    strong = {(r.usage, r.selector) for r in found if r.matching == 2}
    kept = (r for r in found if r.matching != 1 or (r.usage, r.selector) not in strong)
    return tuple(sorted(kept, key=lambda r: (r.usage, r.selector, r.matching, r.data)))


def check_chain(
    records: Sequence[Tlsa], chain: Sequence[bytes], names: Sequence[str], *, now: datetime
) -> TlsFault | None:
    """Whether the peer's certificates (DER, its own first) satisfy one of the usable records; if not, why."""
    if not chain:
        return TlsFault(Fault.VALIDATION, "the server has sent no certificate")
    try:
        if any(r.usage == DANE_EE and _matches(r, chain[0]) for r in records):
            return None
        anchors = _anchors(records, chain)
        if not anchors:
            return TlsFault(Fault.VALIDATION, "no TLSA record matches a certificate of the server")
        leaf, *others = [x509.load_der_x509_certificate(der) for der in chain[:MAX_CHAIN]]
        roots = [x509.load_der_x509_certificate(der) for der in anchors]
    except (ValueError, x509.InvalidVersion) as error:
        return TlsFault(Fault.VALIDATION, f"a certificate cannot be read: {error}"[:200])
    return _check_issued(leaf, others, roots, names, now)


def published(base: str, records: Sequence[Tlsa]) -> tuple[str, ...]:
    """The records as a report shows them (RFC 8460 section 4.4)."""
    return tuple(f"{r.usage} {r.selector} {r.matching} {r.data.hex()}" for r in records)


def _is_usable(record: Tlsa) -> bool:
    if record.usage not in (DANE_TA, DANE_EE) or record.selector not in (0, 1):
        return False
    if record.matching:
        return len(record.data) == _DIGEST_SIZES.get(record.matching)
    if record.usage == DANE_TA and record.selector == 0:
        return _is_certificate(record.data)
    return bool(record.data)


def _is_certificate(data: bytes) -> bool:
    try:
        x509.load_der_x509_certificate(data)
    except (ValueError, x509.InvalidVersion):
        return False
    return True


def _matches(record: Tlsa, certificate: bytes) -> bool:
    data = certificate if record.selector == 0 else subject_public_key_info(certificate)
    if record.matching == 1:
        data = hashlib.sha256(data).digest()
    elif record.matching == 2:
        data = hashlib.sha512(data).digest()
    return data == record.data


def _anchors(records: Sequence[Tlsa], chain: Sequence[bytes]) -> list[bytes]:
    """Certificates that a DANE-TA record names: among those the peer sends, or in the record itself."""
    found = []
    for record in records:
        if record.usage != DANE_TA:
            continue
        found += [der for der in chain[1:MAX_CHAIN] if _matches(record, der)]
        if (record.selector, record.matching) == (0, 0):
            found.append(record.data)
    return found


_CA = ExtensionPolicy.permit_all().require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
_EE = ExtensionPolicy.permit_all().require_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)


def _check_issued(
    leaf: x509.Certificate,
    others: list[x509.Certificate],
    roots: list[x509.Certificate],
    names: Sequence[str],
    now: datetime,
) -> TlsFault | None:
    # what private authorities leave out of their certificates does not matter here, DNSSEC vouches for them
    builder = PolicyBuilder().store(Store(roots)).time(now)
    builder = builder.extension_policies(ca_policy=_CA, ee_policy=_EE)
    reason = "no name to check"
    for name in names:
        try:
            builder.build_server_verifier(x509.DNSName(name)).verify(leaf, others)
        except (VerificationError, ValueError) as error:
            reason = str(error).partition(" (encountered")[0]
        else:
            return None
    if not leaf.not_valid_before_utc <= now.astimezone(UTC) <= leaf.not_valid_after_utc:
        return TlsFault(Fault.EXPIRED, "the certificate is out of date")
    if "no matching subjectAltName" in reason or "no subjectAltName" in reason or "2.5.29.17" in reason:
        return TlsFault(Fault.HOST_MISMATCH, f"the certificate is not made out to {' or '.join(names)}")
    return TlsFault(
        Fault.NOT_TRUSTED, f"the authority of the TLSA record has not issued this: {reason}"[:300]
    )

"""What a session to one host must satisfy, and what came of it, as values.

A `HostPolicy` says how one session to one host is to be secured. It is hashable, and equal policies of one route may
share sessions. `TlsResult` is what a handshake gave, `TlsFault` why a session was refused for the sake of its policy,
in the words of TLS-RPT (RFC 8460 section 4.3) where it has one.
"""

from dataclasses import dataclass
from enum import StrEnum

from engine.routing.answers import Tlsa
from engine.values.reply import Reply


class PolicyKind(StrEnum):
    """Where the demand comes from: DANE (RFC 7672), MTA-STS (RFC 8461), our default, or a written exception."""

    DANE = "dane"
    STS = "sts"
    REQUIRED = "required"
    EXCEPTION = "exception"


class Check(StrEnum):
    """PLAIN: no TLS at all. ENCRYPT: TLS, whoever the peer is. NAME: a certificate that the system's authorities
    vouch for, with the right name. DANE: one that the TLSA records name.
    """

    PLAIN = "plain"
    ENCRYPT = "encrypt"
    NAME = "name"
    DANE = "dane"


class Fault(StrEnum):
    """Why a policy was not met: the result types of RFC 8460 section 4.3, and INJECTED, which it reports as
    validation-failure: bytes in the clear behind the answer to STARTTLS (CVE-2011-0411, CVE-2021-33515 and others).
    """

    NO_STARTTLS = "starttls-not-supported"
    HOST_MISMATCH = "certificate-host-mismatch"
    EXPIRED = "certificate-expired"
    NOT_TRUSTED = "certificate-not-trusted"
    VALIDATION = "validation-failure"
    TLSA_INVALID = "tlsa-invalid"
    DNSSEC_INVALID = "dnssec-invalid"
    DANE_REQUIRED = "dane-required"
    STS_FETCH = "sts-policy-fetch-error"
    STS_INVALID = "sts-policy-invalid"
    STS_WEBPKI = "sts-webpki-invalid"
    INJECTED = "injected-plaintext"


@dataclass(frozen=True, slots=True)
class TlsFault:
    """`text` says it for people: the certificate error, the answer of the server."""

    fault: Fault
    text: str


@dataclass(frozen=True, slots=True)
class HostPolicy:
    """`names`: what the certificate may be made out to, the first one is sent as server name; empty: the host's name.
    `records`: the usable TLSA records. `is_testing`: a failed check is recorded and the session goes on (MTA-STS mode
    `testing`). `published`: the policy as its domain publishes it, for reports. `requires_tls`: the server must offer
    REQUIRETLS. `fault`: what is wrong already, but only being tested.
    """

    kind: PolicyKind
    check: Check
    names: tuple[str, ...] = ()
    records: tuple[Tlsa, ...] = ()
    is_testing: bool = False
    published: tuple[str, ...] = ()
    requires_tls: bool = False
    fault: TlsFault | None = None


@dataclass(frozen=True, slots=True)
class PolicyRefusal:
    """No session to this host now: what its policy demands cannot be known, or it is not one of the policy's hosts.

    `is_final`: what the message demands (RFC 8689) cannot be had there, and waiting would not help.
    """

    fault: TlsFault
    reply: Reply
    kind: PolicyKind
    published: tuple[str, ...] = ()
    is_final: bool = False


PLAIN = HostPolicy(PolicyKind.EXCEPTION, Check.PLAIN)
ENCRYPT = HostPolicy(PolicyKind.REQUIRED, Check.ENCRYPT)
UNVERIFIED = HostPolicy(PolicyKind.EXCEPTION, Check.ENCRYPT)
VERIFIED = HostPolicy(PolicyKind.EXCEPTION, Check.NAME)


@dataclass(frozen=True, slots=True)
class TlsResult:
    """A handshake that its policy is content with. `verified` is what vouched for the peer: "", "name" or "dane".

    `fault`: what the check found that did not matter, because the policy is only being tested.
    """

    version: str
    cipher: str
    verified: str = ""
    resumed: bool = False
    fault: TlsFault | None = None

"""What a look-up in the DNS gives, as values, and the Protocols of whoever looks.

`authenticated` is true only if the configuration trusts its nameservers to validate (`resolver.dnssec: trust`) and
the nameserver vouched for the whole answer, aliases included (the AD bit, RFC 4035 section 3.2.3); it is set on
negative answers too. An answer that fails validation is FAILED, never MISSING.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class Status(Enum):
    """FOUND: records. EMPTY: the name exists without such records. MISSING: NXDOMAIN. FAILED: ask again."""

    FOUND = "found"
    EMPTY = "empty"
    MISSING = "missing"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class MxAnswer:
    """MX records as (preference, host name in lower case without the last dot; "" is the root)."""

    status: Status
    hosts: tuple[tuple[int, str], ...] = ()
    ttl_s: float = 0.0
    reason: str = ""
    authenticated: bool = False


@dataclass(frozen=True, slots=True)
class AddressAnswer:
    """Addresses as text. `canonical` is the name that owns them, another one than asked for behind an alias."""

    status: Status
    addresses: tuple[str, ...] = ()
    ttl_s: float = 0.0
    reason: str = ""
    authenticated: bool = False
    canonical: str = ""


@dataclass(frozen=True, slots=True)
class TextAnswer:
    """TXT records, the strings of each joined; what is not UTF-8 is replaced."""

    status: Status
    texts: tuple[str, ...] = ()
    ttl_s: float = 0.0
    reason: str = ""
    authenticated: bool = False


@dataclass(frozen=True, slots=True)
class Tlsa:
    """One TLSA record (RFC 6698 section 2.1): the numbers as published, known or not."""

    usage: int
    selector: int
    matching: int
    data: bytes


@dataclass(frozen=True, slots=True)
class TlsaAnswer:
    """TLSA records of one port."""

    status: Status
    records: tuple[Tlsa, ...] = ()
    ttl_s: float = 0.0
    reason: str = ""
    authenticated: bool = False


@dataclass(frozen=True, slots=True)
class NameAnswer:
    """Names (PTR, CNAME) in lower case without the last dot."""

    status: Status
    names: tuple[str, ...] = ()
    ttl_s: float = 0.0
    reason: str = ""
    authenticated: bool = False


class Resolver(Protocol):
    """What routing asks. An answer is always a value; a deadline is kept by the resolver."""

    async def mx(self, domain: str) -> MxAnswer: ...

    async def addresses(self, host: str, *, ipv6: bool) -> AddressAnswer: ...


class RecordResolver(Resolver, Protocol):
    """All questions: those of routing, of TLS policies and of the doctor."""

    async def text(self, name: str) -> TextAnswer:
        """TXT records of a name."""

    async def tlsa(self, host: str, *, port: int) -> TlsaAnswer:
        """TLSA records of a TCP port: `_port._tcp.host`."""

    async def reverse(self, address: str) -> NameAnswer:
        """PTR names of an IPv4 or IPv6 address."""

    async def alias(self, name: str) -> NameAnswer:
        """The CNAME record of a name itself, not followed."""

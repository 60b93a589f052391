"""What a look-up in the DNS gives, as values, and the Protocol of whoever looks."""

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


@dataclass(frozen=True, slots=True)
class AddressAnswer:
    """Addresses as text."""

    status: Status
    addresses: tuple[str, ...] = ()
    ttl_s: float = 0.0
    reason: str = ""


class Resolver(Protocol):
    """Two questions. An answer is always a value; a deadline is kept by the resolver."""

    async def mx(self, domain: str) -> MxAnswer: ...

    async def addresses(self, host: str, *, ipv6: bool) -> AddressAnswer: ...

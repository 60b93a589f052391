"""Routes as values."""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Literal

from engine.values.reply import Reply


@dataclass(frozen=True, slots=True)
class HostTarget:
    """A host that takes the mail: name or address, port, preference (lower is tried first)."""

    name: str
    port: int
    preference: int


@dataclass(frozen=True, slots=True)
class Credentials:
    """For a smart host. The password stays in its file until a session opens: never in a log or a repr."""

    username: str
    password_file: Path


@dataclass(frozen=True, slots=True)
class Route:
    """Where the mail of a domain goes. Equal routes may share sessions.

    `site` is what limits apply to: the provider, or in the long tail `mx:` and the rollup name of the best MX
    host. `hosts` are in order of preference and by name within one: whoever connects shuffles equal
    preferences. `is_authenticated`: DNSSEC vouches for the hosts' names, or the configuration gives them, as
    `is_static` says. `is_by_provider`: `tls` is an exception for the provider that the MX records name, and so no
    better than they are.
    """

    site: str
    provider: str
    hosts: tuple[HostTarget, ...]
    tls: Literal["required", "disabled", "unverified", "verified"]
    auth: Credentials | None = None
    is_authenticated: bool = False
    is_static: bool = False
    is_by_provider: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """No route now (`deferred`) or at all (`bounced`). The reply's code is 0: no server has spoken."""

    kind: Literal["deferred", "bounced"]
    reply: Reply


class HostStatus(Enum):
    """USABLE: has addresses. OWN: is one of our sources. The others have none: the question FAILED (ask again), there
    is NONE, or there are only such that are REFUSED.
    """

    USABLE = "usable"
    FAILED = "failed"
    NONE = "none"
    REFUSED = "refused"
    OWN = "own"


@dataclass(frozen=True, slots=True)
class HostAnswer:
    """What is known of a host: (socket family, address) pairs, or why there are none.

    `canonical` is the name behind its aliases; `is_authenticated`: DNSSEC vouches for all of it.
    """

    status: HostStatus
    addresses: tuple[tuple[int, str], ...] = ()
    reason: str = ""
    is_authenticated: bool = False
    canonical: str = ""

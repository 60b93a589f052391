"""Static tables: which route, which TLS exception holds for a domain; which provider an MX host belongs to.

The most specific entry wins: a whole domain, then the longest `*.` pattern above it, then `*`. A look-up
costs one dictionary probe per label of the domain.
"""

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

from engine.providers.profiles import Profile

T = TypeVar("T")

# Second levels of country domains under which names of three labels are registered. A full public suffix list
# would be exact; to group the MX hosts of the long tail this is enough.
_SECOND_LEVEL = frozenset({"ac", "co", "com", "edu", "go", "gob", "gov", "ne", "net", "or", "org"})


class PatternTable(Generic[T]):
    """Values by domain pattern."""

    def __init__(self, entries: Iterable[tuple[str, T]]) -> None:
        self._exact: dict[str, T] = {}
        self._below: dict[str, T] = {}
        for pattern, value in entries:
            if pattern == "*":
                self._below.setdefault("", value)
            elif pattern.startswith("*."):
                self._below.setdefault(pattern[2:], value)
            else:
                self._exact.setdefault(pattern, value)

    def get(self, domain: str) -> T | None:
        """`domain` in lower case, ASCII, without the last dot."""
        found = self._exact.get(domain)
        if found is not None or not self._below:
            return found
        rest = domain
        while rest:
            rest = rest.partition(".")[2]
            found = self._below.get(rest)
            if found is not None:
                return found
        return None


class ProviderTable:
    """Which provider a host belongs to, by the longest matching suffix of its name (MX rollup)."""

    def __init__(self, profiles: Mapping[str, Profile]) -> None:
        self._suffixes = {
            suffix: profile.name for profile in profiles.values() for suffix in profile.mx_suffixes
        }

    def get(self, host: str) -> str | None:
        rest = host
        while rest:
            name = self._suffixes.get(rest)
            if name is not None:
                return name
            rest = rest.partition(".")[2]
        return None


def rollup(host: str) -> str:
    """The registered domain that a host name belongs to, or nearly; an address stays as it is."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        labels = host.split(".")
    keep = 3 if len(labels) > 2 and len(labels[-1]) == 2 and labels[-2] in _SECOND_LEVEL else 2
    return ".".join(labels[-keep:])

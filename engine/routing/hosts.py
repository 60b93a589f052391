"""From the name of a host to the addresses that may be connected to.

- IPv6 and IPv4 by turns, at most `resolver.max_hosts`; of more, others after each look-up.
- Not on this or a private network, unless `resolver.private_addresses` is `allow` or `resolver.private_networks`
names it: a stranger's DNS must not direct the engine at its own network. Hosts of static routes are the operator's.
- Not one of the fleet's own sources: a host whose name or address is ours means that the mail would come back (RFC
5321 section 5.1). Whoever searches then drops all hosts that are no more preferred.
- `authenticated` is true only if every address of the answer is (RFC 7672 section 2.1.3 wants the question for TLSA
records of such hosts only).

Answers are kept by their TTL, between `min_ttl` and `max_ttl`; negative ones too, failures for `failure_ttl`.
"""

import asyncio
import ipaddress
import random
import socket

from engine.config.schema import FleetConfig
from engine.config.types import is_host_name, split_host
from engine.routing.answers import AddressAnswer, Resolver, Status
from engine.routing.cache import ExpiringCache
from engine.routing.route import HostAnswer, HostStatus
from engine.values.clock import Clock

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# what IANA has given out for the internet; outside are site-local addresses, networks' own NAT64 prefixes (RFC 8215),
# and IPv4 addresses in forms that nobody uses any more (RFC 4291 section 2.5.5.1)
_UNICAST = ipaddress.IPv6Network("2000::/3")
_DOCUMENTATION = ipaddress.IPv6Network("3fff::/20")  # RFC 9637, which Python 3.11 does not know
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class Hosts:
    """Addresses of hosts by name, cached and bounded."""

    def __init__(self, config: FleetConfig, resolver: Resolver, clock: Clock) -> None:
        self._options = config.resolver
        self._resolver = resolver
        self._static = frozenset(split_host(host)[0] for route in config.routes for host in route.hosts)
        self._own_names = frozenset(source.ehlo for source in config.sources)
        self._own_addresses = frozenset(source.ip for source in config.sources)
        self._networks = tuple(ipaddress.ip_network(n) for n in self._options.private_networks)
        self.answers: ExpiringCache[HostAnswer] = ExpiringCache(
            limit=self._options.cache_entries, clock=clock, loader=self._load
        )

    async def get(self, host: str) -> HostAnswer:
        """The answer for a host name (lower case, without the last dot) or an address."""
        return await self.answers.fetch(host)

    def is_own(self, name: str) -> bool:
        """Whether the name is that of one of the fleet's sources, and no static route says to use it."""
        return name in self._own_names and name not in self._static

    def may_be_mx(self, name: str) -> bool:
        """An address in place of a name is not allowed in an MX record, but seen; it must be a usable one. Octets that
        make no host name are nobody's host (RFC 1123 section 2.1, with the underscores that are seen)."""
        try:
            return self.is_allowed(ipaddress.ip_address(name))
        except ValueError:
            return is_host_name(name) and (name != "localhost" or self._options.private_addresses == "allow")

    def is_allowed(self, address: IpAddress) -> bool:
        """Whether strangers' DNS may name the address."""
        if self._options.private_addresses == "allow" or is_public(address):
            return True
        return any(address in network for network in self._networks)

    async def ask_both(self, host: str) -> tuple[AddressAnswer, AddressAnswer]:
        """The answers to the questions for IPv4 and for IPv6 addresses."""
        v4, v6 = await asyncio.gather(
            self._resolver.addresses(host, ipv6=False), self._resolver.addresses(host, ipv6=True)
        )
        return v4, v6

    def negative_ttl(self, ttl_s: float) -> float:
        return min(max(ttl_s, self._options.min_ttl), self._options.negative_ttl)

    def positive_ttl(self, ttl_s: float) -> float:
        return min(max(ttl_s, self._options.min_ttl), self._options.max_ttl)

    async def _load(self, host: str) -> tuple[HostAnswer, float]:
        if self.is_own(host):
            return HostAnswer(HostStatus.OWN, reason=f"{host} is one of the fleet's sources"), (
                self._options.max_ttl
            )
        try:
            literal = ipaddress.ip_address(host)
        except ValueError:
            pass
        else:
            v4 = AddressAnswer(Status.FOUND, (str(literal),), self._options.max_ttl)
            return self._judge(host, v4, AddressAnswer(Status.EMPTY))
        try:
            async with asyncio.timeout(2 * self._options.timeout):
                return self._judge(host, *await self.ask_both(host))
        except TimeoutError:
            return HostAnswer(HostStatus.FAILED, reason="DNS did not answer in time"), (
                self._options.failure_ttl
            )

    def _judge(self, host: str, v4: AddressAnswer, v6: AddressAnswer) -> tuple[HostAnswer, float]:
        is_static = host in self._static
        found = by_turns(self._some(v6.addresses), self._some(v4.addresses))
        if not is_static and any(address in self._own_addresses for address in found):
            reason = f"{host} has the address of one of the fleet's sources"
            return HostAnswer(HostStatus.OWN, reason=reason), self._kept_s(v4, v6)
        usable = [a for a in found if is_static or self.is_allowed(ipaddress.ip_address(a))]
        failed = next((a for a in (v4, v6) if a.status is Status.FAILED), None)
        kept_s = self._options.failure_ttl if failed is not None else self._kept_s(v4, v6)
        if usable:
            first = v4 if v4.addresses else v6
            answer = HostAnswer(
                HostStatus.USABLE,
                tuple((_family(address), address) for address in usable[: self._options.max_hosts]),
                is_authenticated=all(a.authenticated for a in (v4, v6) if a.status is Status.FOUND),
                canonical=first.canonical or host,
            )
        elif failed is not None:
            answer = HostAnswer(HostStatus.FAILED, reason=failed.reason)
        elif is_static:
            # the operator's own host: what is missing in the DNS will be put right, no mail is lost for it
            answer = HostAnswer(HostStatus.FAILED, reason="no address")
        elif found:
            answer = HostAnswer(HostStatus.REFUSED, reason="no address that may be used")
        else:
            answer = HostAnswer(HostStatus.NONE, reason="no address")
        return answer, kept_s

    def _some(self, addresses: tuple[str, ...]) -> tuple[str, ...]:
        """As they came; of too many a choice, another one with every look-up."""
        most = self._options.max_hosts
        return addresses if len(addresses) <= most else tuple(random.sample(addresses, len(addresses)))

    def _kept_s(self, v4: AddressAnswer, v6: AddressAnswer) -> float:
        found = [self.positive_ttl(a.ttl_s) for a in (v4, v6) if a.status is Status.FOUND]
        return min(found or [self.negative_ttl(a.ttl_s) for a in (v4, v6)])


def by_turns(first: tuple[str, ...], second: tuple[str, ...]) -> list[str]:
    """The elements of both, alternating."""
    mixed: list[str] = []
    for index in range(max(len(first), len(second))):
        mixed += [*first[index : index + 1], *second[index : index + 1]]
    return mixed


def is_public(address: IpAddress) -> bool:
    """Whether strangers may direct mail there; an IPv4 address inside an IPv6 one is judged as what it is."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address not in _UNICAST or address in _DOCUMENTATION:
            return False
    return address.is_global and not address.is_multicast


def _family(address: str) -> int:
    return int(socket.AF_INET6 if ":" in address else socket.AF_INET)

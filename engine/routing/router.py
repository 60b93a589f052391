"""From a recipient domain to a route: static routes first, else MX (RFC 5321 section 5.1, RFC 7505).

- MX hosts in order of preference, the best `resolver.max_hosts` of them; always port 25.
- A single MX record with the root as its host is a null MX: the domain takes no mail, 5.1.10. A null MX
beside others is malformed and passed over.
- The domain itself is its MX host only if it exists and has no MX records at all, and has an address.
- NXDOMAIN is permanent. SERVFAIL and time-outs are temporary: mail is never bounced for a DNS fault.
- The provider is found by the name of the best MX host, not by the recipient domain.

Answers are kept by their TTL, between `min_ttl` and `max_ttl`; negative ones too, failures for `failure_ttl`.
The cache is bounded; concurrent questions about one name are one question. The deadline of a route is twice
the resolver's: an MX question and, without MX records, the address questions.

An MX host that is an address on this or a private network is passed over unless `resolver.private_addresses`
is `allow`: a stranger's DNS must not direct the engine at its own network. Hosts of static routes are the
operator's.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Mapping
from typing import Literal

from engine.config.schema import FleetConfig, RouteConfig
from engine.config.types import split_host
from engine.providers.profiles import DEFAULT, Profile
from engine.routing.answers import AddressAnswer, MxAnswer, Resolver, Status
from engine.routing.cache import ExpiringCache
from engine.routing.route import Credentials, Failure, HostTarget, Route
from engine.routing.table import PatternTable, ProviderTable, rollup
from engine.values.clock import Clock
from engine.values.reply import Reply

SMTP_PORT = 25
TlsChoice = Literal["required", "disabled"]
Addresses = tuple[tuple[int, str], ...]


class Router:
    """Routes of domains and addresses of hosts. Used on one event loop."""

    def __init__(
        self, config: FleetConfig, profiles: Mapping[str, Profile], resolver: Resolver, clock: Clock
    ) -> None:
        self._options = config.resolver
        self._resolver = resolver
        self._providers = ProviderTable(profiles)
        self._tls_by_domain: PatternTable[TlsChoice] = PatternTable(
            (exception.domain, exception.mode)
            for exception in config.tls.exceptions
            if exception.domain is not None
        )
        self._tls_by_provider: dict[str, TlsChoice] = {
            exception.provider: exception.mode
            for exception in config.tls.exceptions
            if exception.provider is not None
        }
        self._static: PatternTable[RouteConfig] = PatternTable(
            (pattern, route) for route in config.routes for pattern in route.domains
        )
        self._static_hosts = frozenset(split_host(host)[0] for route in config.routes for host in route.hosts)
        self._routes: ExpiringCache[Route | Failure] = ExpiringCache(
            limit=self._options.cache_entries, clock=clock, loader=self._load_route
        )
        self._addresses: ExpiringCache[Addresses] = ExpiringCache(
            limit=self._options.cache_entries, clock=clock, loader=self._load_addresses
        )

    def cached(self, domain: str) -> Route | Failure | None:
        """What is known about a domain right now, without asking anybody."""
        return self._routes.get(domain)

    async def route(self, domain: str) -> Route | Failure:
        """The route of a recipient domain (ASCII, any case)."""
        return await self._routes.fetch(domain)

    async def addresses(self, host: str) -> Addresses:
        """(socket family, address) of a route's host, IPv6 and IPv4 by turns; () if there is none now."""
        return await self._addresses.fetch(host)

    def static_route(self, domain: str) -> RouteConfig | None:
        """The entry of `routes` that holds for a domain."""
        return self._static.get(_normal(domain))

    def tls_of(self, domain: str, provider: str, entry: RouteConfig | None = None) -> TlsChoice:
        """The route's own word, then exceptions by domain, then by provider; else TLS is required."""
        if entry is not None and entry.tls is not None:
            return entry.tls
        return self._tls_by_domain.get(_normal(domain)) or self._tls_by_provider.get(provider) or "required"

    def stats(self) -> dict[str, int]:
        return {
            "routes": len(self._routes),
            "route_hits": self._routes.hits,
            "route_misses": self._routes.misses,
            "addresses": len(self._addresses),
            "address_hits": self._addresses.hits,
            "address_misses": self._addresses.misses,
        }

    # -- routes

    async def _load_route(self, key: str) -> tuple[Route | Failure, float]:
        domain = _normal(key)
        entry = self._static.get(domain)
        if entry is not None and entry.hosts:
            return self._by_hosts(domain, entry), self._options.max_ttl
        try:
            async with asyncio.timeout(2 * self._options.timeout):
                return await self._by_mx(domain, entry)
        except TimeoutError:
            return _deferred(f"{domain}: DNS did not answer in time"), self._options.failure_ttl

    def _by_hosts(self, domain: str, entry: RouteConfig) -> Route:
        targets = tuple(
            HostTarget(*split_host(host), preference=index) for index, host in enumerate(entry.hosts)
        )
        if entry.provider != DEFAULT:
            site = entry.provider
        else:
            best = targets[0]
            site = f"mx:{rollup(best.name)}" if best.port == SMTP_PORT else f"mx:{best.name}:{best.port}"
        auth = Credentials(entry.auth.username, entry.auth.password_file) if entry.auth else None
        return Route(site, entry.provider, targets, self.tls_of(domain, entry.provider, entry), auth)

    async def _by_mx(self, domain: str, entry: RouteConfig | None) -> tuple[Route | Failure, float]:
        answer = await self._resolver.mx(domain)
        if answer.status is Status.FAILED:
            return _deferred(f"{domain}: {answer.reason}"), self._options.failure_ttl
        if answer.status is Status.MISSING:
            return _bounced("5.1.2", f"{domain}: {answer.reason}"), self._negative(answer)
        if answer.status is Status.EMPTY:
            return await self._by_own_address(domain, entry, answer)
        hosts = sorted({(preference, host) for preference, host in answer.hosts if host})
        if not hosts:
            return _bounced("5.1.10", f"{domain}: takes no mail (null MX)"), self._positive(answer)
        hosts = [(preference, host) for preference, host in hosts if self._may_be_mx(host)]
        if not hosts:
            return _bounced("5.4.4", f"{domain}: no MX host that may be used"), self._positive(answer)
        return self._by_names(domain, entry, hosts), self._positive(answer)

    async def _by_own_address(
        self, domain: str, entry: RouteConfig | None, mx: MxAnswer
    ) -> tuple[Route | Failure, float]:
        """RFC 5321 section 5.1: without MX records the domain's own address is its only host."""
        ttl_s = self._negative(mx)
        v4, v6 = await self._ask_both(domain)
        if Status.FOUND in (v4.status, v6.status):
            if not (*self._usable(v4.addresses), *self._usable(v6.addresses)):
                return _bounced("5.4.4", f"{domain}: no address that may be used"), ttl_s
            return self._by_names(domain, entry, [(0, domain)]), ttl_s
        failed = next((a for a in (v4, v6) if a.status is Status.FAILED), None)
        if failed is not None:
            return _deferred(f"{domain}: {failed.reason}"), self._options.failure_ttl
        return _bounced("5.1.2", f"{domain}: neither MX nor address records"), ttl_s

    def _by_names(self, domain: str, entry: RouteConfig | None, hosts: list[tuple[int, str]]) -> Route:
        best = hosts[0][1]
        provider = entry.provider if entry is not None else self._providers.get(best) or DEFAULT
        return Route(
            site=provider if provider != DEFAULT else f"mx:{rollup(best)}",
            provider=provider,
            hosts=tuple(
                HostTarget(h, SMTP_PORT, preference) for preference, h in hosts[: self._options.max_hosts]
            ),
            tls=self.tls_of(domain, provider, entry),
        )

    # -- addresses

    async def _load_addresses(self, host: str) -> tuple[Addresses, float]:
        try:
            literal = ipaddress.ip_address(host)
        except ValueError:
            pass
        else:
            usable = host in self._static_hosts or self._is_allowed(literal)
            family = socket.AF_INET if literal.version == 4 else socket.AF_INET6
            return (((family, host),) if usable else ()), self._options.max_ttl
        try:
            async with asyncio.timeout(2 * self._options.timeout):
                v4, v6 = await self._ask_both(host)
        except TimeoutError:
            return (), self._options.failure_ttl
        trusted = host in self._static_hosts
        old = [(socket.AF_INET, a) for a in (v4.addresses if trusted else self._usable(v4.addresses))]
        new = [(socket.AF_INET6, a) for a in (v6.addresses if trusted else self._usable(v6.addresses))]
        found: list[tuple[int, str]] = []
        for index in range(max(len(old), len(new))):
            found += [
                (int(family), address)
                for family, address in (*new[index : index + 1], *old[index : index + 1])
            ]
        if Status.FAILED in (v4.status, v6.status):
            return tuple(found[: self._options.max_hosts]), self._options.failure_ttl
        ttls = [self._positive(a) if a.status is Status.FOUND else self._negative(a) for a in (v4, v6)]
        kept_s = (
            min(ttl for ttl, a in zip(ttls, (v4, v6), strict=True) if a.status is Status.FOUND)
            if found
            else min(ttls)
        )
        return tuple(found[: self._options.max_hosts]), kept_s

    async def _ask_both(self, host: str) -> tuple[AddressAnswer, AddressAnswer]:
        v4, v6 = await asyncio.gather(
            self._resolver.addresses(host, ipv6=False), self._resolver.addresses(host, ipv6=True)
        )
        return v4, v6

    def _may_be_mx(self, host: str) -> bool:
        """An address in place of a name is not allowed in an MX record, but seen; it must be a public one."""
        try:
            return self._is_allowed(ipaddress.ip_address(host))
        except ValueError:
            return host != "localhost" or self._options.private_addresses == "allow"

    def _usable(self, addresses: tuple[str, ...]) -> list[str]:
        return [address for address in addresses if self._is_allowed(ipaddress.ip_address(address))]

    def _is_allowed(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        return self._options.private_addresses == "allow" or is_public(address)

    def _positive(self, answer: MxAnswer | AddressAnswer) -> float:
        return min(max(answer.ttl_s, self._options.min_ttl), self._options.max_ttl)

    def _negative(self, answer: MxAnswer | AddressAnswer) -> float:
        return min(max(answer.ttl_s, self._options.min_ttl), self._options.negative_ttl)


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether strangers may direct mail there; an IPv4 address inside an IPv6 one is judged as what it is."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def _normal(domain: str) -> str:
    return domain.lower().rstrip(".")


def _deferred(text: str) -> Failure:
    return Failure("deferred", Reply(0, "4.4.3", text))


def _bounced(enhanced: str, text: str) -> Failure:
    return Failure("bounced", Reply(0, enhanced, text))

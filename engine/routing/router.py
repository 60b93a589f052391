"""From a recipient domain to a route: static routes first, else MX (RFC 5321 section 5.1, RFC 7505).

- MX hosts in order of preference, the best `resolver.max_hosts` of them; always port 25. If equal ones are too many,
some of them, others every `TURN_S`: none is idle for ever, and mail is not stuck to dead ones. Domains with the same
hosts get the same ones, and so share sessions.
- A single MX record with the root as its host is a null MX: the domain takes no mail, 5.1.10. A null MX
beside others is malformed and passed over.
- The domain itself is its MX host only if it exists and has no MX records at all, and has an address.
- NXDOMAIN is permanent. SERVFAIL and time-outs are temporary: mail is never bounced for a DNS fault.
- The provider is found by the name of the best MX host, not by the recipient domain.

Answers are kept by their TTL, between `min_ttl` and `max_ttl`; negative ones too, failures for `failure_ttl`.
The cache is bounded; concurrent questions about one name are one question. The deadline of a route is twice
the resolver's: an MX question and, without MX records, the address questions.

A domain one of whose MX hosts is a source of this fleet (engine/routing/hosts.py) is sent only to the hosts that are
more preferred than that one; if there are none, the mail would come back, and is bounced with 5.4.6. A static route
says otherwise, for a source that takes mail too.
"""

import asyncio
import ipaddress
import random
from collections.abc import Mapping
from typing import Literal

from engine.config.schema import FleetConfig, RouteConfig
from engine.config.types import split_host
from engine.providers.profiles import DEFAULT, Profile
from engine.routing.answers import MxAnswer, Resolver, Status
from engine.routing.cache import ExpiringCache
from engine.routing.hosts import Hosts
from engine.routing.route import Credentials, Failure, HostAnswer, HostTarget, Route
from engine.routing.table import PatternTable, ProviderTable, rollup
from engine.values.clock import Clock
from engine.values.reply import Reply

SMTP_PORT = 25
TURN_S = 900.0
TlsChoice = Literal["required", "disabled", "unverified", "verified"]


class Router:
    """Routes of domains and addresses of hosts. Used on one event loop."""

    def __init__(
        self, config: FleetConfig, profiles: Mapping[str, Profile], resolver: Resolver, clock: Clock
    ) -> None:
        self._options = config.resolver
        self._resolver = resolver
        self._clock = clock
        self._seed = random.getrandbits(64)  # processes and restarts choose differently
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
        self._hosts = Hosts(config, resolver, clock)
        self._routes: ExpiringCache[Route | Failure] = ExpiringCache(
            limit=self._options.cache_entries, clock=clock, loader=self._load_route
        )

    def cached(self, domain: str) -> Route | Failure | None:
        """What is known about a domain right now, without asking anybody."""
        return self._routes.get(domain)

    async def route(self, domain: str) -> Route | Failure:
        """The route of a recipient domain (ASCII, any case)."""
        return await self._routes.fetch(domain)

    async def addresses(self, host: str) -> HostAnswer:
        """The addresses of a route's host."""
        return await self._hosts.get(host)

    async def stranger_addresses(self, host: str) -> list[str]:
        """Addresses that a stranger's DNS may direct us to, for what is no mail: none of the operator's own hosts."""
        answer = await self._hosts.get(host)
        return [a for _, a in answer.addresses if self._hosts.is_allowed(ipaddress.ip_address(a))]

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
            "addresses": len(self._hosts.answers),
            "address_hits": self._hosts.answers.hits,
            "address_misses": self._hosts.answers.misses,
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
        tls = self.tls_of(domain, entry.provider, entry)
        return Route(site, entry.provider, targets, tls, auth, is_authenticated=True, is_static=True)

    async def _by_mx(self, domain: str, entry: RouteConfig | None) -> tuple[Route | Failure, float]:
        answer = await self._resolver.mx(domain)
        if answer.status is Status.FAILED:
            return _deferred(f"{domain}: {answer.reason}"), self._options.failure_ttl
        if answer.status is Status.MISSING:
            return _bounced("5.1.2", f"{domain}: {answer.reason}"), self._hosts.negative_ttl(answer.ttl_s)
        if answer.status is Status.EMPTY:
            return await self._by_own_address(domain, entry, answer)
        hosts = sorted({(preference, host) for preference, host in answer.hosts if host})
        if not hosts:
            return _bounced("5.1.10", f"{domain}: takes no mail (null MX)"), self._hosts.positive_ttl(
                answer.ttl_s
            )
        own = next((preference for preference, host in hosts if self._hosts.is_own(host)), None)
        if own is not None:
            hosts = [(preference, host) for preference, host in hosts if preference < own]
            if not hosts:
                return _loop(domain), self._hosts.positive_ttl(answer.ttl_s)
        hosts = [(preference, host) for preference, host in hosts if self._hosts.may_be_mx(host)]
        if not hosts:
            return _bounced("5.4.4", f"{domain}: no MX host that may be used"), self._hosts.positive_ttl(
                answer.ttl_s
            )
        kept_s = self._hosts.positive_ttl(answer.ttl_s)
        if len(hosts) > self._options.max_hosts:
            kept_s = min(kept_s, TURN_S)
        return self._by_names(domain, entry, hosts, is_authenticated=answer.authenticated), kept_s

    async def _by_own_address(
        self, domain: str, entry: RouteConfig | None, mx: MxAnswer
    ) -> tuple[Route | Failure, float]:
        """RFC 5321 section 5.1: without MX records the domain's own address is its only host."""
        ttl_s = self._hosts.negative_ttl(mx.ttl_s)
        if self._hosts.is_own(domain):
            return _loop(domain), ttl_s
        v4, v6 = await self._hosts.ask_both(domain)
        if Status.FOUND in (v4.status, v6.status):
            found = map(ipaddress.ip_address, (*v4.addresses, *v6.addresses))
            if not any(map(self._hosts.is_allowed, found)):
                return _bounced("5.4.4", f"{domain}: no address that may be used"), ttl_s
            return self._by_names(domain, entry, [(0, domain)], is_authenticated=mx.authenticated), ttl_s
        failed = next((a for a in (v4, v6) if a.status is Status.FAILED), None)
        if failed is not None:
            return _deferred(f"{domain}: {failed.reason}"), self._options.failure_ttl
        return _bounced("5.1.2", f"{domain}: neither MX nor address records"), ttl_s

    def _by_names(
        self, domain: str, entry: RouteConfig | None, hosts: list[tuple[int, str]], *, is_authenticated: bool
    ) -> Route:
        best = hosts[0][1]
        provider = entry.provider if entry is not None else self._providers.get(best) or DEFAULT
        return Route(
            site=provider if provider != DEFAULT else f"mx:{rollup(best)}",
            provider=provider,
            hosts=tuple(HostTarget(h, SMTP_PORT, preference) for preference, h in self._chosen(hosts)),
            tls=self.tls_of(domain, provider, entry),
            is_authenticated=is_authenticated,
            is_by_provider=entry is None
            and provider in self._tls_by_provider
            and not self._tls_by_domain.get(domain),
        )

    def _chosen(self, hosts: list[tuple[int, str]]) -> list[tuple[int, str]]:
        """`max_hosts` of these, which are sorted: the preferred ones, and this turn's choice of the last equal ones."""
        most = self._options.max_hosts
        if len(hosts) <= most:
            return hosts
        cut = hosts[most][0]
        kept = [host for host in hosts if host[0] < cut]
        equal = [host for host in hosts if host[0] == cut]
        random.Random(self._seed).shuffle(equal)
        count = most - len(kept)
        first = self._clock.monotonic_ns() // round(TURN_S * 1e9) * count
        return kept + sorted(equal[(first + index) % len(equal)] for index in range(count))


def _normal(domain: str) -> str:
    return domain.lower().rstrip(".")


def _deferred(text: str) -> Failure:
    return Failure("deferred", Reply(0, "4.4.3", text))


def _bounced(enhanced: str, text: str) -> Failure:
    return Failure("bounced", Reply(0, enhanced, text))


def _loop(domain: str) -> Failure:
    return _bounced(
        "5.4.6", f"{domain}: its best MX host is a source of this fleet, the mail would come back"
    )

"""Routes with their TLS policy: the one place where the order of policies is decided.

For a host that the mail of a domain may go to:
1. A written exception of the configuration, or the credentials of a smart host: the operator's word ends the search.
   But not an exception by provider for a domain whose MTA-STS policy is enforced: which provider it is, unsigned MX
   records say, and whoever forges them would choose the exception.
2. DANE (RFC 7672), if the MX records, the host's addresses and its TLSA records are all authenticated. A look-up of
   TLSA records that fails is a deferral: it never means "no DANE" (section 2.1.2).
3. MTA-STS (RFC 8461), by the policy of the recipient domain. DANE wins (section 2).
4. TLS is required, whoever the peer is: an MX name from unsigned DNS proves nothing.
Where DANE has only unusable records (RFC 7672 section 2.2) the search goes on, and ends with required TLS at least.

A policy belongs to a recipient domain. It is part of the route, and lanes, sessions with them, are kept by route: two
domains whose policies differ never share a session, whatever hosts they share.

A message with REQUIRETLS (RFC 8689) has a route of its own, on which every host must prove its name and offer
REQUIRETLS, and the name itself must be vouched for: by DNSSEC, by an MTA-STS policy, or by the configuration.

A message with ANY_TLS, as TLS reports are (RFC 8460 section 5.3.1: failures of MTA-STS and DANE do not count for them),
has one too, on which these policies are only tested: what fails is counted, and the session goes on under plain
required TLS. Written exceptions hold for it like for any other.
"""

import functools
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from engine.config.schema import FleetConfig
from engine.providers.profiles import Profile
from engine.routing.answers import NameAnswer, RecordResolver, Status, Tlsa, TlsaAnswer
from engine.routing.cache import ExpiringCache
from engine.routing.route import Failure, HostAnswer, HostTarget, Route
from engine.routing.router import Router
from engine.tls.dane import published, usable_records
from engine.tls.policy import (
    ENCRYPT,
    PLAIN,
    UNVERIFIED,
    VERIFIED,
    Check,
    Fault,
    HostPolicy,
    PolicyKind,
    PolicyRefusal,
    TlsFault,
)
from engine.tls.sts import StsPolicy
from engine.tls.sts_fetch import https_context
from engine.tls.sts_policies import NO_POLICY, StsAnswer, StsPolicies
from engine.tls.sts_store import StsStore
from engine.values.clock import Clock
from engine.values.options import Flag
from engine.values.reply import Reply

STS_FILE = "mta-sts.sqlite"
TLSA_CACHE = 20_000
MIN_KEPT_S, MAX_KEPT_S, FAILURE_KEPT_S = 30.0, 3600.0, 30.0
WISHED_ROUTES = 2000


class PlainRoutes(Protocol):
    """engine/routing/router.py."""

    def cached(self, domain: str) -> Route | Failure | None: ...
    async def route(self, domain: str) -> Route | Failure: ...
    async def addresses(self, host: str) -> HostAnswer: ...


class TlsResolver(Protocol):
    """The questions of TLS policies."""

    async def tlsa(self, host: str, *, port: int) -> TlsaAnswer: ...
    async def alias(self, name: str) -> NameAnswer: ...


@dataclass(frozen=True, slots=True)
class SecuredRoute:
    """A route, and what the domains that use it demand. Equal ones share sessions."""

    site: str
    provider: str
    hosts: tuple[HostTarget, ...]
    tls: str
    auth: Any = None
    is_authenticated: bool = False
    sts: StsAnswer = NO_POLICY
    requires_tls: bool = False
    is_by_provider: bool = False
    any_tls: bool = False

    @property
    def is_excepted(self) -> bool:
        """Whether a written exception holds."""
        if self.tls == "required":
            return False
        policy = self.sts.policy
        return not (self.is_by_provider and policy is not None and policy.mode == "enforce")


@dataclass(frozen=True, slots=True)
class _Dane:
    """What DANE says of a host: `records` are usable; without any, TLS is required if `exists`."""

    base: str = ""
    records: tuple[Tlsa, ...] = ()
    exists: bool = False
    failure: str = ""


_NO_DANE = _Dane()


class SecureRoutes:
    """Routes of domains and policies of hosts. Used on one event loop."""

    def __init__(
        self,
        router: PlainRoutes,
        resolver: TlsResolver,
        clock: Clock,
        *,
        limit: int,
        sts: StsPolicies | None = None,
    ) -> None:
        self._router = router
        self._resolver = resolver
        self._limit = limit
        self._sts = sts
        self._secured: OrderedDict[str, tuple[Route, SecuredRoute]] = OrderedDict()
        self._dane: ExpiringCache[_Dane] = ExpiringCache(
            limit=TLSA_CACHE, clock=clock, loader=self._find_tlsa
        )

    # -- routes

    def cached(self, domain: str) -> Any:
        """What is known about a domain right now, without asking anybody."""
        route = self._router.cached(domain)
        if not isinstance(route, Route):
            return route
        if self._sts is None or not _may_have_sts(route):
            return self._secure(domain, route, NO_POLICY)
        sts = self._sts.cached(domain)
        return None if sts is None else self._secure(domain, route, sts)

    async def route(self, domain: str) -> Any:
        """The route of a recipient domain, or a Failure."""
        route = await self._router.route(domain)
        if not isinstance(route, Route):
            return route
        if self._sts is None or not _may_have_sts(route):
            return self._secure(domain, route, NO_POLICY)
        return self._secure(domain, route, await self._sts.get(domain))

    async def addresses(self, host: str) -> HostAnswer:
        return await self._router.addresses(host)

    def wished(self, route: SecuredRoute, tls_wish: int) -> SecuredRoute:
        """The route for messages with REQUIRE_TLS or ANY_TLS (engine/values/options.py)."""
        return _wished(route, tls_wish)

    def _secure(self, domain: str, route: Route, sts: StsAnswer) -> SecuredRoute:
        known = self._secured.get(domain)
        if known is not None and known[0] is route and known[1].sts is sts:
            return known[1]
        secured = SecuredRoute(
            site=route.site,
            provider=route.provider,
            hosts=route.hosts,
            tls=route.tls,
            auth=route.auth,
            is_authenticated=route.is_authenticated,
            sts=sts,
            is_by_provider=route.is_by_provider,
        )
        self._secured[domain] = route, secured
        self._secured.move_to_end(domain)
        if len(self._secured) > self._limit:
            self._secured.popitem(last=False)
        return secured

    # -- policies

    async def policy(
        self, route: SecuredRoute, host: HostTarget, answer: HostAnswer
    ) -> HostPolicy | PolicyRefusal:
        """What a session to this host of the route must satisfy, or why there must be none now."""
        if route.requires_tls and not _is_vouched(route, host.name):
            return _unvouched(route.sts, host.name)
        found = await self._policy(route, host, answer)
        if route.any_tls:
            return _tested(found)
        return _hardened(found) if route.requires_tls and isinstance(found, HostPolicy) else found

    async def _policy(
        self, route: SecuredRoute, host: HostTarget, answer: HostAnswer
    ) -> HostPolicy | PolicyRefusal:
        if route.auth is not None:
            return VERIFIED
        if route.is_excepted:
            return _EXCEPTIONS[route.tls]
        dane = await self._dane_of(route, host, answer)
        if dane.failure:
            text = f"{host.name}: TLSA records cannot be looked up: {dane.failure}"
            return _refusal(TlsFault(Fault.DNSSEC_INVALID, text), PolicyKind.DANE)
        if dane.records:
            return HostPolicy(
                PolicyKind.DANE,
                Check.DANE,
                names=(dane.base,) if dane.base == host.name else (dane.base, host.name),
                records=dane.records,
                published=published(dane.base, dane.records),
            )
        return _by_sts(route.sts.policy, host.name) if route.sts.policy is not None else _required(route.sts)

    async def _dane_of(self, route: SecuredRoute, host: HostTarget, answer: HostAnswer) -> _Dane:
        """Section 2.2: only authenticated MX records count, then the addresses, then the TLSA records."""
        if not route.is_authenticated or not answer.canonical:
            return _NO_DANE
        if not answer.is_authenticated and answer.canonical == host.name:
            return _NO_DANE  # section 2.2.2: such a zone is not asked, some name servers fail then
        bases = [host.name]
        if answer.is_authenticated and answer.canonical != host.name:
            bases.insert(0, answer.canonical)
        elif not answer.is_authenticated:
            bases.append("")  # an alias that leads into an unsigned zone: its own name may be signed
        return await self._dane.fetch(f"{host.port} {' '.join(bases)}")

    async def _find_tlsa(self, key: str) -> tuple[_Dane, float]:
        port, *bases = key.split(" ")
        if bases[-1] == "":
            bases.pop()
            alias = await self._resolver.alias(bases[0])
            if alias.status is Status.FAILED:
                return _Dane(failure=alias.reason), FAILURE_KEPT_S
            if not alias.authenticated:
                return _NO_DANE, _kept_s(alias.ttl_s)
        kept_s = MAX_KEPT_S
        for base in bases:
            found = await self._resolver.tlsa(base, port=int(port))
            if found.status is Status.FAILED:
                return _Dane(failure=found.reason), FAILURE_KEPT_S
            kept_s = min(kept_s, _kept_s(found.ttl_s))
            if found.status is Status.FOUND and found.authenticated:
                return _Dane(base, usable_records(found.records), exists=True), kept_s
        return _NO_DANE, kept_s


def build_routes(
    config: FleetConfig,
    profiles: Mapping[str, Profile],
    resolver: RecordResolver,
    clock: Clock,
    *,
    directory: Path | None,
) -> SecureRoutes:
    """The routes of a pool, as the configuration describes them. `directory`: where the node keeps MTA-STS policies;
    None: there is no MTA-STS.
    """
    router = Router(config, profiles, resolver, clock)
    limit = config.resolver.cache_entries
    sts = None
    if directory is not None and config.tls.mta_sts.enabled:
        sts = StsPolicies(
            resolver=resolver,
            addresses=router.addresses,
            store=StsStore(directory / STS_FILE),
            context=https_context(config.tls.authorities),
            clock=clock,
            timeout_s=config.tls.mta_sts.timeout,
            limit=limit,
        )
    return SecureRoutes(router, resolver, clock, limit=limit, sts=sts)


def _may_have_sts(route: Route) -> bool:
    """A policy is about the MX records of a domain; an exception that they did not choose ends the search before."""
    return (route.tls == "required" or route.is_by_provider) and not route.is_static


def _by_sts(policy: StsPolicy, host: str) -> HostPolicy | PolicyRefusal:
    """RFC 8461 sections 4.1 and 5: a host that the policy names, with a certificate good for the host's name."""
    is_testing = policy.mode == "testing"
    if not policy.matches(host):
        text = f"{host} is not a host of the MTA-STS policy of {policy.domain}"
        fault = TlsFault(Fault.VALIDATION, text)
        if not is_testing:
            return _refusal(fault, PolicyKind.STS, policy.lines())
        return HostPolicy(
            PolicyKind.STS, Check.ENCRYPT, is_testing=True, published=policy.lines(), fault=fault
        )
    return HostPolicy(PolicyKind.STS, Check.NAME, is_testing=is_testing, published=policy.lines())


def _required(sts: StsAnswer) -> HostPolicy:
    """TLS, whoever the peer is; a domain whose policy cannot be had is told so in its report."""
    return ENCRYPT if sts.fault is None else replace(ENCRYPT, fault=sts.fault)


def _refusal(fault: TlsFault, kind: PolicyKind, lines: tuple[str, ...] = ()) -> PolicyRefusal:
    return PolicyRefusal(fault, Reply(0, "4.7.5", fault.text[:1024]), kind, lines)


def _is_vouched(route: SecuredRoute, host: str) -> bool:
    """RFC 8689 section 4.2.1: whoever forges MX records must not choose whose certificate is good."""
    policy = route.sts.policy
    return route.is_authenticated or (policy is not None and policy.matches(host))


def _unvouched(sts: StsAnswer, host: str) -> PolicyRefusal:
    """It may wait for a policy that exists and cannot be had just now."""
    text = f"REQUIRETLS: neither DNSSEC nor an MTA-STS policy vouches for the MX host {host}"
    if sts.fault is not None:
        return _refusal(TlsFault(sts.fault.fault, f"{text}: {sts.fault.text}"), PolicyKind.STS)
    fault = TlsFault(Fault.VALIDATION, text)
    return PolicyRefusal(fault, Reply(0, "5.7.30", text[:1024]), PolicyKind.REQUIRED, is_final=True)


_EXCEPTIONS = {"disabled": PLAIN, "unverified": UNVERIFIED, "verified": VERIFIED}


def _hardened(policy: HostPolicy) -> HostPolicy:
    """For REQUIRETLS: RFC 8689 section 4.2.1 wants a certificate that DANE or an authority vouches for."""
    if policy.check is Check.DANE:
        return replace(policy, requires_tls=True)
    return replace(policy, check=Check.NAME, is_testing=False, fault=None, requires_tls=True)


def _tested(policy: HostPolicy | PolicyRefusal) -> HostPolicy:
    """For ANY_TLS: DANE and MTA-STS as MTA-STS mode `testing` has it."""
    if isinstance(policy, PolicyRefusal):
        return HostPolicy(
            policy.kind, Check.ENCRYPT, is_testing=True, published=policy.published, fault=policy.fault
        )
    return replace(policy, is_testing=True) if policy.kind in (PolicyKind.DANE, PolicyKind.STS) else policy


@functools.lru_cache(WISHED_ROUTES)
def _wished(route: SecuredRoute, tls_wish: int) -> SecuredRoute:
    return replace(
        route, requires_tls=bool(tls_wish & Flag.REQUIRE_TLS), any_tls=bool(tls_wish & Flag.ANY_TLS)
    )


def _kept_s(ttl_s: float) -> float:
    return min(max(ttl_s, MIN_KEPT_S), MAX_KEPT_S)

"""The DNS edge: the only module that imports dnspython.

It asks and translates. Caching is in engine/routing/router.py, so dnspython's own cache is off. CNAME chains
are followed by dnspython, which bounds them. A truncated answer is asked for again over TCP. The deadline
covers all servers and retries of one question.

Diagnostics: NXDOMAIN is MISSING (permanent); SERVFAIL, REFUSED, time-outs and broken answers are FAILED
(temporary), as RFC 5321 section 5.1 demands.
"""

import dns.asyncresolver
import dns.exception
import dns.name
import dns.rdatatype
import dns.resolver

from engine.config.schema import ResolverConfig
from engine.routing.answers import AddressAnswer, MxAnswer, Status

_NEGATIVE_TTL_S = 300.0


class DnsResolver:
    """Asks the configured nameservers, or those of the system."""

    def __init__(self, config: ResolverConfig) -> None:
        self._resolver = dns.asyncresolver.Resolver(configure=not config.nameservers)
        if config.nameservers:
            self._resolver.nameservers = list(config.nameservers)
            self._resolver.port = config.port
        self._resolver.cache = None
        self._resolver.search = []
        self._resolver.domain = dns.name.root
        self._resolver.lifetime = config.timeout
        self._resolver.timeout = min(2.0, config.timeout)

    async def mx(self, domain: str) -> MxAnswer:
        answer = await self._ask(domain, dns.rdatatype.MX)
        if isinstance(answer, _Negative):
            return MxAnswer(answer.status, ttl_s=answer.ttl_s, reason=answer.reason)
        hosts = tuple((int(record.preference), _text(record.exchange)) for record in answer)
        return MxAnswer(Status.FOUND, hosts, float(answer.ttl))

    async def addresses(self, host: str, *, ipv6: bool) -> AddressAnswer:
        answer = await self._ask(host, dns.rdatatype.AAAA if ipv6 else dns.rdatatype.A)
        if isinstance(answer, _Negative):
            return AddressAnswer(answer.status, ttl_s=answer.ttl_s, reason=answer.reason)
        return AddressAnswer(Status.FOUND, tuple(str(record.address) for record in answer), float(answer.ttl))

    async def _ask(self, name: str, kind: dns.rdatatype.RdataType) -> "dns.resolver.Answer | _Negative":
        try:
            absolute = dns.name.from_text(name).concatenate(dns.name.empty)
            return await self._resolver.resolve(absolute, kind, search=False)
        except dns.resolver.NXDOMAIN as error:
            return _Negative(Status.MISSING, _negative_ttl(error), "no such domain")
        except dns.resolver.NoAnswer as error:
            return _Negative(Status.EMPTY, _negative_ttl(error), f"no {kind.name} records")
        except dns.exception.Timeout:
            return _Negative(
                Status.FAILED, 0.0, f"no answer to {kind.name} within {self._resolver.lifetime:g} s"
            )
        except dns.resolver.NoNameservers:
            return _Negative(Status.FAILED, 0.0, f"the name servers fail for {kind.name}")
        except (dns.name.LabelTooLong, dns.name.NameTooLong, dns.name.EmptyLabel, dns.name.BadEscape):
            return _Negative(Status.MISSING, _NEGATIVE_TTL_S, "not a domain name")
        except (dns.exception.DNSException, OSError) as error:
            return _Negative(Status.FAILED, 0.0, f"{kind.name}: {type(error).__name__}")


class _Negative:
    __slots__ = ("reason", "status", "ttl_s")

    def __init__(self, status: Status, ttl_s: float, reason: str) -> None:
        self.status = status
        self.ttl_s = ttl_s
        self.reason = reason


def _negative_ttl(error: dns.resolver.NXDOMAIN | dns.resolver.NoAnswer) -> float:
    """RFC 2308 section 5: the lesser of the SOA's TTL and its minimum, from the authority section."""
    if isinstance(error, dns.resolver.NXDOMAIN):
        responses = list(error.kwargs["responses"].values())
    else:
        responses = [error.kwargs["response"]]
    for response in responses:
        for rrset in response.authority:
            if rrset.rdtype == dns.rdatatype.SOA:
                return float(min(rrset.ttl, rrset[0].minimum))
    return _NEGATIVE_TTL_S


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower().removesuffix(".")


def build_resolver(config: ResolverConfig) -> DnsResolver:
    """The resolver that the configuration describes."""
    return DnsResolver(config)

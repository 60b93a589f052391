"""The DNS edge: the only module that imports dnspython.

It asks and translates. Caching is in engine/routing/router.py, so dnspython's own cache is off. CNAME chains
are followed by dnspython, which bounds them. A truncated answer is asked for again over TCP. The deadline
covers all servers and retries of one question.

DNSSEC is the nameserver's work: it validates, and says by the AD bit that it did (RFC 4035 section 3.2.3). The
question carries the AD bit too, which asks for it without asking for the signatures (RFC 6840 section 5.7). What
it says counts only with `resolver.dnssec: trust`, because anybody on the path could set the bit.

Diagnostics: NXDOMAIN is MISSING (permanent); SERVFAIL, REFUSED, time-outs and broken answers are FAILED
(temporary), as RFC 5321 section 5.1 demands. An answer that fails validation comes as SERVFAIL: FAILED.
dnspython refuses a whole answer in which one TLSA record has a digest of the wrong length, which would hold a domain's
mail back for ever; here that is allowed, because engine/tls/dane.py passes over such a record alone (RFC 7672 section
2.2).
"""

from dataclasses import dataclass

import dns.asyncresolver
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rdatatype
import dns.rdtypes.tlsabase
import dns.resolver
import dns.reversename

from engine.config.schema import ResolverConfig
from engine.routing.answers import (
    AddressAnswer,
    MxAnswer,
    NameAnswer,
    Status,
    TextAnswer,
    Tlsa,
    TlsaAnswer,
)

_NEGATIVE_TTL_S = 300.0

# should a later dnspython have no such table, its refusal is FAILED: deferred, and a test tells
dns.rdtypes.tlsabase.TLSABase._cert_length_by_mtype = {}


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
        self._trusted = config.dnssec == "trust"
        self._resolver.flags = dns.flags.RD | (dns.flags.AD if self._trusted else 0)

    async def mx(self, domain: str) -> MxAnswer:
        answer = await self._ask(domain, dns.rdatatype.MX)
        if isinstance(answer, _Negative):
            return MxAnswer(
                answer.status, (), answer.ttl_s, answer.reason, self._is_authenticated(answer.response)
            )
        hosts = tuple((int(record.preference), _text(record.exchange)) for record in answer)
        return MxAnswer(Status.FOUND, hosts, float(answer.ttl), "", self._is_authenticated(answer.response))

    async def addresses(self, host: str, *, ipv6: bool) -> AddressAnswer:
        answer = await self._ask(host, dns.rdatatype.AAAA if ipv6 else dns.rdatatype.A)
        if isinstance(answer, _Negative):
            return AddressAnswer(
                answer.status, (), answer.ttl_s, answer.reason, self._is_authenticated(answer.response)
            )
        return AddressAnswer(
            Status.FOUND,
            tuple(str(record.address) for record in answer),
            float(answer.ttl),
            "",
            self._is_authenticated(answer.response),
            _text(answer.canonical_name),
        )

    async def text(self, name: str) -> TextAnswer:
        answer = await self._ask(name, dns.rdatatype.TXT)
        if isinstance(answer, _Negative):
            return TextAnswer(
                answer.status, (), answer.ttl_s, answer.reason, self._is_authenticated(answer.response)
            )
        texts = tuple(b"".join(record.strings).decode("utf-8", "replace") for record in answer)
        return TextAnswer(Status.FOUND, texts, float(answer.ttl), "", self._is_authenticated(answer.response))

    async def tlsa(self, host: str, *, port: int) -> TlsaAnswer:
        answer = await self._ask(f"_{port}._tcp.{host}", dns.rdatatype.TLSA)
        if isinstance(answer, _Negative):
            return TlsaAnswer(
                answer.status, (), answer.ttl_s, answer.reason, self._is_authenticated(answer.response)
            )
        records = tuple(
            Tlsa(int(record.usage), int(record.selector), int(record.mtype), bytes(record.cert))
            for record in answer
        )
        return TlsaAnswer(
            Status.FOUND, records, float(answer.ttl), "", self._is_authenticated(answer.response)
        )

    async def reverse(self, address: str) -> NameAnswer:
        return await self._names(dns.reversename.from_address(address).to_text(), dns.rdatatype.PTR)

    async def alias(self, name: str) -> NameAnswer:
        return await self._names(name, dns.rdatatype.CNAME)

    async def _names(self, name: str, kind: dns.rdatatype.RdataType) -> NameAnswer:
        answer = await self._ask(name, kind)
        if isinstance(answer, _Negative):
            return NameAnswer(
                answer.status, (), answer.ttl_s, answer.reason, self._is_authenticated(answer.response)
            )
        names = tuple(_text(record.target) for record in answer)
        return NameAnswer(Status.FOUND, names, float(answer.ttl), "", self._is_authenticated(answer.response))

    def _is_authenticated(self, response: dns.message.Message | None) -> bool:
        return self._trusted and response is not None and bool(response.flags & dns.flags.AD)

    async def _ask(self, name: str, kind: dns.rdatatype.RdataType) -> "dns.resolver.Answer | _Negative":
        try:
            absolute = dns.name.from_text(name).concatenate(dns.name.empty)
            return await self._resolver.resolve(absolute, kind, search=False)
        except dns.resolver.NXDOMAIN as error:
            response = _last_response(error)
            return _Negative(Status.MISSING, _negative_ttl(response), "no such domain", response)
        except dns.resolver.NoAnswer as error:
            response = _last_response(error)
            return _Negative(Status.EMPTY, _negative_ttl(response), f"no {kind.name} records", response)
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


@dataclass(frozen=True, slots=True)
class _Negative:
    status: Status
    ttl_s: float
    reason: str
    response: dns.message.Message | None = None


def _last_response(error: dns.resolver.NXDOMAIN | dns.resolver.NoAnswer) -> dns.message.Message | None:
    if isinstance(error, dns.resolver.NXDOMAIN):
        return next(iter(error.kwargs["responses"].values()), None)
    response: dns.message.Message = error.kwargs["response"]
    return response


def _negative_ttl(response: dns.message.Message | None) -> float:
    """RFC 2308 section 5: the lesser of the SOA's TTL and its minimum, from the authority section."""
    for rrset in response.authority if response is not None else ():
        if rrset.rdtype == dns.rdatatype.SOA:
            return float(min(rrset.ttl, rrset[0].minimum))
    return _NEGATIVE_TTL_S


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower().removesuffix(".")


def build_resolver(config: ResolverConfig) -> DnsResolver:
    """The resolver that the configuration describes."""
    return DnsResolver(config)

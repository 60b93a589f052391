"""check_host() of RFC 7208: whether a domain's SPF record permits an address.

The limits of section 4.6.4 are kept as receivers keep them: ten terms that ask the DNS, two of them without an
answer, ten hosts in an MX answer; beyond them the result is permerror, which many receivers take for a failure.
`lookups` and `voids` tell how near a record is to them.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from engine.doctor.spf_record import (
    Mechanism,
    SpfRecord,
    SpfSyntaxError,
    expand,
    is_spf,
    parse_record,
    uses_macro,
)
from engine.routing.answers import AddressAnswer, MxAnswer, NameAnswer, Status, TextAnswer

MAX_LOOKUPS = 10
MAX_VOIDS = 2
MAX_HOSTS = 10
_MAX_NAME = 253

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class SpfResult(Enum):
    """Section 2.6."""

    NONE = "none"
    NEUTRAL = "neutral"
    PASS = "pass"
    FAIL = "fail"
    SOFTFAIL = "softfail"
    TEMPERROR = "temperror"
    PERMERROR = "permerror"


_QUALIFIED = {
    "+": SpfResult.PASS,
    "-": SpfResult.FAIL,
    "~": SpfResult.SOFTFAIL,
    "?": SpfResult.NEUTRAL,
}


class SpfQuestions(Protocol):
    """What the evaluation asks."""

    async def text(self, name: str) -> TextAnswer: ...

    async def mx(self, domain: str) -> MxAnswer: ...

    async def addresses(self, host: str, *, ipv6: bool) -> AddressAnswer: ...

    async def reverse(self, address: str) -> NameAnswer: ...


@dataclass(slots=True)
class SpfVerdict:
    """The result, the term that decided it, and what it cost."""

    result: SpfResult
    reason: str
    lookups: int = 0
    voids: int = 0


class _Error(Exception):
    """Ends the evaluation with temperror or permerror."""

    def __init__(self, result: SpfResult, reason: str) -> None:
        super().__init__(result, reason)
        self.result = result
        self.reason = reason


async def check_host(questions: SpfQuestions, ip: str, domain: str, *, sender: str, helo: str) -> SpfVerdict:
    """`sender` is the address of MAIL FROM, `domain` its domain or that of HELO."""
    address = ipaddress.ip_address(ip)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped  # section 5: such a connection is an IPv4 one
    evaluation = _Evaluation(questions, address, sender, helo)
    try:
        result, reason = await evaluation.check(domain.lower().rstrip("."))
    except _Error as error:
        result, reason = error.result, error.reason
    return SpfVerdict(result, reason, evaluation.lookups, evaluation.voids)


def spf_records(texts: Sequence[str]) -> list[str]:
    """Those of a name's TXT records that are SPF."""
    return [text for text in texts if is_spf(text)]


@dataclass(slots=True)
class _Evaluation:
    questions: SpfQuestions
    ip: IpAddress
    sender: str
    helo: str
    lookups: int = 0
    voids: int = 0
    validated: str | None = field(default=None)

    async def check(self, domain: str) -> tuple[SpfResult, str]:
        labels = domain.split(".")
        if len(labels) < 2 or len(domain) > _MAX_NAME or any(not 0 < len(part) <= 63 for part in labels):
            return SpfResult.NONE, f"{domain!r} is no domain"
        answer = await self.questions.text(domain)
        if answer.status is Status.FAILED:
            raise _Error(SpfResult.TEMPERROR, f"{domain}: {answer.reason}")
        found = spf_records(answer.texts)
        if not found:
            return SpfResult.NONE, f"{domain} has no SPF record"
        if len(found) > 1:
            raise _Error(SpfResult.PERMERROR, f"{domain} has {len(found)} SPF records; allowed is one")
        try:
            record = parse_record(found[0])
        except SpfSyntaxError as error:
            raise _Error(SpfResult.PERMERROR, f"{domain}: {error}") from None
        return await self._walk(domain, record)

    async def _walk(self, domain: str, record: SpfRecord) -> tuple[SpfResult, str]:
        for mechanism in record.mechanisms:
            if await self._matches(mechanism, domain):
                return _QUALIFIED[mechanism.qualifier], f"{mechanism.text} of {domain}"
        if record.redirect is None:
            return SpfResult.NEUTRAL, f"no term of {domain} matches"
        self._charge(f"redirect={record.redirect}")
        target = await self._expand(record.redirect, domain)
        result, reason = await self.check(target)
        if result is SpfResult.NONE:
            raise _Error(SpfResult.PERMERROR, f"redirect of {domain}: {reason}")
        return result, reason

    def _charge(self, term: str) -> None:
        self.lookups += 1
        if self.lookups > MAX_LOOKUPS:
            raise _Error(
                SpfResult.PERMERROR, f"more than {MAX_LOOKUPS} terms that ask the DNS: {term} is one too many"
            )

    async def _matches(self, mechanism: Mechanism, domain: str) -> bool:
        match mechanism.name:
            case "all":
                return True
            case "ip4" | "ip6":
                return self._is_within(str(mechanism.network))
        self._charge(f"{mechanism.text} of {domain}")
        target = await self._expand(mechanism.domain, domain) if mechanism.domain else domain
        match mechanism.name:
            case "include":
                result, reason = await self.check(target)
                if result is SpfResult.NONE:
                    raise _Error(SpfResult.PERMERROR, f"include of {domain}: {reason}")
                return result is SpfResult.PASS
            case "a":
                return self._is_any(await self._addresses(target, is_term=True), mechanism)
            case "mx":
                return await self._matches_mx(target, mechanism)
            case "ptr":
                return any(_is_below(name, target) for name in await self._validated_names())
            case _:  # exists asks for IPv4 addresses, whatever the connection is (section 5.7)
                answer = await self.questions.addresses(target, ipv6=False)
                self._weigh(answer, is_term=True)
                return bool(answer.addresses)

    async def _matches_mx(self, target: str, mechanism: Mechanism) -> bool:
        answer = await self.questions.mx(target)
        self._weigh(answer, is_term=True)
        if len(answer.hosts) > MAX_HOSTS:
            raise _Error(SpfResult.PERMERROR, f"{target} has more than {MAX_HOSTS} MX hosts")
        for _, host in sorted(answer.hosts):
            if host and self._is_any(await self._addresses(host, is_term=False), mechanism):
                return True
        return False

    async def _addresses(self, host: str, *, is_term: bool) -> tuple[str, ...]:
        answer = await self.questions.addresses(host, ipv6=self.ip.version == 6)
        self._weigh(answer, is_term=is_term)
        return answer.addresses

    async def _validated_names(self) -> list[str]:
        """Section 5.5: names of the address that have it; a DNS error means that there are none."""
        answer = await self.questions.reverse(str(self.ip))
        names = []
        for name in answer.names[:MAX_HOSTS]:
            back = await self.questions.addresses(name, ipv6=self.ip.version == 6)
            if any(ipaddress.ip_address(address) == self.ip for address in back.addresses):
                names.append(name)
        return names

    def _weigh(self, answer: AddressAnswer | MxAnswer, *, is_term: bool) -> None:
        if answer.status is Status.FAILED:
            raise _Error(SpfResult.TEMPERROR, answer.reason)
        if is_term and answer.status in (Status.MISSING, Status.EMPTY):
            self.voids += 1
            if self.voids > MAX_VOIDS:
                raise _Error(SpfResult.PERMERROR, f"more than {MAX_VOIDS} terms whose names have no records")

    def _is_within(self, network: str) -> bool:
        return self.ip in ipaddress.ip_network(network)

    def _is_any(self, addresses: Sequence[str], mechanism: Mechanism) -> bool:
        prefix = mechanism.prefix4 if self.ip.version == 4 else mechanism.prefix6
        return any(self.ip in ipaddress.ip_network((address, prefix), strict=False) for address in addresses)

    async def _expand(self, text: str, domain: str) -> str:
        """Section 7: a macro string as a name, of at most 253 characters by dropping labels on the left."""
        values = self._values(domain)
        if uses_macro(text, "p"):
            if self.validated is None:
                names = await self._validated_names()
                same = [name for name in names if name == domain]
                below = [name for name in names if _is_below(name, domain)]
                self.validated = next(iter([*same, *below, *names]), "unknown")
            values["p"] = self.validated
        name = expand(text, values).rstrip(".").lower()
        while len(name) > _MAX_NAME and "." in name:
            name = name.partition(".")[2]
        return name

    def _values(self, domain: str) -> dict[str, str]:
        local, _, sender_domain = self.sender.rpartition("@")
        dotted = str(self.ip) if self.ip.version == 4 else ".".join(self.ip.exploded.replace(":", ""))
        return {
            "s": f"{local or 'postmaster'}@{sender_domain}",
            "l": local or "postmaster",
            "o": sender_domain,
            "d": domain,
            "i": dotted,
            "h": self.helo,
            "v": "in-addr" if self.ip.version == 4 else "ip6",
        }


def _is_below(name: str, domain: str) -> bool:
    return name == domain or name.endswith(f".{domain}")

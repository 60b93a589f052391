"""The domain's own mail servers: where replies and bounces arrive, and how they present themselves over TLS."""

import asyncio
import ipaddress
from dataclasses import dataclass
from typing import Protocol

from engine.doctor.case import Case
from engine.doctor.finding import Finding
from engine.doctor.rules import failed, noted, passed, unanswered, warned
from engine.routing.answers import Status
from engine.routing.hosts import Hosts
from engine.values.clock import SystemClock

MX = "mx"
TLS = "mx-tls"
_MAX_PROBED = 10  # hosts
_SOON_DAYS = 21  # a certificate that ends sooner and is not renewed yet


@dataclass(frozen=True, slots=True)
class TlsAnswer:
    """What a probe saw. `problem` is empty if TLS was agreed on and the certificate is good for the host's name."""

    problem: str
    version: str = ""
    days_left: float = 0.0


class TlsProbe(Protocol):
    """Connects to a mail server and asks for STARTTLS. Any failure is a TlsAnswer."""

    async def starttls(self, address: str, host: str) -> TlsAnswer: ...


async def check_mx(case: Case) -> list[Finding]:
    findings = await _domain(case, case.return_path, "bounces")
    if case.domain != case.return_path:
        findings += await _domain(case, case.domain, "replies")
    return findings


async def _domain(case: Case, domain: str, what: str) -> list[Finding]:
    answer = await case.questions.mx(domain)
    if answer.status is Status.FAILED:
        return [unanswered(MX, domain, answer.reason)]
    if answer.status is Status.MISSING:
        return [failed(MX, domain, f"no such domain: {what} cannot arrive, and mail from it is refused")]
    if not answer.hosts:
        own = await case.questions.all_addresses(domain)
        if own.status is Status.FAILED:
            return [unanswered(MX, domain, own.reason)]
        if own.addresses:
            return [warned(MX, domain, f"no MX record, {what} go to its own address {own.addresses[0]}")]
        why = f"neither MX nor address: {what} cannot arrive, and many hosts refuse mail from it"
        return [failed(MX, domain, why, f"{domain}. 3600 IN MX 10 mail.{domain}.")]
    hosts = [host for _, host in sorted(answer.hosts)]
    if hosts == [""]:
        return [failed(MX, domain, f"null MX (RFC 7505): it says that it takes no mail, {what} are lost")]
    found = await asyncio.gather(*(_host(case, domain, host) for host in hosts))
    findings = [finding for finding in found if finding is not None]
    if len(findings) < len(hosts):
        good = [host for host, finding in zip(hosts, found, strict=True) if finding is None]
        findings.append(passed(MX, domain, f"{', '.join(good[:3])} for {what}"))
    return findings


async def _host(case: Case, domain: str, host: str) -> Finding | None:
    """None if the host can be used."""
    if not host:
        return failed(MX, domain, "a null MX beside other MX records (RFC 7505 section 3)")
    if _is_address(host):
        return failed(MX, domain, f"{host} is an address; an MX record has a name (RFC 1035 section 3.3.9)")
    alias = await case.questions.alias(host)
    addresses = await case.questions.all_addresses(host)
    if addresses.status is Status.FAILED:
        return unanswered(MX, f"{domain} {host}", addresses.reason)
    if not addresses.addresses:
        return failed(MX, domain, f"{host} has no address")
    if alias.status is Status.FOUND:
        return warned(MX, domain, f"{host} is an alias, which RFC 2181 section 10.3 forbids")
    return None


async def check_mx_tls(case: Case, probe: TlsProbe | None) -> list[Finding]:
    if probe is None:
        return [noted(TLS, case.domain, "not probed: give --probe to connect to the domain's mail servers")]
    answer = await case.questions.mx(case.domain)
    hosts = [host for _, host in sorted(answer.hosts) if host][:_MAX_PROBED]
    if not hosts:
        return [noted(TLS, case.domain, "no MX host to probe")]
    allowed = Hosts(case.config, case.questions, SystemClock())
    return list(await asyncio.gather(*(_probe(case, host, probe, allowed) for host in hosts)))


async def _probe(case: Case, host: str, probe: TlsProbe, allowed: Hosts) -> Finding:
    addresses = await case.questions.all_addresses(host)
    usable = [a for a in addresses.addresses if allowed.is_allowed(ipaddress.ip_address(a))]
    if not usable:
        return noted(TLS, host, "no public address to probe")
    answer = await probe.starttls(usable[0], host)
    if answer.problem:
        why = f"{usable[0]}: {answer.problem}; hosts that demand verified TLS cannot deliver to you"
        return warned(TLS, host, why)
    if answer.days_left < _SOON_DAYS:
        return warned(TLS, host, f"the certificate ends in {answer.days_left:.0f} days")
    return passed(TLS, host, f"{answer.version}, certificate good for {answer.days_left:.0f} days")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True

"""Each source's names: PTR, forward-confirmed, and the EHLO name; and whether DNS blocklists have it."""

import asyncio
import ipaddress
import re

from engine.doctor.case import Case, Sender
from engine.doctor.finding import Finding
from engine.doctor.rules import failed, missed, noted, passed, unanswered, warned
from engine.routing.answers import AddressAnswer, Status

PTR = "ptr"
HELO = "helo"
BLOCKLIST = "blocklist"
_MAX_NAMES = 10  # PTR names looked at, as receivers do (RFC 7208 section 5.5)
# Test entries of RFC 5782 section 5: the first is on every list of addresses, the second on none.
_LISTED, _UNLISTED = "2.0.0.127", "1.0.0.127"
_LISTED_NAME, _UNLISTED_NAME = "test", "invalid"
_REFUSALS = ipaddress.ip_network("127.255.255.0/24")  # answers of Spamhaus to those it does not serve
_ANSWERS = ipaddress.ip_network("127.0.0.0/8")


async def check_names(case: Case) -> list[Finding]:
    found = await asyncio.gather(
        *(_reverse(case, sender) for sender in case.senders),
        *(_ehlo(case, sender) for sender in case.senders),
    )
    return [finding for findings in found for finding in findings]


async def _reverse(case: Case, sender: Sender) -> list[Finding]:
    address = ipaddress.ip_address(sender.ip)
    publish = (f"{address.reverse_pointer}. 3600 IN PTR {sender.ehlo}.", *_forward(sender))
    answer = await case.questions.reverse(sender.ip)
    if answer.status is Status.FAILED:
        return [unanswered(PTR, str(sender), answer.reason)]
    if not answer.names:
        return [missed(PTR, str(sender), "no PTR record", *publish, requirement="ptr")]
    names = answer.names[:_MAX_NAMES]
    back = await asyncio.gather(*(case.questions.all_addresses(name) for name in names))
    confirmed = [name for name, answer in zip(names, back, strict=True) if _has(answer, address)]
    if not confirmed:
        broken = next((answer.reason for answer in back if answer.status is Status.FAILED), "")
        if broken:
            return [unanswered(PTR, str(sender), broken)]
        why = f"{names[0]} does not resolve back to the address"
        return [missed(PTR, str(sender), why, *publish, requirement="ptr")]
    if sender.ehlo not in confirmed:
        why = f"{confirmed[0]} is not the EHLO name {sender.ehlo}"
        return [warned(PTR, str(sender), why, publish[0])]
    if _is_generic(sender.ehlo, sender.ip):
        why = f"{sender.ehlo} looks like a name that an access provider gives by default"
        return [warned(PTR, str(sender), why)]
    several = f", first of {len(answer.names)} names" if len(answer.names) > 1 else ""
    return [passed(PTR, str(sender), f"{sender.ehlo} and back{several}")]


async def _ehlo(case: Case, sender: Sender) -> list[Finding]:
    subject = f"{sender.name} {sender.ehlo}"
    answer = await case.questions.all_addresses(sender.ehlo)
    if answer.status is Status.FAILED:
        return [unanswered(HELO, subject, answer.reason)]
    if not answer.addresses:
        return [failed(HELO, subject, "the EHLO name has no address", *_forward(sender))]
    if not _has(answer, ipaddress.ip_address(sender.ip)):
        why = f"resolves to {', '.join(answer.addresses[:3])}, not to {sender.ip}"
        return [warned(HELO, subject, why, *_forward(sender))]
    return [passed(HELO, subject, f"resolves to {sender.ip}")]


def _forward(sender: Sender) -> tuple[str, ...]:
    return (f"{sender.ehlo}. 3600 IN {'AAAA' if ':' in sender.ip else 'A'} {sender.ip}",)


def _has(answer: AddressAnswer, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return any(ipaddress.ip_address(found) == address for found in answer.addresses)


def _is_generic(name: str, ip: str) -> bool:
    """Whether an IPv4 address stands in the name, in either order."""
    if ":" in ip:
        return False
    octets = ip.split(".")
    return any(
        re.search(r"(?<![0-9])0*" + r"[^0-9]0*".join(order) + r"(?![0-9])", name) is not None
        for order in (octets, octets[::-1])
    )


async def check_blocklists(case: Case) -> list[Finding]:
    options = case.config.doctor
    if not options.blocklists and not options.domain_blocklists:
        return [noted(BLOCKLIST, case.domain, "none is configured (doctor.blocklists in fleet.yaml)")]
    ips = {str(sender): _query_of(sender.ip) for sender in case.senders}
    names = {name: name for name in dict.fromkeys((case.domain, case.return_path))}
    found = await asyncio.gather(
        *(_list(case, zone, ips, _LISTED, _UNLISTED) for zone in options.blocklists),
        *(_list(case, zone, names, _LISTED_NAME, _UNLISTED_NAME) for zone in options.domain_blocklists),
    )
    return [finding for findings in found for finding in findings]


async def _list(case: Case, zone: str, entries: dict[str, str], listed: str, unlisted: str) -> list[Finding]:
    """One list. One that does not know its test entries, or lists everything, says nothing about us."""
    answers = await asyncio.gather(
        *(case.questions.addresses(f"{name}.{zone}", ipv6=False) for name in (listed, unlisted))
    )
    if not _listings(answers[0]) or answers[1].addresses:
        answer = answers[0]
        why = (
            answer.reason
            or f"its test entries give {', '.join((*answer.addresses, *answers[1].addresses)[:3])}"
        )
        return [noted(BLOCKLIST, zone, f"does not work from here: {why}; many lists refuse public resolvers")]
    return list(await asyncio.gather(*(_entry(case, zone, *entry) for entry in entries.items())))


async def _entry(case: Case, zone: str, subject: str, name: str) -> Finding:
    answer = await case.questions.addresses(f"{name}.{zone}", ipv6=False)
    if answer.status is Status.FAILED:
        return noted(BLOCKLIST, subject, f"{zone} does not answer: {answer.reason}")
    codes = _listings(answer)
    if not codes:
        return passed(BLOCKLIST, subject, f"not on {zone}")
    reason = await case.questions.text(f"{name}.{zone}")
    text = f": {reason.texts[0][:200]}" if reason.texts else ""
    return failed(BLOCKLIST, subject, f"on {zone} ({', '.join(codes)}){text}")


def _listings(answer: AddressAnswer) -> list[str]:
    """The codes that mean a listing."""
    codes = (ipaddress.ip_address(address) for address in answer.addresses)
    return [str(code) for code in codes if code in _ANSWERS and code not in _REFUSALS]


def _query_of(ip: str) -> str:
    """RFC 5782 sections 2.1 and 2.4: the octets or nibbles backwards."""
    pointer = ipaddress.ip_address(ip).reverse_pointer
    return pointer.removesuffix(".in-addr.arpa").removesuffix(".ip6.arpa")

"""The edge of DNS failover: questions to authoritative servers, and updates signed with TSIG. Imports dnspython.

A zone that answers wrongly is refused before anything is changed: the server must be authoritative, the name must lie
in the configured zone itself (not in one delegated from it, nor in one above) and must not be an alias. An update
replaces the A and AAAA records of the one name in one message, which a server does as a whole or not at all (RFC 2136
section 3).

Diagnostics: every failure is a value with its reason. An answer to an update that is not signed with our key counts as
no answer. Answers and updates go over TCP, so nobody off the path can forge them, and they are not truncated.
"""

import asyncio
import os
from collections.abc import Mapping

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.tsig
import dns.update

from engine.config.dns_failover import DnsFailoverConfig
from engine.config.types import split_server
from engine.failover.dns_plan import Published, Records
from engine.failover.tsig import TsigKeyError, read_tsig_key
from engine.routing.answers import Resolver

MAX_AUTHORITIES = 20  # name servers of a zone that are asked; more than any zone has
_KINDS = (dns.rdatatype.A, dns.rdatatype.AAAA)


class _WrongAnswerError(Exception):
    """A server that must not be updated, or whose answer says nothing; the message says why."""


class DnsZone:
    """One name in one zone. `resolver` finds the addresses of the zone's name servers."""

    def __init__(self, config: DnsFailoverConfig, resolver: Resolver) -> None:
        self._config = config
        self._resolver = resolver
        self._zone = dns.name.from_text(config.zone)
        self._name = dns.name.from_text(config.name)
        self._servers = [split_server(text) for text in config.servers]

    async def look(self) -> tuple[Records | str, Mapping[str, Records | str]]:
        """What the first good server of `servers` holds, or why none is; and the answer of every authority."""
        problems = []
        for server in self._servers:
            try:
                primary = await self._examine(server)
                authorities = await self._authorities(server)
            except _WrongAnswerError as error:
                problems.append(f"{_text(server)}: {error}")
                continue
            answers = await asyncio.gather(*(self._ask_any(addresses) for addresses in authorities.values()))
            return primary, dict(zip(authorities, answers, strict=True))
        return "; ".join(problems), {}

    async def publish(self, records: Records) -> tuple[Published, str]:
        """Replace the name's addresses. Tries every server until one has done it."""
        if not records.addresses:
            return Published.REFUSED, "the set of addresses is empty"
        try:
            key = read_tsig_key(self._config.key_file)
        except TsigKeyError as error:
            return Published.REFUSED, str(error)
        tsig = dns.tsig.Key(key.name, key.secret, key.algorithm)
        outcome, problems = Published.REFUSED, []
        for server in self._servers:
            try:
                # a server that has begun to answer for something else is not updated
                await self._examine(server)
            except _WrongAnswerError as error:
                problems.append(f"{_text(server)}: {error}")
                continue
            result, reason = await self._send(server, tsig, records)
            if result is Published.DONE:
                return result, ""
            problems.append(f"{_text(server)}: {reason}")
            if result is Published.UNKNOWN:
                outcome = result
        return outcome, "; ".join(problems)

    async def _send(
        self, server: tuple[str, int], key: dns.tsig.Key, records: Records
    ) -> tuple[Published, str]:
        message = dns.update.UpdateMessage(self._zone, keyring=key)
        for kind in _KINDS:
            message.delete(self._name, kind)
        for address in (*records.of_version(4), *records.of_version(6)):
            message.add(self._name, records.ttl_s, "AAAA" if ":" in address else "A", address)
        try:
            answer = await dns.asyncquery.tcp(message, server[0], self._config.timeout, server[1])
        except dns.tsig.PeerError as error:
            return Published.REFUSED, f"the TSIG key is refused ({type(error).__name__})"
        except dns.message.UnknownTSIGKey:
            return Published.UNKNOWN, "the answer is signed with another key"
        except dns.exception.FormError:
            return Published.UNKNOWN, "the answer to the update is not signed with our key, or broken"
        except (dns.exception.DNSException, OSError, EOFError) as error:
            return Published.UNKNOWN, f"no good answer to the update: {_named(error)}"
        if answer.rcode() != dns.rcode.NOERROR:
            return Published.REFUSED, f"the update is refused: {dns.rcode.to_text(answer.rcode())}"
        if not answer.had_tsig:
            return Published.UNKNOWN, "the answer to the update is not signed with our key"
        return Published.DONE, ""

    async def _examine(self, server: tuple[str, int]) -> Records:
        """The name's records at a server; raises _WrongAnswerError if it is not one to update."""
        answer = await self._ask(server, self._name, dns.rdatatype.SOA)
        aliases = [rrset.rdtype for rrset in answer.answer if rrset.rdtype != dns.rdatatype.SOA]
        if aliases:
            raise _WrongAnswerError(f"{self._config.name} is an alias")
        owners = [
            rrset.name for rrset in (*answer.answer, *answer.authority) if rrset.rdtype == dns.rdatatype.SOA
        ]
        if owners != [self._zone]:
            found = owners[0].to_text(omit_final_dot=True) if owners else "no zone"
            raise _WrongAnswerError(f"{self._config.name} is in {found} there, not in {self._config.zone}")
        return await self._records(server)

    async def _records(self, server: tuple[str, int]) -> Records:
        addresses: set[str] = set()
        ttls = set()
        for kind in _KINDS:
            answer = await self._ask(server, self._name, kind)
            for rrset in answer.answer:
                if rrset.rdtype != kind or rrset.name != self._name:
                    raise _WrongAnswerError(f"{self._config.name} is an alias")
                addresses |= {str(record.address) for record in rrset}
                ttls.add(int(rrset.ttl))
        return Records(frozenset(addresses), ttls.pop() if len(ttls) == 1 else -1)

    async def _ask(
        self, server: tuple[str, int], name: dns.name.Name, kind: dns.rdatatype.RdataType
    ) -> dns.message.Message:
        question = dns.message.make_query(name, kind, flags=0)
        try:
            answer = await dns.asyncquery.tcp(question, server[0], self._config.timeout, server[1])
        except (dns.exception.DNSException, OSError, EOFError) as error:
            raise _WrongAnswerError(f"no good answer: {_named(error)}") from None
        if answer.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            raise _WrongAnswerError(f"answers {dns.rcode.to_text(answer.rcode())} for {name}")
        if not answer.flags & dns.flags.AA:
            raise _WrongAnswerError(f"is not authoritative for {name}")
        return answer

    async def _authorities(self, server: tuple[str, int]) -> dict[str, list[tuple[str, int]]]:
        """Each name server of the zone with its addresses."""
        if self._config.authorities:
            return {text: [split_server(text)] for text in self._config.authorities}
        answer = await self._ask(server, self._zone, dns.rdatatype.NS)
        hosts = [
            record.target.to_text(omit_final_dot=True).lower()
            for rrset in answer.answer
            if rrset.rdtype == dns.rdatatype.NS
            for record in rrset
        ]
        if not hosts:
            raise _WrongAnswerError(f"has no NS records for {self._config.zone}")
        found = {}
        for host in sorted(hosts)[:MAX_AUTHORITIES]:
            v4, v6 = await asyncio.gather(
                self._resolver.addresses(host, ipv6=False), self._resolver.addresses(host, ipv6=True)
            )
            found[host] = [(address, 53) for address in (*v4.addresses, *v6.addresses)]
        return found

    async def _ask_any(self, addresses: list[tuple[str, int]]) -> Records | str:
        """The answer of one authority: the first of its addresses that gives one."""
        problem = "has no address"
        for address in addresses:
            try:
                return await self._records(address)
            except _WrongAnswerError as error:
                problem = str(error)
        return problem


def _text(server: tuple[str, int]) -> str:
    address = f"[{server[0]}]" if ":" in server[0] else server[0]
    return f"{address}:{server[1]}"


def _named(error: Exception) -> str:
    """The kind of a failure, without what the library would quote of a message."""
    if isinstance(error, dns.exception.Timeout | TimeoutError):
        return "time-out"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return type(error).__name__

"""The search for a host that will talk to us: MX hosts in order, their addresses, until one opens.

Hosts of equal preference come in random order (RFC 5321 section 5.1), and so do the addresses of one host. Those of the
source's family are tried, `HOST_ADDRESSES` of one and `MAX_ADDRESSES` in all at most, so that a host with many dead
addresses does not keep the next one from its turn. The search ends early when an answer is about more than its host:
our IP is unwelcome at the other hosts too, and a source address that cannot be bound fails everywhere.

When one of the hosts turns out to be a source of this fleet, those that are no more preferred are dropped with it: the
mail would come back. Without any usable host: deferred if the DNS failed for one, bounced if it said "none" for all.
"""

import asyncio
import ipaddress
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.delivery.ports import EgressSource, Opener, PoolRoute, RouteHost, Routes
from engine.routing.route import HostAnswer, HostStatus
from engine.smtp.opener import Opened, OpenFailure, Target
from engine.smtp.policy import FailureReason, Phase, Verdict, classify
from engine.tls.policy import PolicyRefusal
from engine.tls.tally import Tally
from engine.values.outcome import OutcomeKind, Scope
from engine.values.reply import Reply

MAX_ADDRESSES = 5
HOST_ADDRESSES = 3


_NOWHERE = Verdict(OutcomeKind.BOUNCED, Scope.DOMAIN)


@dataclass(frozen=True, slots=True)
class Found:
    """An open session and the name of its host."""

    host: str
    opened: Opened


@dataclass(frozen=True, slots=True)
class NotFound:
    """The last answer of the search."""

    host: str
    verdict: Verdict
    reply: Reply


async def find_host(
    route: PoolRoute,
    source: EgressSource,
    *,
    routes: Routes,
    opener: Opener,
    rng: random.Random,
    timeout_s: float,
    domain: str = "",
    tally: Tally | None = None,
) -> Found | NotFound:
    """Open a session to the first host of the route that allows it. `domain`: the recipients' domain that it is opened
    for; what TLS gave is counted in its name.
    """
    tally = tally or Tally()
    username, password = await _credentials(route.auth)
    source_ip = str(source.ip)
    hosts, answers = await _usable_hosts(route, source_ip, routes=routes, rng=rng)
    places = [(host, answer, address) for host, answer, addresses in hosts for address in addresses]
    if not places:
        return _no_host(answers, source_ip)
    deferred: NotFound | None = None
    for index, (host, answer, address) in enumerate(places[:MAX_ADDRESSES]):
        is_last = index + 1 == min(len(places), MAX_ADDRESSES)
        policy = await routes.policy(route, host, answer)
        if isinstance(policy, PolicyRefusal) and policy.is_final:
            verdict = classify(Phase.EHLO, FailureReason.NO_REQUIRETLS, last_host=is_last)
            last = NotFound(host.name, verdict, policy.reply)
            continue
        if isinstance(policy, PolicyRefusal):
            last = NotFound(host.name, classify(Phase.STARTTLS, FailureReason.UNTRUSTED), policy.reply)
            deferred = last
            tally.refused(domain, policy, host.name, address, source_ip, policy.fault)
            continue
        target = Target(
            host=host.name,
            address=address,
            port=host.port,
            source_ip=source_ip,
            ehlo=source.ehlo,
            policy=policy,
            username=username,
            password=password,
        )
        result = await opener(target, timeout_s=timeout_s)
        if isinstance(result, Opened):
            tally.opened(domain, policy, host.name, address, source_ip, result.tls)
            return Found(target.host, result)
        if result.fault is not None:
            tally.refused(domain, policy, host.name, address, source_ip, result.fault)
        verdict = classify(result.phase, result.answer, last_host=is_last)
        last = NotFound(target.host, verdict, _named(result, target))
        if verdict.kind is OutcomeKind.DEFERRED and verdict.scope is Scope.HOST:
            deferred = last
        if not verdict.next_host:
            break
    # a bounce stands only if every host says so: another one may take the message when it can be reached again
    return deferred if last.verdict.kind is OutcomeKind.BOUNCED and deferred is not None else last


def in_order(hosts: Sequence[Any], rng: random.Random) -> list[Any]:
    """By preference, equal ones shuffled."""
    shuffled = list(hosts)
    rng.shuffle(shuffled)
    return sorted(shuffled, key=lambda host: host.preference)


def unreachable(host: str, error: Exception) -> NotFound:
    """The search itself failed, e.g. the credentials could not be read."""
    text = f"{host}: {getattr(error, 'strerror', None) or error}"
    return NotFound(host, Verdict(OutcomeKind.DEFERRED, Scope.HOST), Reply(0, "4.3.0", text[:1024]))


def _named(failure: OpenFailure, target: Target) -> Reply:
    if failure.reply.code:
        return failure.reply
    text = f"{target.host}[{target.address}]:{target.port}: {failure.reply.text}"
    return Reply(0, failure.reply.enhanced, text[:1024])


async def _usable_hosts(
    route: PoolRoute, source_ip: str, *, routes: Routes, rng: random.Random
) -> tuple[list[tuple[RouteHost, HostAnswer, list[str]]], list[tuple[str, HostAnswer]]]:
    """(host, its answer, its addresses of the source's family) in the order of trying, and every answer on the way."""
    version = ipaddress.ip_address(source_ip).version
    usable: list[tuple[RouteHost, HostAnswer, list[str]]] = []
    answers: list[tuple[str, HostAnswer]] = []
    count = 0
    for host in in_order(route.hosts, rng):
        if count >= MAX_ADDRESSES:
            break
        answer = await routes.addresses(host.name)
        answers.append((host.name, answer))
        if answer.status is HostStatus.OWN:
            usable = [place for place in usable if place[0].preference < host.preference]
            break
        of_family = [a for _, a in answer.addresses if ipaddress.ip_address(a).version == version]
        if of_family:
            # at random: which three come first stands as long as the answer is kept
            usable.append((host, answer, rng.sample(of_family, min(HOST_ADDRESSES, len(of_family)))))
            count += len(usable[-1][2])
    return usable, answers


def _no_host(answers: Sequence[tuple[str, HostAnswer]], source_ip: str) -> NotFound:
    host, answer = answers[-1] if answers else ("", HostAnswer(HostStatus.NONE))
    for name, other in answers:
        if other.status is HostStatus.FAILED:
            text = f"{name}: no address can be found: {other.reason}"
            return NotFound(name, Verdict(OutcomeKind.DEFERRED, Scope.HOST), Reply(0, "4.4.3", text[:1024]))
    if answer.status is HostStatus.OWN:
        text = f"{answer.reason}, the mail would come back"
        return NotFound(host, _NOWHERE, Reply(0, "5.4.6", text[:1024]))
    if any(other.addresses for _, other in answers):
        text = f"{host}: {FailureReason.NO_ADDRESS} for source {source_ip}"
        verdict = classify(Phase.CONNECT, FailureReason.NO_ADDRESS)
        return NotFound(host, verdict, Reply(0, "4.4.4", text))
    return NotFound(host, _NOWHERE, Reply(0, "5.4.4", f"{host}: {answer.reason}"[:1024]))


async def _credentials(auth: Any) -> tuple[str, str]:
    """User and password of a smart host; the password is read at each opening, so it can be rotated."""
    if auth is None:
        return "", ""
    text = await asyncio.to_thread(Path(auth.password_file).read_text, "utf-8")
    return str(auth.username), text.rstrip("\r\n")

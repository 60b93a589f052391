"""The search for a host that will talk to us: MX hosts in order, their addresses, until one opens.

Hosts of equal preference come in random order (RFC 5321 section 5.1). Of each host the addresses of the
source's family are tried, at most `MAX_ADDRESSES` in all. The search ends early when an answer is about more
than its host: our IP is unwelcome at the other hosts too, and a source address that cannot be bound fails
everywhere.
"""

import asyncio
import ipaddress
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.delivery.ports import EgressSource, Opener, PoolRoute, Routes
from engine.smtp.opener import Opened, OpenFailure, Target
from engine.smtp.policy import FailureReason, Phase, Verdict, classify
from engine.values.outcome import OutcomeKind, Scope
from engine.values.reply import Reply

MAX_ADDRESSES = 5


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
) -> Found | NotFound:
    """Open a session to the first host of the route that allows it."""
    username, password = await _credentials(route.auth)
    source_ip = str(source.ip)
    targets: list[Target] = []
    for host in in_order(route.hosts, rng):
        for address in await _addresses(host.name, source_ip, routes):
            targets.append(
                Target(
                    host=host.name,
                    address=address,
                    port=host.port,
                    source_ip=source_ip,
                    ehlo=source.ehlo,
                    tls=str(route.tls),
                    username=username,
                    password=password,
                )
            )
    del targets[MAX_ADDRESSES:]
    if not targets:
        host_name = route.hosts[0].name if route.hosts else ""
        reply = Reply(0, "4.4.4", f"{host_name}: {FailureReason.NO_ADDRESS} for source {source_ip}")
        return NotFound(host_name, classify(Phase.CONNECT, FailureReason.NO_ADDRESS), reply)
    last: NotFound | None = None
    for index, target in enumerate(targets):
        result = await opener(target, timeout_s=timeout_s)
        if isinstance(result, Opened):
            return Found(target.host, result)
        verdict = classify(result.phase, result.answer, last_host=index + 1 == len(targets))
        last = NotFound(target.host, verdict, _named(result, target))
        if not verdict.next_host:
            return last
    raise AssertionError(f"the last host always ends the search: {last}")


def in_order(hosts: Sequence[Any], rng: random.Random) -> list[Any]:
    """By preference, equal ones shuffled."""
    shuffled = list(hosts)
    rng.shuffle(shuffled)
    return sorted(shuffled, key=lambda host: host.preference)


def unreachable(host: str, error: OSError) -> NotFound:
    """The search itself failed, e.g. the credentials could not be read."""
    return NotFound(
        host,
        Verdict(OutcomeKind.DEFERRED, Scope.HOST),
        Reply(0, "4.3.0", f"{host}: {error.strerror or error}"),
    )


def _named(failure: OpenFailure, target: Target) -> Reply:
    if failure.reply.code:
        return failure.reply
    text = f"{target.host}[{target.address}]:{target.port}: {failure.reply.text}"
    return Reply(0, failure.reply.enhanced, text[:1024])


async def _addresses(host: str, source_ip: str, routes: Routes) -> list[str]:
    version = ipaddress.ip_address(source_ip).version
    try:
        found = [str(ipaddress.ip_address(host))]
    except ValueError:
        found = [address for _, address in await routes.addresses(host)]
    return [address for address in found if ipaddress.ip_address(address).version == version]


async def _credentials(auth: Any) -> tuple[str, str]:
    """User and password of a smart host; the password is read at each opening, so it can be rotated."""
    if auth is None:
        return "", ""
    text = await asyncio.to_thread(Path(auth.password_file).read_text, "utf-8")
    return str(auth.username), text.rstrip("\r\n")

"""The search for a host: which ones are tried, and what it means when there is none."""

import asyncio
import random
from typing import Any

import pytest

from engine.delivery.hosts import Found, NotFound, find_host
from engine.routing.route import HostAnswer, HostStatus
from engine.smtp.opener import OpenFailure, Target
from engine.smtp.policy import FailureReason, Phase
from engine.values.outcome import OutcomeKind, Scope
from engine.values.reply import Reply
from tests.support.pools import Host, Route, Source, World

DOWN = OpenFailure(Phase.CONNECT, FailureReason.UNREACHABLE, Reply(0, "4.4.1", "connect: unreachable"))
NONE = HostAnswer(HostStatus.NONE, reason="no address")
OWN = HostAnswer(HostStatus.OWN, reason="mx is one of the fleet's sources")
REFUSED = HostAnswer(HostStatus.REFUSED, reason="no address that may be used")
FAILED = HostAnswer(HostStatus.FAILED, reason="SERVFAIL")
V6_ONLY = HostAnswer(HostStatus.USABLE, ((10, "2001:db8::1"),))


def v4(*addresses: str) -> HostAnswer:
    return HostAnswer(HostStatus.USABLE, tuple((2, address) for address in addresses))


def search(*hosts: tuple[int, HostAnswer], seed: int = 3) -> tuple[list[tuple[str, str]], Any]:
    """(host, address) pairs in the order of trying, all of them down; and the result."""
    tried: list[tuple[str, str]] = []

    async def refuse(target: Target, *, timeout_s: float) -> OpenFailure:
        tried.append((target.host, target.address))
        return DOWN

    world = World({}, hosts={f"mx{i}": answer for i, (_, answer) in enumerate(hosts)})
    route = Route("test", tuple(Host(f"mx{i}", 25, preference) for i, (preference, _) in enumerate(hosts)))
    found = asyncio.run(
        find_host(route, Source(), routes=world, opener=refuse, rng=random.Random(seed), timeout_s=1)
    )
    assert not isinstance(found, Found)
    return tried, found


def test_a_host_with_many_dead_addresses_leaves_room_for_the_next() -> None:
    many, few = [f"192.0.2.{n}" for n in range(9)], ["198.51.100.1", "198.51.100.2"]
    used: set[str] = set()
    for seed in range(40):
        tried, _ = search((10, v4(*many)), (20, v4(*few)), seed=seed)
        assert [host for host, _ in tried] == ["mx0", "mx0", "mx0", "mx1", "mx1"]
        addresses = [address for _, address in tried]
        assert len(set(addresses)) == 5
        assert set(addresses[3:]) == set(few)
        used |= set(addresses[:3])
    assert used == set(many), "none of them is never tried"


def test_five_addresses_are_tried_at_most_and_no_more_are_looked_up() -> None:
    asked: list[str] = []

    class Counting(World):
        async def addresses(self, host: str) -> HostAnswer:
            asked.append(host)
            return v4(host.replace("mx", "192.0.2."))

    async def refuse(target: Target, *, timeout_s: float) -> OpenFailure:
        return DOWN

    route = Route("test", tuple(Host(f"mx{n}", 25, n) for n in range(10)))
    asyncio.run(
        find_host(route, Source(), routes=Counting({}), opener=refuse, rng=random.Random(3), timeout_s=1)
    )
    assert asked == ["mx0", "mx1", "mx2", "mx3", "mx4"]


def test_hosts_not_better_than_ourselves_are_dropped() -> None:
    tried, _ = search((10, v4("192.0.2.1")), (20, v4("192.0.2.2")), (20, OWN), (30, v4("192.0.2.3")))
    assert tried == [("mx0", "192.0.2.1")]


@pytest.mark.parametrize(
    ("hosts", "kind", "scope", "enhanced"),
    [
        ([NONE, NONE], OutcomeKind.BOUNCED, Scope.DOMAIN, "5.4.4"),
        ([REFUSED], OutcomeKind.BOUNCED, Scope.DOMAIN, "5.4.4"),
        ([NONE, REFUSED], OutcomeKind.BOUNCED, Scope.DOMAIN, "5.4.4"),
        ([OWN], OutcomeKind.BOUNCED, Scope.DOMAIN, "5.4.6"),
        ([NONE, OWN], OutcomeKind.BOUNCED, Scope.DOMAIN, "5.4.6"),
        ([NONE, FAILED], OutcomeKind.DEFERRED, Scope.HOST, "4.4.3"),
        ([FAILED, OWN], OutcomeKind.DEFERRED, Scope.HOST, "4.4.3"),
        ([NONE, V6_ONLY], OutcomeKind.DEFERRED, Scope.HOST, "4.4.4"),
    ],
)
def test_without_a_usable_host(
    hosts: list[HostAnswer], kind: OutcomeKind, scope: Scope, enhanced: str
) -> None:
    tried, found = search(*enumerate(hosts))
    assert tried == []
    assert isinstance(found, NotFound)
    assert (found.verdict.kind, found.verdict.scope, found.reply.enhanced) == (kind, scope, enhanced)

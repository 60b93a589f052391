"""Every phase x every fault of a hostile server, in clear text and over TLS: each id gets exactly one outcome, and
none a false one.

Held against the server's own books: delivered only what it took, bounced only what it refused, and whatever it took
without our knowing is marked as a possible duplicate. Its final reply names the recipients, so an answer that was tied
to another message shows. After a fault in which replies and commands no longer match, a connection carries at most what
was already on its way.

The cases of one test run together on one event loop, so that stalls cost nothing. `python -m
tests.fault.test_hostile_server` prints how many there are.
"""

import asyncio
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import pytest

from engine.smtp.opener import SessionOpener
from engine.values.outcome import Outcome, OutcomeKind
from tests.support.certificates import make, server_context
from tests.support.hostile import (
    BODY_FAULTS,
    FAULTS,
    GOOD,
    PHASES,
    STARTTLS_FAULTS,
    Fault,
    HostileServer,
)
from tests.support.pools import Host, Profile, Route, World, hand_over, make_pool, settled

COUNT = 5
AT_ONCE = 40
LARGE = b"Subject: large\r\n\r\n" + (b"x" * 76 + b"\r\n") * 130_000  # more than the kernel's buffers take
SMALL = b"Subject: test\r\nMessage-ID: <1@example.com>\r\nDate: x\r\n\r\n.hidden dot\r\nbye\r\n"
MODES = {
    f"{kind}{tls}": {"pipelining": "lockstep" not in kind, "chunking": "chunking" in kind, "tls": bool(tls)}
    for tls in ("", "+tls")
    for kind in ("pipelining", "lockstep", "chunking", "lockstep-chunking")
}
# after these the replies do not match the commands any more
DESYNCHRONISING = ("garbage", "nul", "endless", "huge_line", "double", "unsolicited", "mixed_codes")
HARMLESS = ("bytewise", "slow", "split")
SPLIT_PHASES = ("greeting", "ehlo", "starttls", "mail", "rcpt", "data", "dot")


@dataclass(frozen=True, slots=True)
class Case:
    mode: str
    fault: Fault
    recipients: int = 1

    def __str__(self) -> str:
        fault = self.fault
        return f"{self.mode} {fault.phase} {fault.kind} at {fault.at}, {self.recipients} recipients"

    @property
    def is_harmless(self) -> bool:
        return self.fault.kind.partition("@")[0] in HARMLESS


def faults_of(phase: str) -> tuple[str, ...]:
    if phase == "body":
        return BODY_FAULTS
    return FAULTS + STARTTLS_FAULTS if phase == "starttls" else FAULTS


def cases_of(mode: str, phase: str) -> list[Case]:
    """All cases of a mode and phase."""
    settings = MODES[mode]
    if (phase == "starttls" and not settings["tls"]) or (phase == "data" and settings["chunking"]):
        return []
    often = phase in ("ehlo", "mail", "rcpt", "data", "dot", "body")
    times = (1, 2) if often and (settings["pipelining"] or settings["tls"]) else (1,)
    counts = (1,) if settings["tls"] or phase in ("greeting", "ehlo", "quit", "rset") else (1, 3)
    found = [
        Case(mode, Fault(phase, kind, at), recipients)
        for kind in faults_of(phase)
        for at in times
        for recipients in counts
    ]
    if phase in SPLIT_PHASES and mode in ("pipelining", "pipelining+tls"):
        size = {"ehlo": 100, "dot": 41}.get(phase) or len(GOOD[phase])
        found += [Case(mode, Fault(phase, f"split@{cut}")) for cut in range(1, size)]
    return found


GROUPS = [(mode, phase) for mode in MODES for phase in PHASES if cases_of(mode, phase)]


@cache
def tls_context() -> ssl.SSLContext:
    return server_context(make("hostile.test"))


@pytest.mark.parametrize(("mode", "phase"), GROUPS, ids=lambda value: str(value))
def test_conservation(mode: str, phase: str) -> None:
    asyncio.run(_run_all(cases_of(mode, phase)))


async def _run_all(cases: Iterable[Case]) -> None:
    limit = asyncio.Semaphore(AT_ONCE)
    opener = SessionOpener()

    async def one(case: Case) -> None:
        async with limit:
            await _run(case, opener)

    cases = list(cases)
    results = await asyncio.gather(*map(one, cases), return_exceptions=True)
    failed = [f"{case}: {error!r}" for case, error in zip(cases, results, strict=True) if error is not None]
    assert not failed, "\n".join(failed)


async def _run(case: Case, opener: SessionOpener) -> None:
    mode, fault = MODES[case.mode], case.fault
    faults = [fault]
    if fault.phase == "rset":
        faults += [Fault("mail", "4xx"), Fault("mail", "4xx", 2)]
    async with HostileServer(
        *faults,
        pipelining=mode["pipelining"],
        chunking=mode["chunking"],
        extensions=("8BITMIME", "SIZE 100000000"),
        tls=tls_context() if mode["tls"] else None,
    ) as server:
        route = Route(
            "test",
            (Host("127.0.0.1", server.port),),
            tls="required" if mode["tls"] else "disabled",
        )
        is_large = fault.phase == "body" and fault.kind != "slow"
        count = 2 if is_large else COUNT
        world = World({"example.net": route}, same_body=True, body_bytes=LARGE if is_large else SMALL)
        timeout_s = 20.0 if case.is_harmless else 0.5
        pool = make_pool(
            world,
            Profile(max_connections=1, max_recipients=case.recipients, messages_per_connection=3),
            opener=opener,
            timeouts_s=(0.0, *(timeout_s,) * 7),
            open_timeout_s=timeout_s,
            hold_s=60.0,
        )
        ids = list(range(1, count + 1))
        await hand_over(pool, ids)
        await settled(world, count, timeout_s=20.0)
        await pool.stop(5.0)
        assert sorted(outcome.id for outcome in world.outcomes) == ids
        for outcome in world.outcomes:
            _check(case, outcome, server)
        assert pool.stats()["held"] == 0
        assert pool.stats()["sessions"] == 0
        if case.is_harmless and fault.phase != "rset":
            assert {outcome.kind for outcome in world.outcomes} == {OutcomeKind.DELIVERED}
        if fault.kind in DESYNCHRONISING and fault.phase != "quit":
            transactions = {tuple(t) for _, t in server.transactions if set(t) & set(server.after_fault)}
            assert len(transactions) <= 1, f"the session went on: {transactions}"
        if not is_large:
            assert all(body.replace(b"\r\n..", b"\r\n.") == SMALL for body in server.bodies)


def _is_ambiguous(case: Case) -> bool:
    """Replies carry no number. A missing one makes the next reply answer for it; an additional one among those to a
    transaction that went out in one write (CHUNKING with PIPELINING) shifts them all, if it is not seen in time.
    """
    in_one_write = case.mode.startswith("chunking")
    return case.fault.kind == "missing" or (
        in_one_write and case.fault.kind in ("double", "unsolicited", "early")
    )


def _check(case: Case, outcome: Outcome, server: HostileServer) -> None:
    name = f"u{outcome.id}@example.net"
    taken = server.committed.count(name)
    if outcome.kind is OutcomeKind.DELIVERED:
        assert taken == 1, outcome
        if not _is_ambiguous(case):
            assert f"<{name}>" in outcome.reply.text, outcome
    elif outcome.kind is OutcomeKind.BOUNCED:
        assert taken == 0, outcome
        assert name in server.refused or "*" in server.refused, outcome
    else:
        assert outcome.kind is OutcomeKind.DEFERRED, outcome
        assert taken == 0 or outcome.possible_duplicate, outcome
    if outcome.possible_duplicate:
        assert case.fault.phase in ("body", "dot", "data") or "chunking" in case.mode, outcome


@pytest.mark.parametrize(
    ("mode", "phase"),
    [
        (mode, phase)
        for mode in ("pipelining", "pipelining+tls")
        for phase in ("greeting", "ehlo", "starttls", "mail", "rcpt", "data", "dot")
        if (mode, phase) != ("pipelining", "starttls")
    ],
)
def test_an_endless_reply_is_not_read_to_its_end(mode: str, phase: str) -> None:
    """Memory is bounded: the session ends long before the flood of 64 MiB does; the rest is the kernel's buffers."""

    async def go() -> int:
        tls = tls_context() if MODES[mode]["tls"] else None
        async with HostileServer(Fault(phase, "endless"), tls=tls) as server:
            route = Route("test", (Host("127.0.0.1", server.port),), tls="required" if tls else "disabled")
            world = World({"example.net": route}, same_body=True)
            pool = make_pool(world, Profile(max_connections=1), open_timeout_s=30.0, timeouts_s=(30.0,) * 8)
            await hand_over(pool, [1])
            await settled(world, 1, timeout_s=30.0)
            await pool.stop(1.0)
            return server.flooded

    assert asyncio.run(go()) < 16 * 2**20


def test_a_peer_that_takes_a_little_now_and_then_holds_nobody_for_ever() -> None:
    """It is never still for as long as a block may take; what ends it is the least rate of the profile."""
    profile = Profile(max_connections=1, min_data_rate=8 * 2**20)  # five times what it takes

    async def one(mode: str) -> None:
        settings = MODES[mode]
        async with HostileServer(
            Fault("body", "trickle"),
            pipelining=settings["pipelining"],
            chunking=settings["chunking"],
            extensions=("8BITMIME", "SIZE 100000000"),
            tls=tls_context() if settings["tls"] else None,
        ) as server:
            tls = "required" if settings["tls"] else "disabled"
            route = Route("test", (Host("127.0.0.1", server.port),), tls=tls)
            world = World({"example.net": route}, same_body=True, body_bytes=LARGE)
            pool = make_pool(world, profile, timeouts_s=(0.0, *(20.0,) * 6, 2.0))
            await hand_over(pool, [1, 2])
            await settled(world, 2)
            await pool.stop(5.0)
            first, second = world.of(1), world.of(2)
            assert (first.kind, first.reply.text.partition(": ")[2]) == (OutcomeKind.DEFERRED, "timed out")
            assert not first.possible_duplicate, "the final dot has never left"
            assert second.kind is OutcomeKind.DELIVERED
            assert server.committed == ["u2@example.net"]

    async def go() -> None:
        await asyncio.gather(*map(one, ("pipelining", "lockstep", "chunking", "pipelining+tls")))

    asyncio.run(go())


def number_of_cases() -> int:
    return sum(len(cases_of(mode, phase)) for mode, phase in GROUPS)


def test_the_number_of_cases_is_what_it_is_said_to_be() -> None:
    """The README's reliability section says so many; change it there too."""
    assert number_of_cases() >= 2000


if __name__ == "__main__":
    print(number_of_cases())

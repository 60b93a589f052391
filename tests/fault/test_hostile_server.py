"""Every phase x every fault of a hostile server: each id gets exactly one outcome, and none a false one.

Held against the server's own books: delivered only what it took, bounced only what it refused, and whatever
it took without our knowing is marked as a possible duplicate.
"""

import asyncio

import pytest

from engine.values.outcome import OutcomeKind
from tests.support.hostile import FAULTS, PHASES, Fault, HostileServer
from tests.support.pools import Host, Profile, Route, World, hand_over, make_pool, settled

COUNT = 6
MODES = {
    "pipelining": {"pipelining": True, "chunking": False},
    "lockstep": {"pipelining": False, "chunking": False},
    "chunking": {"pipelining": True, "chunking": True},
    "lockstep-chunking": {"pipelining": False, "chunking": True},
}


def cases() -> list[object]:
    return [
        pytest.param(mode, Fault(phase, kind, at), id=f"{mode}-{phase}-{kind}-{at}")
        for mode in MODES
        for phase in PHASES
        for kind in FAULTS
        for at in (1, 2)
        if not (phase == "data" and "chunking" in mode) and not ("lockstep" in mode and at == 2)
    ]


@pytest.mark.parametrize(("mode", "fault"), cases())
@pytest.mark.parametrize("recipients", [1, 3])
def test_conservation(mode: str, fault: Fault, recipients: int) -> None:
    asyncio.run(_run(mode, fault, recipients))


async def _run(mode: str, fault: Fault, recipients: int) -> None:
    async with HostileServer(fault, **MODES[mode]) as server:
        world = World({"example.net": Route("test", (Host("127.0.0.1", server.port),))}, same_body=True)
        pool = make_pool(world, Profile(max_connections=1, max_recipients=recipients))
        ids = list(range(1, COUNT + 1))
        await hand_over(pool, ids)
        await settled(world, COUNT)
        await pool.stop(1.0)
        assert sorted(outcome.id for outcome in world.outcomes) == ids
        for outcome in world.outcomes:
            name = f"u{outcome.id}@example.net"
            taken = server.committed.count(name)
            if outcome.kind is OutcomeKind.DELIVERED:
                assert taken == 1, outcome
            elif outcome.kind is OutcomeKind.BOUNCED:
                assert taken == 0, outcome
                assert name in server.refused or "*" in server.refused, outcome
            elif taken:
                assert outcome.kind is OutcomeKind.DEFERRED, outcome
                assert outcome.possible_duplicate, outcome
            if outcome.possible_duplicate:
                assert fault.phase == "dot" or "chunking" in mode, outcome
        assert pool.stats()["held"] == 0
        assert pool.stats()["sessions"] == 0
        expected = b"Subject: test\r\n\r\n.hidden dot\r\nbye\r\n"
        assert all(body.replace(b"\r\n..", b"\r\n.") == expected for body in server.bodies)

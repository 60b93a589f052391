"""What a process of a pool does when it is told what it may use, against a real server in the same loop."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from engine.delivery.pacing import part
from engine.delivery.pool import PoolEngine
from engine.delivery.wire import (
    Assignment,
    Holding,
    decode_assignment,
    decode_holding,
    decode_resume,
    encode_assignment,
    encode_holding,
)
from engine.values.outcome import OutcomeKind
from tests.support.hostile import Fault, HostileServer
from tests.support.pools import Host, Profile, Rate, Route, World, hand_over, make_pool, settled

MINUTE_NS = 60_000_000_000


def world_of(server: HostileServer) -> World:
    return World({"example.net": Route("test", (Host("127.0.0.1", server.port),))})


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 120))  # type: ignore[arg-type]


async def assign(
    pool: PoolEngine, sources: Sequence[int], *, number: int = 1, epoch: int = 1, shard: int = 0, of: int = 1
) -> Holding:
    told = Assignment(epoch, number, tuple(sources), shard, of)
    return decode_holding(await pool.assign(encode_assignment(told)))


def test_the_records_come_back_as_they_went() -> None:
    told = Assignment(3, 4, (1, 7), 1, 2)
    assert decode_assignment(encode_assignment(told)) == told
    held = Holding((1, 2), True, ((1, "site", 2**62),))
    assert decode_holding(encode_holding(held)) == held


@pytest.mark.parametrize(("total", "of"), [(5, 2), (7, 3), (32, 32), (1, 1), (10, 4)])
def test_the_parts_of_a_limit_add_up_to_it(total: int, of: int) -> None:
    parts = [part(total, shard, of) for shard in range(of)]
    assert sum(parts) == total
    assert min(parts) >= 1
    assert max(parts) - min(parts) <= 1


def test_no_limit_is_not_divided_and_too_small_a_one_is_refused() -> None:
    assert part(0, 1, 3) == 0
    with pytest.raises(ValueError, match="3 processes cannot share 2 connections"):
        [part(2, shard, 3) for shard in range(3)]


def test_before_it_is_told_it_carries_everything_then_only_its_own() -> None:
    async def go() -> None:
        async with HostileServer() as server:
            world = world_of(server)
            pool = make_pool(world)
            await hand_over(pool, [1], source=1)
            await settled(world, 1)
            await assign(pool, [0])
            await hand_over(pool, [2], source=0, batch=2)
            await hand_over(pool, [3], source=1, batch=3)
            await settled(world, 3)
            assert [world.of(n).kind for n in (1, 2, 3)] == [
                OutcomeKind.DELIVERED,
                OutcomeKind.DELIVERED,
                OutcomeKind.RETURNED,
            ]
            assert decode_resume(await pool.resume(1)).sources == (0,)
            await pool.stop(1)

    run(go)


def test_a_source_is_given_up_without_loss_and_its_sessions_end() -> None:
    """What waits goes back, what is on the wire is finished, and only then is nothing left."""

    async def go() -> None:
        async with HostileServer(Fault("dot", "stall"), pipelining=False) as server:
            world = world_of(server)
            pool = make_pool(
                world, Profile(max_connections=1), timeouts_s=(0.0, *[30.0] * 5, 0.05, 30.0), hold_s=60.0
            )
            await hand_over(pool, range(1, 6))
            async with asyncio.timeout(60):
                while not any(s.machine.is_body_sent for lane in pool._lanes.values() for s in lane.sessions):
                    await asyncio.sleep(0.005)
            assert (await assign(pool, [1])).left == (0,)
            await settled(world, 4)
            assert {outcome.kind for outcome in world.outcomes} == {OutcomeKind.RETURNED}
            assert (await assign(pool, [1])).left == (0,)  # still waits for the answer to its message
            for lane in pool._lanes.values():
                for session in list(lane.sessions):
                    session.machine.data_received(b"250 2.0.0 Ok\r\n")
            async with asyncio.timeout(60):
                while (await assign(pool, [1])).left:
                    await asyncio.sleep(0.01)
            assert not any(lane.sessions for lane in pool._lanes.values())
            await settled(world, 5)
            assert sum(outcome.kind is OutcomeKind.DELIVERED for outcome in world.outcomes) == 1
            await pool.stop(1)

    run(go)


def test_it_tells_until_when_a_pace_binds_whoever_comes_next() -> None:
    async def go() -> None:
        async with HostileServer() as server:
            world = world_of(server)
            pool = make_pool(world, Profile(rate=Rate(1, 60.0)))
            await hand_over(pool, [1])
            await settled(world, 1)
            started_ns = pool.clock.monotonic_ns()
            assert (await assign(pool, [0, 1])).paces == ()
            [(source, site, next_ns)] = (await assign(pool, [1])).paces
            assert (source, site) == (0, "test")
            assert started_ns + MINUTE_NS // 2 < next_ns <= started_ns + MINUTE_NS
            await pool.stop(1)

    run(go)


def test_its_part_of_the_connections_is_kept_from_when_it_is_told() -> None:
    async def go() -> None:
        async with HostileServer() as server:
            world = world_of(server)
            pool = make_pool(world, Profile(max_connections=4, max_connections_total=5))
            for batch in range(6):
                await hand_over(pool, range(batch * 80, batch * 80 + 80), batch=batch, source=batch % 2)
                await asyncio.sleep(0.002)
            held = await assign(pool, [0, 1], shard=1, of=2)
            async with asyncio.timeout(60):
                while held.is_over:
                    await asyncio.sleep(0.005)
                    held = await assign(pool, [0, 1], shard=1, of=2)
            assert sum(len(lane.sessions) + lane.opening for lane in pool._lanes.values()) <= 3
            await settled(world, 480)
            assert {outcome.kind for outcome in world.outcomes} == {OutcomeKind.DELIVERED}
            await pool.stop(1)

    run(go)


def test_of_two_assignments_the_newer_holds_whatever_the_order_they_arrive_in() -> None:
    async def go() -> None:
        async with HostileServer() as server:
            pool = make_pool(world_of(server))
            await assign(pool, [0], number=5)
            await assign(pool, [1], number=4)
            assert decode_resume(await pool.resume(1)).sources == (0,)
            await assign(pool, [1], number=1, epoch=2)
            assert decode_resume(await pool.resume(2)).sources == (1,)
            await pool.stop(1)

    run(go)


def test_messages_whose_route_is_not_known_yet_go_back_too() -> None:
    async def go() -> None:
        async with HostileServer() as server:
            world = world_of(server)
            gate = asyncio.Event()
            route = world.routes.pop("example.net")

            async def slow(domain: str) -> Route:
                await gate.wait()
                return route  # type: ignore[no-any-return]

            world.route = slow  # type: ignore[method-assign]
            pool = make_pool(world)
            await hand_over(pool, [1, 2], source=0)
            await hand_over(pool, [3], source=1, batch=2)
            assert (await assign(pool, [1])).left == ()
            gate.set()
            await settled(world, 3)
            assert [world.of(n).kind for n in (1, 2, 3)] == [
                OutcomeKind.RETURNED,
                OutcomeKind.RETURNED,
                OutcomeKind.DELIVERED,
            ]
            await pool.stop(1)

    run(go)


def test_its_load_is_what_the_loop_has_used() -> None:
    async def go() -> None:
        async with HostileServer() as server:
            pool = make_pool(world_of(server), cpu_ns=lambda: 123)
            cpu_ns, at_ns = await pool.load()
            assert (cpu_ns, at_ns > 0) == (123, True)

    run(go)

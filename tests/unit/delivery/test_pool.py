"""The pool's promises, against a well-behaved server on loopback (its own, in the same loop)."""

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from engine.bounces.category import Category
from engine.bounces.classifier import shipped_classifier
from engine.delivery.hosts import in_order
from engine.delivery.pacing import Gate
from engine.delivery.wire import ENTRY, Header, decode_resume, encode_header
from engine.smtp.opener import Opened, OpenFailure, Target, open_session
from engine.smtp.policy import FailureReason, Phase
from engine.tls.policy import PLAIN
from engine.values.outcome import OutcomeKind, Scope
from engine.values.reply import Reply
from tests.support.hostile import Fault, HostileServer
from tests.support.pools import Host, Profile, Rate, Route, World, hand_over, make_pool, settled

FOREVER_S = (0.0, *[60.0] * 7)


def world_of(server: HostileServer, **options: Any) -> World:
    return World({"example.net": Route("test", (Host("127.0.0.1", server.port),))}, **options)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 120))  # type: ignore[arg-type]


def test_delivers_from_the_source_address_with_its_name() -> None:
    async def go() -> None:
        async with HostileServer() as server:
            world = world_of(server)
            pool = make_pool(world)
            await hand_over(pool, [1, 2, 3], source=1)
            await settled(world, 3)
            assert {o.kind for o in world.outcomes} == {OutcomeKind.DELIVERED}
            assert world.of(1).reply == Reply(250, "2.0.0", "Ok: queued <u1@example.net>")
            assert (world.of(1).source, world.of(1).host) == (1, "127.0.0.1")
            assert b"EHLO mta.example.com" in server.commands
            peers = {writer.get_extra_info("peername")[0] for writer in server._writers}
            assert peers == {"127.0.0.3"}
            await pool.stop(1)
            assert server.commands[-1] == b"QUIT"

    run(go)


def test_messages_per_connection() -> None:
    async def go() -> None:
        async with HostileServer() as server:
            world = world_of(server)
            pool = make_pool(world, Profile(max_connections=1, messages_per_connection=4))
            await hand_over(pool, range(1, 11))
            await settled(world, 10)
            await pool.stop(1)
            sessions = b" ".join(command[:4] for command in server.commands).split(b"EHLO")[1:]
            assert [session.count(b"MAIL") for session in sessions] == [4, 4, 2]
            assert server.connections == 3

    run(go)


def test_connection_limits() -> None:
    async def go() -> None:
        async with HostileServer() as server:
            world = world_of(server)
            pool = make_pool(world, Profile(max_connections=3, max_connections_total=4))
            for batch, source in enumerate((0, 1) * 5):
                await hand_over(pool, range(batch * 50, batch * 50 + 50), batch=batch, source=source)
                await asyncio.sleep(0.005)
            await settled(world, 500)
            assert {o.kind for o in world.outcomes} == {OutcomeKind.DELIVERED}
            assert server.most_connections <= 4
            shown = {point.metric: point.value for point in pool.figures()}  # both sources have one name here
            assert shown["sendfleet.sessions.limit"] == 6
            assert 1 <= shown["sendfleet.sessions.open"] <= 4
            assert shown["sendfleet.sessions.refused"] > 0
            await pool.stop(1)

    run(go)


def test_an_idle_session_makes_way_for_another_source_at_the_limit_of_all_together() -> None:
    async def go() -> None:
        async with HostileServer() as server:
            world = world_of(server)
            pool = make_pool(world, Profile(max_connections=1, max_connections_total=1))
            await hand_over(pool, [1], source=0)
            await settled(world, 1)
            await hand_over(pool, [2], batch=2, source=1)
            await settled(world, 2)
            assert world.of(2).kind is OutcomeKind.DELIVERED
            await pool.stop(1)

    run(go)


def test_a_connection_that_comes_free_goes_to_a_source_that_has_none() -> None:
    async def go() -> None:
        async with HostileServer() as server:
            world = world_of(server)
            pool = make_pool(
                world, Profile(max_connections=1, max_connections_total=1, messages_per_connection=2)
            )
            await hand_over(pool, range(1, 9), source=0)
            await hand_over(pool, [9], batch=2, source=1)
            await settled(world, 9)
            order = [names for _, names in server.transactions]
            assert [f"u{n}@example.net" for n in (1, 2, 9, 3)] == [name for names in order for name in names][
                :4
            ]
            await pool.stop(1)

    run(go)


def test_the_pace_of_a_rate_is_never_exceeded(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    start = Gate.started

    def watched(gate: Gate, now_ns: int) -> None:
        started.append(now_ns)
        start(gate, now_ns)

    monkeypatch.setattr(Gate, "started", watched)

    async def go() -> None:
        async with HostileServer() as server:
            world = world_of(server)
            pool = make_pool(world, Profile(max_connections=3, rate=Rate(50, 1.0)), hold_s=10.0)
            await hand_over(pool, range(1, 16))
            await settled(world, 15)
            await pool.stop(1)

    run(go)
    assert len(started) == 15
    assert all(b - a >= 20_000_000 for a, b in itertools.pairwise(started))


def test_nothing_starts_before_its_time() -> None:
    async def go() -> None:
        async with HostileServer() as server:
            world = world_of(server)
            pool = make_pool(world)
            begin = time.monotonic_ns()
            await hand_over(pool, [1], send_at_ns=begin + 60_000_000)
            await settled(world, 1)
            assert time.monotonic_ns() - begin >= 60_000_000
            await pool.stop(1)

    run(go)


def test_recipients_of_one_message_share_a_transaction() -> None:
    async def go() -> None:
        async with HostileServer() as server:
            world = world_of(server, same_body=True)
            pool = make_pool(world, Profile(max_connections=1, max_recipients=4))
            await hand_over(pool, range(1, 11))
            await settled(world, 10)
            assert [len(names) for _, names in server.transactions] == [4, 4, 2]
            assert sorted(server.committed) == sorted(f"u{i}@example.net" for i in range(1, 11))
            await pool.stop(1)

    run(go)


def test_different_messages_are_not_grouped() -> None:
    async def go() -> None:
        async with HostileServer() as server:
            world = world_of(server)
            pool = make_pool(world, Profile(max_connections=1, max_recipients=4))
            await hand_over(pool, range(1, 4))
            await settled(world, 3)
            assert [len(names) for _, names in server.transactions] == [1, 1, 1]
            await pool.stop(1)

    run(go)


def test_too_many_recipients_are_split_at_once() -> None:
    async def go() -> None:
        async with HostileServer() as server:
            good = server._answer

            async def at_most_two(writer: Any, phase: str, recipients: list[str]) -> bool:
                if phase == "mail":
                    server.now = 0  # type: ignore[attr-defined]
                if phase == "rcpt":
                    server.now += 1  # type: ignore[attr-defined]
                    if server.now > 2:  # type: ignore[attr-defined]
                        await server._send(writer, b"452 4.5.3 too many recipients\r\n")
                        return False
                return await good(writer, phase, recipients)

            server._answer = at_most_two  # type: ignore[method-assign]
            world = world_of(server, same_body=True)
            pool = make_pool(world, Profile(max_connections=1, max_recipients=5))
            await hand_over(pool, range(1, 6))
            await settled(world, 5)
            assert {o.kind for o in world.outcomes} == {OutcomeKind.DELIVERED}
            assert [len(names) for _, names in server.transactions] == [2, 2, 1]
            await pool.stop(1)

    run(go)


def test_a_recipient_who_needs_smtputf8_takes_no_other_with_him() -> None:
    async def go() -> None:
        async with HostileServer() as server:
            world = world_of(server, same_body=True)
            plain = world.record
            world.record = lambda id_: (  # type: ignore[method-assign,assignment]
                replace(plain(id_), recipient="\u00fc@example.net") if id_ == 2 else plain(id_)  # type: ignore[type-var]
            )
            pool = make_pool(world, Profile(max_connections=1, max_recipients=4))
            await hand_over(pool, [1, 2, 3])
            await settled(world, 3)
            assert {world.of(1).kind, world.of(3).kind} == {OutcomeKind.DELIVERED}
            assert (world.of(2).kind, world.of(2).reply.enhanced) == (OutcomeKind.BOUNCED, "5.6.7")
            await pool.stop(1)

    run(go)


@pytest.mark.parametrize(
    ("phase", "count", "may_suppress"), [("mail", 1, False), ("dot", 1, True), ("dot", 3, False)]
)
def test_who_a_refusal_speaks_about(phase: str, count: int, may_suppress: bool) -> None:
    """Of several recipients who are refused at once one is unknown perhaps; at MAIL it can only be the sender."""

    async def go() -> None:
        async with HostileServer() as server:
            good = server._answer

            async def unknown(writer: Any, at: str, recipients: list[str]) -> bool:
                if at == phase:
                    await server._send(writer, b"550 5.1.1 user unknown\r\n")
                    return False
                return await good(writer, at, recipients)

            server._answer = unknown  # type: ignore[method-assign]
            world = world_of(server, same_body=True)
            pool = make_pool(world, Profile(max_connections=1, max_recipients=5))
            await hand_over(pool, range(1, count + 1))
            await settled(world, count)
            for outcome in world.outcomes:
                assert outcome.kind is OutcomeKind.BOUNCED
                found = shipped_classifier().classify(outcome.kind, outcome.scope, outcome.reply)
                assert found.category is Category.BAD_MAILBOX
                assert found.hard == may_suppress
            await pool.stop(1)

    run(go)


def test_what_cannot_begin_is_returned_in_time() -> None:
    async def go() -> None:
        async def never(target: Target, *, timeout_s: float) -> Opened | OpenFailure:
            await asyncio.sleep(60)
            raise AssertionError

        world = World({"example.net": Route("test", (Host("127.0.0.1", 1),))})
        pool = make_pool(world, opener=never, hold_s=0.1)
        await hand_over(pool, [1, 2], batch=77)
        await settled(world, 2)
        assert {o.kind for o in world.outcomes} == {OutcomeKind.RETURNED}
        assert world.batch_numbers == [77, 77]
        assert pool.stats()["held"] == 0

    run(go)


def test_no_host_defers_what_waits_and_what_comes_during_the_backoff() -> None:
    async def go() -> None:
        opened: list[str] = []

        async def refuse(target: Target, *, timeout_s: float) -> Opened | OpenFailure:
            opened.append(target.host)
            return OpenFailure(
                Phase.CONNECT, FailureReason.UNREACHABLE, Reply(0, "4.4.1", "connect: unreachable")
            )

        hosts = (Host("mx1", 25, 20), Host("mx2", 25, 10), Host("mx3", 25, 30))
        world = World({"example.net": Route("test", hosts)})
        pool = make_pool(world, opener=refuse)
        await hand_over(pool, [1])
        await settled(world, 1)
        assert opened == ["mx2", "mx1", "mx3"], "every host, by preference"
        await hand_over(pool, [2], batch=2)
        await settled(world, 2)
        assert opened == ["mx2", "mx1", "mx3"], "no new search during the backoff"
        for id_ in (1, 2):
            assert (world.of(id_).kind, world.of(id_).scope) == (OutcomeKind.DEFERRED, Scope.HOST)
            assert world.of(id_).reply.enhanced == "4.4.1"
        shown = {point.metric: point.value for point in pool.figures()}
        assert shown["sendfleet.sessions.open"] == 0, "the room that the search had is free again"

    run(go)


def test_without_a_lease_nothing_begins() -> None:
    class Lease:
        held = 4

        def allows(self, epoch: int, now_ns: int) -> bool:
            return epoch == self.held

    async def go() -> None:
        async with HostileServer() as server:
            world = world_of(server)
            pool = make_pool(world, lease=Lease())
            for term in (3, 4):
                entries = b"".join(ENTRY.pack(term * 10 + n, 0, 9, 0, 0, 0, 0, 0) for n in range(3))
                await pool.deliver(encode_header(Header(term, 1, {9: "test"}, term=term)), entries)
                await settled(world, 3 if term == 3 else 6)
            kinds = {outcome.id: outcome.kind for outcome in world.outcomes}
            assert kinds == {
                **dict.fromkeys((30, 31, 32), OutcomeKind.RETURNED),
                **dict.fromkeys((40, 41, 42), OutcomeKind.DELIVERED),
            }
            assert sorted(server.committed) == [f"u4{n}@example.net" for n in range(3)]
            await pool.stop(1)

    run(go)


def test_the_next_host_after_a_greeting_of_5yz() -> None:
    async def go() -> None:
        async with HostileServer(Fault("greeting", "5xx")) as bad, HostileServer() as good:
            hosts = (Host("127.0.0.1", bad.port, 10), Host("127.0.0.1", good.port, 20))
            world = World({"example.net": Route("test", hosts)})
            pool = make_pool(world)
            await hand_over(pool, [1])
            await settled(world, 1)
            assert world.of(1).kind is OutcomeKind.DELIVERED
            assert bad.connections == 1
            await pool.stop(1)

    run(go)


def test_what_nobody_thought_of_in_an_opening_concerns_its_own_host() -> None:
    async def go() -> None:
        async with HostileServer() as server:

            async def opener(target: Target, *, timeout_s: float) -> Opened | OpenFailure:
                if target.host == "odd":
                    raise UnicodeError("label empty or too long")
                return await open_session(target, timeout_s=timeout_s)

            world = world_of(server, domain_of={1: "odd.test"})
            world.routes["odd.test"] = Route("odd", (Host("odd", 25),))
            failed: list[str] = []
            pool = make_pool(world, opener=opener, on_failure=lambda: failed.append("pool"))
            await hand_over(pool, [1, 2])
            await settled(world, 2)
            assert (world.of(1).kind, world.of(1).scope) == (OutcomeKind.DEFERRED, Scope.HOST)
            assert "too long" in world.of(1).reply.text
            assert world.of(2).kind is OutcomeKind.DELIVERED
            assert not failed
            await pool.stop(1)

    run(go)


def test_a_greeting_about_our_ip_is_not_tried_elsewhere() -> None:
    async def go() -> None:
        opened: list[str] = []

        async def blocked(target: Target, *, timeout_s: float) -> Opened | OpenFailure:
            opened.append(target.host)
            reply = Reply(554, "5.7.1", "Client host [192.0.2.1] blocked using zen.spamhaus.org")
            return OpenFailure(Phase.GREETING, reply, reply)

        world = World({"example.net": Route("test", (Host("mx1", 25, 1), Host("mx2", 25, 2)))})
        pool = make_pool(world, opener=blocked)
        await hand_over(pool, [1, 2, 3])
        await settled(world, 3)
        assert opened == ["mx1"]
        assert (world.of(1).kind, world.of(1).scope) == (OutcomeKind.DEFERRED, Scope.SOURCE)
        kinds = {world.of(id_).kind for id_ in (2, 3)}
        assert kinds == {OutcomeKind.RETURNED}, "they can go over another source"

    run(go)


@pytest.mark.parametrize("first", [OutcomeKind.DEFERRED, OutcomeKind.BOUNCED])
def test_a_bounce_in_an_opening_stands_only_if_every_host_says_so(first: OutcomeKind) -> None:
    async def go() -> None:
        async def refuse(target: Target, *, timeout_s: float) -> Opened | OpenFailure:
            if target.host == "mx1" and first is OutcomeKind.DEFERRED:
                reply = Reply(0, "4.4.1", "connect: unreachable")
                return OpenFailure(Phase.CONNECT, FailureReason.UNREACHABLE, reply)
            reply = Reply(0, "5.7.30", "REQUIRETLS is not offered")
            return OpenFailure(Phase.EHLO, FailureReason.NO_REQUIRETLS, reply)

        world = World({"example.net": Route("test", (Host("mx1", 25, 1), Host("mx2", 25, 2)))})
        pool = make_pool(world, opener=refuse)
        await hand_over(pool, [1])
        await settled(world, 1)
        host = "mx1" if first is OutcomeKind.DEFERRED else "mx2"
        assert (world.of(1).kind, world.of(1).host) == (first, host)

    run(go)


def test_a_source_address_we_do_not_have() -> None:
    async def go() -> None:
        target = Target("mx", "127.0.0.1", 25, "192.0.2.77", "mta.example.com", PLAIN)
        result = await open_session(target, timeout_s=20)
        assert isinstance(result, OpenFailure)
        assert result.answer is FailureReason.BIND

    run(go)


def test_tls_required_and_not_offered_never_sends_in_the_clear() -> None:
    async def go() -> None:
        async with HostileServer() as server:
            world = World({"example.net": Route("test", (Host("127.0.0.1", server.port),), tls="required")})
            pool = make_pool(world)
            await hand_over(pool, [1])
            await settled(world, 1)
            assert world.of(1).kind is OutcomeKind.DEFERRED
            assert world.of(1).reply.enhanced == "4.7.10"
            assert not any(c.startswith(b"MAIL") for c in server.commands)
            await pool.stop(1)

    run(go)


def test_unroutable_domains() -> None:
    @dataclass(frozen=True)
    class Unroutable:
        kind: str
        reply: Reply

    async def go() -> None:
        world = World({"gone.test": Unroutable("bounced", Reply(0, "5.1.2", "no such domain"))})
        world.domain_of = {1: "gone.test", 2: "gone.test"}
        cached = dict(world.routes)
        world.cached = lambda domain: None  # type: ignore[method-assign]
        pool = make_pool(world)
        await hand_over(pool, [1])
        world.cached = cached.get  # type: ignore[method-assign]
        await hand_over(pool, [2], batch=2)
        await settled(world, 2)
        assert {(o.kind, o.reply.enhanced) for o in world.outcomes} == {(OutcomeKind.BOUNCED, "5.1.2")}
        await pool.stop(1)

    run(go)


def test_a_batch_is_taken_once_and_older_epochs_not_at_all() -> None:
    async def go() -> None:
        async with HostileServer() as server:
            world = world_of(server)
            pool = make_pool(world)
            await hand_over(pool, [1, 2], batch=1, epoch=5)
            await hand_over(pool, [1, 2], batch=1, epoch=5)
            await hand_over(pool, [3], batch=2, epoch=4)
            await settled(world, 2)
            assert sorted(o.id for o in world.outcomes) == [1, 2]
            await hand_over(pool, [1, 2], batch=1, epoch=5)
            await asyncio.sleep(0.05)
            assert len(world.outcomes) == 2
            await pool.stop(1)

    run(go)


def test_rows_gather_while_a_report_is_not_settled() -> None:
    async def go() -> None:
        async with HostileServer() as server:
            world = world_of(server)
            pool = make_pool(world, tick_s=60.0)
            await hand_over(pool, [1], batch=1)
            await settled(world, 1)
            for id_ in range(2, 6):
                await hand_over(pool, [id_], batch=id_)
                await asyncio.sleep(0.03)
            assert len(world.outcomes) == 1, "the region is busy with the first report"
            await pool.acknowledge(1)
            assert world.sequences == [1, 2]
            assert [outcome.id for outcome in world.outcomes] == [1, 2, 3, 4, 5]
            await pool.stop(1)

    run(go)


def test_resume_drops_the_unsent_and_tells_the_rest() -> None:
    async def go() -> None:
        async with HostileServer(Fault("dot", "stall", 2)) as server:
            world = world_of(server)
            pool = make_pool(world, Profile(max_connections=1), timeouts_s=FOREVER_S)
            await hand_over(pool, range(1, 8), epoch=1)
            await settled(world, 1)
            again = decode_resume(await pool.resume(1))
            assert again.in_progress == (2, 3, 4, 5, 6, 7), (
                "the same incarnation has asked: nothing is dropped"
            )
            state = decode_resume(await pool.resume(2))
            assert [o.id for o in state.outcomes] == [1]
            assert state.in_progress == (2, 3), "3 stands behind the dot of 2"
            assert decode_resume(await pool.resume(2)).outcomes == state.outcomes, (
                "until they are acknowledged"
            )
            await pool.acknowledge(state.sequence)
            assert decode_resume(await pool.resume(3)).outcomes == ()
            await hand_over(pool, [2, 4], batch=5, epoch=3)
            for writer in list(server._writers):
                writer.transport.abort()
            await settled(world, 4)
            assert world.of(2).possible_duplicate
            batches = {o.id: batch for o, batch in zip(world.outcomes, world.batch_numbers, strict=True)}
            assert batches == {1: 1, 2: 5, 3: 1, 4: 5}
            assert sorted(o.id for o in world.outcomes) == [1, 2, 3, 4]
            await pool.stop(1)

    run(go)


def test_a_stop_waits_for_a_final_reply_beyond_its_deadline() -> None:
    async def go() -> None:
        async with HostileServer() as server:
            good = server._answer

            async def slow(writer: Any, phase: str, recipients: list[str]) -> bool:
                if phase == "dot":
                    await asyncio.sleep(0.3)
                return await good(writer, phase, recipients)

            server._answer = slow  # type: ignore[method-assign]
            world = world_of(server)
            pool = make_pool(world, Profile(max_connections=1), timeouts_s=FOREVER_S)
            await hand_over(pool, range(1, 6))
            while not server.bodies:
                await asyncio.sleep(0.005)
            await pool.stop(0.05)
            assert world.of(1).kind is OutcomeKind.DELIVERED
            assert sorted(o.id for o in world.outcomes) == [1, 2, 3, 4, 5]
            kinds = {o.kind for o in world.outcomes if o.id > 2}
            assert kinds == {OutcomeKind.RETURNED}
            assert not any(o.possible_duplicate for o in world.outcomes)

    run(go)


def test_a_stop_does_not_wait_for_hosts_that_do_not_answer() -> None:
    async def go() -> None:
        async def never(target: Target, *, timeout_s: float) -> Opened | OpenFailure:
            await asyncio.sleep(60)
            raise AssertionError

        world = World({"example.net": Route("test", (Host("127.0.0.1", 1),))})
        pool = make_pool(world, opener=never)
        await hand_over(pool, [1])
        await asyncio.sleep(0.01)
        await asyncio.wait_for(pool.stop(0.05), 30)
        assert world.of(1).kind is OutcomeKind.RETURNED

    run(go)


def test_idle_sessions_are_closed_and_unused_lanes_forgotten() -> None:
    async def go() -> None:
        async with HostileServer() as server:
            world = world_of(server)
            pool = make_pool(world, Profile(idle_timeout_s=0.05))
            await hand_over(pool, [1])
            await settled(world, 1)
            await asyncio.sleep(0.2)
            assert pool.stats()["sessions"] == 0
            assert pool.stats()["lanes"] == 0
            assert server.commands[-1] == b"QUIT"
            await hand_over(pool, [2], batch=2)
            await settled(world, 2)
            await pool.stop(1)

    run(go)


def test_one_unreadable_message_does_not_stop_the_others() -> None:
    async def go() -> None:
        async with HostileServer() as server:
            world = world_of(server)
            world.gone = {2}

            def broken(content: Any) -> bytes:
                if content[1] == 3:
                    raise ValueError("crc")
                return world.body_bytes

            world.body = broken  # type: ignore[method-assign]
            pool = make_pool(world)
            await hand_over(pool, [1, 2, 3, 4])
            await settled(world, 4)
            assert world.of(2).kind is OutcomeKind.RETURNED
            assert (world.of(3).kind, world.of(3).reply.enhanced) == (OutcomeKind.DEFERRED, "4.3.0")
            assert world.of(4).kind is OutcomeKind.DELIVERED
            await pool.stop(1)

    run(go)


@pytest.mark.parametrize(
    ("body", "enhanced"), [("é".encode() + b"\r\n", ""), (b"x" * 1_100_000, "5.3.4")], ids=["8bit", "size"]
)
def test_what_the_host_cannot_take(body: bytes, enhanced: str) -> None:
    async def go() -> None:
        async with HostileServer() as server:
            world = world_of(server, body_bytes=body)
            pool = make_pool(world)
            await hand_over(pool, [1])
            await settled(world, 1)
            if enhanced:
                assert (world.of(1).kind, world.of(1).reply.enhanced) == (OutcomeKind.BOUNCED, enhanced)
            else:
                assert world.of(1).kind is OutcomeKind.DELIVERED
                assert any(b"BODY=8BITMIME" in command for command in server.commands)
            await pool.stop(1)

    run(go)


def test_hosts_of_equal_preference_are_shuffled() -> None:
    hosts = [Host(f"mx{i}", 25, i // 3) for i in range(6)]
    seen = {tuple(h.name for h in in_order(hosts, random.Random(seed))) for seed in range(40)}
    assert len(seen) > 10
    assert all(set(names[:3]) == {"mx0", "mx1", "mx2"} for names in seen)


def test_a_domain_whose_route_does_not_come_gives_its_jobs_back() -> None:
    async def go() -> None:
        world = World({"example.net": Route("test", (Host("127.0.0.1", 1),))}, domain_of={1: "slow.test"})
        answered = asyncio.Event()

        async def slow(domain: str) -> Any:
            await answered.wait()
            return world.routes["example.net"]

        world.route = slow  # type: ignore[method-assign]
        pool = make_pool(world, hold_s=0.05)
        await hand_over(pool, [1])
        await settled(world, 1)
        assert world.of(1).kind is OutcomeKind.RETURNED
        assert pool.stats()["held"] == 0
        answered.set()
        await asyncio.sleep(0)
        await pool.stop(1.0)
        assert len(world.outcomes) == 1

    asyncio.run(go())

"""What the host has announced is kept to: DSN, LIMITS, SIZE, 8BITMIME, SMTPUTF8."""

import asyncio
import email
import email.policy
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from engine.delivery.session import announced_limits
from engine.values.options import Flag, Notify, Options
from engine.values.outcome import OutcomeKind, Scope
from tests.support.hostile import HostileServer
from tests.support.pools import Host, Profile, Route, World, hand_over, make_pool, settled

HEAD = b"From: a@example.com\r\nMessage-ID: <1@example.com>\r\nDate: x\r\n"


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 120))  # type: ignore[arg-type]


def world_of(server: HostileServer, **options: Any) -> World:
    return World({"example.net": Route("test", (Host("127.0.0.1", server.port),))}, **options)


async def send(server: HostileServer, world: World, ids: list[int], **profile: Any) -> None:
    pool = make_pool(world, Profile(max_connections=1, **profile))
    await hand_over(pool, ids)
    await settled(world, len(ids))
    await pool.stop(1)


def commands(server: HostileServer, verb: bytes) -> list[bytes]:
    return [command for command in server.commands if command.startswith(verb)]


def test_wishes_for_notifications_are_passed_on() -> None:
    wishes = Options(
        ret="HDRS",
        envid="order 7+1",
        notify=Notify.SUCCESS | Notify.FAILURE,
        orcpt="rfc822;old=name@example.org",
    )

    async def go() -> None:
        async with HostileServer(extensions=("DSN",)) as server:
            await send(server, world_of(server, options={1: wishes}), [1, 2])
            assert commands(server, b"MAIL") == [
                b"MAIL FROM:<sender@example.com> RET=HDRS ENVID=order+207+2B1",
                b"MAIL FROM:<sender@example.com>",
            ]
            assert commands(server, b"RCPT") == [
                b"RCPT TO:<u1@example.net> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;old+3Dname@example.org",
                b"RCPT TO:<u2@example.net>",
            ]

    run(go)


@pytest.mark.parametrize(
    ("extensions", "notify", "is_relayed"),
    [
        (("DSN",), Notify.SUCCESS, False),
        (("DSN",), Notify.FAILURE, True),
        ((), Notify.SUCCESS, True),
    ],
)
def test_who_reports_a_delivery(extensions: tuple[str, ...], notify: int, is_relayed: bool) -> None:
    async def go() -> None:
        async with HostileServer(extensions=extensions) as server:
            world = world_of(
                server, same_body=True, options={1: Options(notify=notify), 3: Options(notify=notify)}
            )
            await send(server, world, [1, 2, 3], max_recipients=10)
            outcomes = {outcome.id: outcome for outcome in world.outcomes}
            assert [outcomes[id_].is_relayed for id_ in (1, 2, 3)] == [is_relayed, False, is_relayed]

    run(go)


def test_an_original_recipient_that_encoding_makes_too_long_is_left_out() -> None:
    async def go() -> None:
        async with HostileServer(extensions=("DSN",)) as server:
            wishes = Options(notify=Notify.FAILURE, orcpt="rfc822;" + "=" * 165)
            await send(server, world_of(server, options={1: wishes}), [1])
            assert commands(server, b"RCPT") == [b"RCPT TO:<u1@example.net> NOTIFY=FAILURE"]

    run(go)


def test_a_host_without_dsn_hears_nothing_of_them() -> None:
    async def go() -> None:
        async with HostileServer(extensions=()) as server:
            wishes = Options(ret="FULL", envid="x", notify=Notify.NEVER, orcpt="rfc822;a@b.example")
            await send(server, world_of(server, options={1: wishes}), [1])
            assert commands(server, b"MAIL") == [b"MAIL FROM:<sender@example.com>"]
            assert commands(server, b"RCPT") == [b"RCPT TO:<u1@example.net>"]

    run(go)


def test_only_recipients_with_the_same_wishes_of_the_sender_share_a_transaction() -> None:
    async def go() -> None:
        async with HostileServer(extensions=("DSN",)) as server:
            options = {
                1: Options(ret="FULL", notify=Notify.NEVER),
                2: Options(ret="FULL", notify=Notify.FAILURE),
                3: Options(ret="HDRS"),
                5: Options(notify=Notify.DELAY),
                6: Options(flags=Flag.VERP),
            }
            world = world_of(server, same_body=True, options=options)
            await send(server, world, [1, 2, 3, 4, 5, 6], max_recipients=10)
            assert [names for _, names in server.transactions] == [
                ["u1@example.net", "u2@example.net"],
                ["u3@example.net"],
                ["u4@example.net", "u5@example.net"],
                ["u6@example.net"],
            ]
            assert commands(server, b"RCPT")[:2] == [
                b"RCPT TO:<u1@example.net> NOTIFY=NEVER",
                b"RCPT TO:<u2@example.net> NOTIFY=FAILURE",
            ]

    run(go)


def test_messages_that_lack_a_message_id_do_not_share_a_transaction() -> None:
    async def go() -> None:
        async with HostileServer() as server:
            world = world_of(server, same_body=True, body_bytes=b"From: a@example.com\r\n\r\nx\r\n")
            await send(server, world, [1, 2], max_recipients=10)
            assert len(server.transactions) == 2
            assert len(set(server.bodies)) == 2

    run(go)


def test_limits_of_a_session() -> None:
    async def go() -> None:
        async with HostileServer(extensions=("LIMITS MAILMAX=3 RCPTMAX=2",)) as server:
            world = world_of(server, same_body=True)
            await send(server, world, list(range(1, 11)), max_recipients=5)
            assert [len(names) for _, names in server.transactions] == [2, 2, 2, 2, 2]
            sessions = b" ".join(command[:4] for command in server.commands).split(b"EHLO")[1:]
            assert [session.count(b"MAIL") for session in sessions] == [3, 2]

    run(go)


def test_limit_of_recipient_domains() -> None:
    async def go() -> None:
        async with HostileServer(extensions=("LIMITS RCPTDOMAINMAX=2",)) as server:
            route = Route("test", (Host("127.0.0.1", server.port),))
            domains = {n: f"d{n % 4}.example" for n in range(1, 9)}
            world = World(dict.fromkeys(domains.values(), route), domain_of=domains, same_body=True)
            await send(server, world, sorted(domains), max_recipients=10)
            assert {outcome.kind for outcome in world.outcomes} == {OutcomeKind.DELIVERED}
            seen: list[set[bytes]] = []
            for command in server.commands:
                if command.startswith(b"EHLO"):
                    seen.append(set())
                if command.startswith(b"RCPT"):
                    seen[-1].add(command.split(b"@")[1])
            assert all(0 < len(found) <= 2 for found in seen)

    run(go)


def test_what_is_not_understood_in_limits_is_passed_over() -> None:
    text = "mailmax=5 RCPTMAX=0 RCPTDOMAINMAX=x OTHER=3 =7 RCPTMAX =5 BIG=1234567"
    assert announced_limits(text) == {"MAILMAX": 5, "OTHER": 3}


def test_size_counts_no_stuffing() -> None:
    async def go() -> None:
        async with HostileServer(extensions=("SIZE 1000",)) as server:
            body = HEAD + b"\r\n" + b".\r\n" * 10
            await send(server, world_of(server, body_bytes=body), [1])
            assert commands(server, b"MAIL") == [b"MAIL FROM:<sender@example.com> SIZE=%d" % len(body)]

    run(go)


@pytest.mark.parametrize("least", [-1, 0])
def test_size_is_kept_to_the_byte(least: int) -> None:
    async def go() -> None:
        body = HEAD + b"\r\n" + b"x\r\n" * 10
        async with HostileServer(extensions=(f"SIZE {len(body) + least}",)) as server:
            world = world_of(server, body_bytes=body)
            await send(server, world, [1])
            assert (world.of(1).kind is OutcomeKind.DELIVERED) is (least == 0)

    run(go)


EIGHT = HEAD + "Content-Type: text/plain; charset=utf-8\r\n\r\ngrün\r\n".encode()
UTF8 = HEAD + "Subject: grün\r\n\r\nx\r\n".encode()


@pytest.mark.parametrize(
    ("raw", "extensions", "parameters"),
    [
        (EIGHT, ("8BITMIME",), b" BODY=8BITMIME"),
        (EIGHT, (), b""),
        (UTF8, ("8BITMIME", "SMTPUTF8"), b" BODY=8BITMIME SMTPUTF8"),
        (UTF8, ("8BITMIME",), b""),
        (UTF8, ("SMTPUTF8",), b""),
    ],
)
@pytest.mark.parametrize("chunking", [False, True])
def test_eight_bits_go_as_they_are_or_encoded(
    raw: bytes, extensions: tuple[str, ...], parameters: bytes, chunking: bool
) -> None:
    async def go() -> None:
        async with HostileServer(extensions=extensions, chunking=chunking) as server:
            world = world_of(server, body_bytes=raw)
            await send(server, world, [1, 2, 3])
            assert commands(server, b"MAIL") == [b"MAIL FROM:<sender@example.com>" + parameters] * 3
            for body in server.bodies:
                assert (body == raw) is bool(parameters)
                assert body.isascii() is not bool(parameters)
                found = email.message_from_bytes(body, policy=email.policy.SMTP)
                wanted = email.message_from_bytes(raw, policy=email.policy.SMTP)
                assert found["subject"] == wanted["subject"]
                assert found.get_payload(decode=True) == wanted.get_payload(decode=True)

    run(go)


@pytest.mark.parametrize("extensions", [("SMTPUTF8",), ("8BITMIME",), ("8BITMIME", "SMTPUTF8")])
def test_an_address_in_utf8_needs_both_extensions(extensions: tuple[str, ...]) -> None:
    async def go() -> None:
        async with HostileServer(extensions=extensions) as server:
            world = world_of(server, domain_of={1: "bücher.test"})
            world.routes["bücher.test"] = world.routes["example.net"]
            await send(server, world, [1])
            if len(extensions) == 2:
                assert world.of(1).kind is OutcomeKind.DELIVERED
            else:
                assert (world.of(1).kind, world.of(1).reply.enhanced) == (OutcomeKind.BOUNCED, "5.6.7")

    run(go)


def test_what_has_no_seven_bit_form_is_bounced() -> None:
    async def go() -> None:
        async with HostileServer(extensions=()) as server:
            raw = HEAD + b"Content-Type: multipart/signed; boundary=b\r\n\r\n--b\r\n\r\n\xff\r\n--b--\r\n"
            world = world_of(server, body_bytes=raw)
            await send(server, world, [1])
            outcome = world.of(1)
            assert (outcome.kind, outcome.scope) == (OutcomeKind.BOUNCED, Scope.MESSAGE)
            assert (outcome.reply.code, outcome.reply.enhanced) == (0, "5.6.3")
            assert server.bodies == []

    run(go)

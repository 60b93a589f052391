"""The signing stage: what goes out is signed, or does not go out."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.config.signing import DkimConfig
from engine.delivery.preparation import AHEAD, Preparation
from engine.dkim.keys import KeyRing
from engine.dkim.signer import Signer, SigningError, Unsigned
from engine.values.outcome import OutcomeKind, Scope
from tests.support.dkim import dkim_section, records_of, verified
from tests.support.hostile import Fault, HostileServer
from tests.support.pools import Host, Profile, Route, World, hand_over, make_pool, settled

RAW = b"From: Ann <ann@example.com>\r\nTo: b@example.net\r\nMessage-ID: <1@example.com>\r\nDate: x\r\n\r\n.hi\r\n"
LATER_MS = 4_000_000_000_000  # the verifiers look at the clock


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 120))  # type: ignore[arg-type]


def world_of(server: HostileServer, **options: Any) -> World:
    world = World({"example.net": Route("test", (Host("127.0.0.1", server.port),))}, **options)
    world.expires_ms = LATER_MS
    return world


class Keys:
    """A signer with the configuration that it was made from."""

    def __init__(self, directory: Path, **options: Any) -> None:
        section = dkim_section(directory, "example.com", **options)
        self.config = DkimConfig.model_validate(section)
        self.ring = KeyRing(self.config, time.monotonic)
        self.signer = Signer(self.ring)
        self.files = [key.file for key in self.config.domains[0].keys]

    def is_signed(self, body: bytes, *, count: int = 2) -> bool:
        return verified(body, records_of(KeyRing(self.config, time.monotonic), "example.com"), count)


@pytest.mark.parametrize("chunking", [False, True])
@pytest.mark.parametrize("pipelining", [False, True])
def test_what_arrives_has_good_signatures(tmp_path: Path, chunking: bool, pipelining: bool) -> None:
    async def go() -> None:
        keys = Keys(tmp_path)
        async with HostileServer(chunking=chunking, pipelining=pipelining) as server:
            world = world_of(server, body_bytes=RAW)
            pool = make_pool(world, signer=keys.signer, signing=keys.config)
            await hand_over(pool, range(1, 101))
            await settled(world, 100)
            assert {outcome.kind for outcome in world.outcomes} == {OutcomeKind.DELIVERED}
            stuffed = b"\r\n..hi\r\n"
            assert len(server.bodies) == 100
            for body in server.bodies:
                assert chunking or body.endswith(stuffed)
                received = body if chunking else body.replace(stuffed, b"\r\n.hi\r\n")
                assert received.endswith(RAW)
            assert len(set(server.bodies)) == 1, "the same message, the same signature"
            assert keys.is_signed(received)
            assert pool.stats()["signed"] == 100
            assert pool.stats()["prepared_bytes"] == 0
            await pool.stop(1)

    run(go)


def test_the_signature_covers_the_octets_after_every_change(tmp_path: Path) -> None:
    """Bare line ends, a missing Message-ID, 8 bits that the host does not take: signed is what is sent."""

    async def go() -> None:
        keys = Keys(tmp_path)
        raw = "From: ann@example.com\nSubject: grün\n\nGrüße\rund ".encode() + b"x" * 1500 + b"\n"
        for extensions in ((), ("8BITMIME",), ("8BITMIME", "SMTPUTF8")):
            async with HostileServer(extensions=extensions) as server:
                world = world_of(server, body_bytes=raw)
                pool = make_pool(world, signer=keys.signer, signing=keys.config)
                await hand_over(pool, [1, 2, 3])
                await settled(world, 3)
                assert {o.kind for o in world.outcomes} == {OutcomeKind.DELIVERED}, world.outcomes
                assert len(server.bodies) == 3
                for body in server.bodies:
                    assert keys.is_signed(body)
                    assert b"\r\nMessage-ID: <" in body
                    assert body.isascii() is ("SMTPUTF8" not in extensions)
                await pool.stop(1)

    run(go)


def test_recipients_of_one_message_share_its_signature(tmp_path: Path) -> None:
    async def go() -> None:
        keys = Keys(tmp_path)
        async with HostileServer() as server:
            world = world_of(server, body_bytes=RAW, same_body=True)
            profile = Profile(max_connections=1, max_recipients=10)
            pool = make_pool(world, profile, signer=keys.signer, signing=keys.config)
            await hand_over(pool, range(1, 21))
            await settled(world, 20)
            assert [len(names) for _, names in server.transactions] == [10, 10]
            assert pool.stats()["signed"] == 1
            await pool.stop(1)

    run(go)


def test_mail_of_other_domains_goes_unsigned(tmp_path: Path) -> None:
    async def go() -> None:
        keys = Keys(tmp_path)
        async with HostileServer() as server:
            raw = RAW.replace(b"example.com>\r\nTo", b"example.org>\r\nTo")
            world = world_of(server, body_bytes=raw)
            pool = make_pool(world, signer=keys.signer, signing=keys.config)
            await hand_over(pool, [1])
            await settled(world, 1)
            assert server.bodies == [raw.replace(b"\r\n.hi", b"\r\n..hi")]
            assert pool.stats()["signed"] == 0
            await pool.stop(1)

    run(go)


def test_without_its_key_mail_waits_and_goes_signed_when_the_key_is_back(tmp_path: Path) -> None:
    async def go() -> None:
        keys = Keys(tmp_path, reload="50ms")
        keys.files[0].rename(tmp_path / "away")
        async with HostileServer() as server:
            world = world_of(server, body_bytes=RAW)
            pool = make_pool(world, signer=keys.signer, signing=keys.config)
            await hand_over(pool, [1, 2])
            await settled(world, 2)
            for id_ in (1, 2):
                outcome = world.of(id_)
                assert (outcome.kind, outcome.scope) == (OutcomeKind.DEFERRED, Scope.MESSAGE)
                assert (outcome.reply.code, outcome.reply.enhanced) == (0, "4.7.5")
                assert (
                    outcome.reply.text == f"DKIM: {keys.files[0]}: cannot be read: No such file or directory"
                )
            assert server.bodies == []
            await told(world, 1)
            assert world.notices[0][0] == str(keys.files[0])
            (tmp_path / "away").rename(keys.files[0])
            await asyncio.sleep(0.06)
            await hand_over(pool, [3], batch=2)
            await settled(world, 3)
            assert world.of(3).kind is OutcomeKind.DELIVERED
            assert keys.is_signed(server.bodies[0].replace(b"\r\n..hi", b"\r\n.hi"))
            while (
                "read again" not in world.notices[-1][1]
            ):  # a second message may have told that it is missing, too
                await told(world, len(world.notices) + 1)
            await pool.stop(1)

    run(go)


async def told(world: World, count: int) -> None:
    while len(world.notices) < count:
        await asyncio.sleep(0.005)


def test_a_tenant_may_not_use_the_domain_of_another(tmp_path: Path) -> None:
    async def go() -> None:
        section = dkim_section(tmp_path, "example.com")
        section["domains"][0]["tenants"] = ["acme"]
        config = DkimConfig.model_validate(section)
        async with HostileServer() as server:
            world = world_of(server, body_bytes=RAW, tenant="other")
            pool = make_pool(world, signer=Signer(KeyRing(config, time.monotonic)), signing=config)
            await hand_over(pool, [1])
            await settled(world, 1)
            assert (world.of(1).kind, world.of(1).reply.enhanced) == (OutcomeKind.BOUNCED, "5.7.1")
            assert "tenant other may not send as example.com" in world.of(1).reply.text
            world.tenant = "acme"
            await hand_over(pool, [2], batch=2)
            await settled(world, 2)
            assert world.of(2).kind is OutcomeKind.DELIVERED
            await pool.stop(1)

    run(go)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (RAW.replace(b"To:", b"From: evil@example.com\r\nTo:"), "2 From fields"),
        (RAW.replace(b"From:", b"X:"), "0 From fields"),
    ],
)
def test_who_sent_it_must_be_clear(tmp_path: Path, raw: bytes, text: str) -> None:
    async def go() -> None:
        keys = Keys(tmp_path)
        async with HostileServer() as server:
            world = world_of(server, body_bytes=raw)
            pool = make_pool(world, signer=keys.signer, signing=keys.config)
            await hand_over(pool, [1])
            await settled(world, 1)
            assert (world.of(1).kind, world.of(1).reply.enhanced) == (OutcomeKind.BOUNCED, "5.6.0")
            assert text in world.of(1).reply.text
            assert server.bodies == []
            await pool.stop(1)

    run(go)


class Scripted:
    """A signer that waits for `gate`, counts, and can break."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.batches: list[int] = []
        self.error: Exception | None = None

    def sign(self, messages: Sequence[Unsigned]) -> list[bytes | SigningError]:
        self.batches.append(len(messages))
        self.entered.set()
        assert self.gate.wait(20)
        if self.error is not None:
            raise self.error
        return [b"DKIM-Signature: x\r\n"] * len(messages)

    def take_notices(self) -> list[tuple[str, str]]:
        return []


def test_whatever_goes_wrong_on_a_thread_is_no_unsigned_mail() -> None:
    async def go() -> None:
        signer = Scripted()
        signer.error = MemoryError("no more")
        signer.gate.set()
        async with HostileServer() as server:
            world = world_of(server, body_bytes=RAW)
            pool = make_pool(world, signer=signer, signing=DkimConfig())
            await hand_over(pool, range(1, 40))
            await settled(world, 39)
            assert {(o.kind, o.scope) for o in world.outcomes} == {(OutcomeKind.DEFERRED, Scope.MESSAGE)}
            assert "MemoryError" in world.of(7).reply.text
            assert server.bodies == []
            await pool.stop(1)

    run(go)


def test_the_loop_goes_on_and_what_is_prepared_is_bounded_while_a_signature_takes_long() -> None:
    async def go() -> None:
        signer = Scripted()
        async with HostileServer() as server:
            world = world_of(server, body_bytes=RAW)
            pool = make_pool(world, signer=signer, signing=DkimConfig(threads=1))
            await hand_over(pool, range(1, 501))
            await asyncio.to_thread(signer.entered.wait, 10)
            begun = sum(job.form is not None for job in pool._jobs.values())
            assert begun == AHEAD
            assert pool.stats()["prepared_bytes"] <= AHEAD * (len(RAW) + 100)
            assert len(signer.batches) == 1
            assert server.connections <= 1, "no more sessions than there is something to send for"
            signer.gate.set()
            await settled(world, 500)
            assert {o.kind for o in world.outcomes} == {OutcomeKind.DELIVERED}
            assert max(signer.batches) > 1
            assert pool.stats()["prepared_bytes"] == 0
            await pool.stop(1)

    run(go)


def test_large_messages_are_prepared_one_at_a_time_beyond_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Preparation, "has_room", lambda self: self.held_bytes < 250_000)

    async def go() -> None:
        signer = Scripted()
        async with HostileServer() as server:
            world = world_of(server, body_bytes=RAW + (b"x" * 70 + b"\r\n") * 1400)
            pool = make_pool(world, signer=signer, signing=DkimConfig(threads=1))
            await hand_over(pool, range(1, 21))
            await asyncio.to_thread(signer.entered.wait, 10)
            assert sum(job.form is not None for job in pool._jobs.values()) == 3
            signer.gate.set()
            await settled(world, 20)
            await pool.stop(1)

    run(go)


def test_a_stop_while_signing_gives_everything_back() -> None:
    async def go() -> None:
        signer = Scripted()
        async with HostileServer() as server:
            world = world_of(server, body_bytes=RAW)
            pool = make_pool(world, signer=signer, signing=DkimConfig())
            await hand_over(pool, range(1, 101))
            await asyncio.to_thread(signer.entered.wait, 10)
            await pool.stop(1)
            assert len(world.outcomes) == 100
            assert {o.kind for o in world.outcomes} == {OutcomeKind.RETURNED}
            signer.gate.set()
            await asyncio.sleep(0.05)
            assert len(world.outcomes) == 100
            assert server.bodies == []
            assert pool.stats()["prepared_bytes"] == 0

    run(go)


def test_what_was_held_too_long_for_a_signature_is_given_back_and_not_sent() -> None:
    async def go() -> None:
        signer = Scripted()
        async with HostileServer() as server:
            world = world_of(server, body_bytes=RAW)
            pool = make_pool(world, signer=signer, signing=DkimConfig(), hold_s=0.05)
            await hand_over(pool, [1, 2, 3])
            await settled(world, 3)
            assert {o.kind for o in world.outcomes} == {OutcomeKind.RETURNED}
            signer.gate.set()
            await hand_over(pool, [4], batch=2)
            await settled(world, 4)
            assert server.committed == ["u4@example.net"]
            await pool.stop(1)

    run(go)


def test_a_new_epoch_while_signing_sends_nothing_of_the_old_one() -> None:
    async def go() -> None:
        signer = Scripted()
        async with HostileServer() as server:
            world = world_of(server, body_bytes=RAW)
            pool = make_pool(world, signer=signer, signing=DkimConfig())
            await hand_over(pool, [1, 2, 3])
            await asyncio.to_thread(signer.entered.wait, 10)
            await pool.resume(2)
            await hand_over(pool, [3, 4], batch=1, epoch=2)
            signer.gate.set()
            await settled(world, 2)
            assert sorted(server.committed) == ["u3@example.net", "u4@example.net"]
            assert all(body.startswith(b"DKIM-Signature: x\r\n") for body in server.bodies)
            await pool.stop(1)

    run(go)


def test_a_retry_after_a_lost_session_sends_the_same_bytes(tmp_path: Path) -> None:
    async def go() -> None:
        keys = Keys(tmp_path)
        async with HostileServer(Fault("mail", "close"), Fault("dot", "close")) as server:
            world = world_of(server, body_bytes=RAW)
            pool = make_pool(world, Profile(max_connections=1), signer=keys.signer, signing=keys.config)
            await hand_over(pool, [1])
            await settled(world, 1)
            assert world.of(1).possible_duplicate
            await hand_over(pool, [1], batch=2)
            await asyncio.sleep(0)
            while len(world.outcomes) < 2:
                await asyncio.sleep(0.01)
            assert len(server.bodies) == 2
            assert server.bodies[0] == server.bodies[1]
            await pool.stop(1)

    run(go)

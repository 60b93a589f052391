"""A region, its spool, scheduler and pools in one process against a real sink: every message is accounted for."""

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from engine.config.schema import FleetConfig
from engine.region.awaiting import awaited
from engine.region.daily import daily_key
from engine.sink.process import SinkProcess
from engine.spool.audit import audit
from engine.values.message import Message
from engine.values.outcome import OutcomeKind
from engine.values.stream import Stream
from engine.values.submission import decode_receipt, encode_submission
from tests.support.region import fleet, start_region, until
from tests.support.sinks import accepting_sink

BODY = (
    b"From: a@example.com\r\nTo: b@example.org\r\nSubject: x\r\nMessage-ID: <%d@example.com>\r\n\r\nhello\r\n"
)


def messages(count: int, domain: str = "example.org", **fields: object) -> list[Message]:
    return [
        Message("a@example.com", (f"user{n}@{domain}",), BODY % n, Stream.MARKETING, **fields)  # type: ignore[arg-type]
        for n in range(count)
    ]


@pytest.fixture
def accepting(tmp_path: Path):
    with accepting_sink(tmp_path) as process:
        yield process


def test_everything_accepted_is_delivered_once(tmp_path: Path, accepting: SinkProcess) -> None:
    async def run() -> None:
        config = fleet(tmp_path, accepting.addresses["accept"][1])
        region, spool, node = await start_region(config)
        batch = [*messages(500), Message("a@example.com", ("bad address",), b"x")]
        receipt = decode_receipt(await region.accept(*encode_submission(batch, bytes(16))))
        assert [error.index for error in receipt.errors] == [500]
        assert sum(map(len, receipt.ids)) == 500
        again = decode_receipt(await region.accept(*encode_submission(batch, bytes(16))))
        assert again.repeated
        assert again.ids[:500] == receipt.ids[:500]
        await until(lambda: spool.counts()["queued"] == 0)
        assert spool.counts()["delivered"] == 500
        region.check()
        await node.stop()
        await region.stop()
        spool.close()

    asyncio.run(run())
    report = audit(tmp_path / "spool" / "eu")
    assert report.is_clean, report.problems
    per_recipient = Counter(accepting.log().recipients())
    assert len(per_recipient) == 500
    assert set(per_recipient.values()) == {1}


def run_to_the_end(config: FleetConfig, batch: list[Message], *, seconds: float = 40.0) -> dict[str, int]:
    """Send a batch through a fresh region; returns its counts when nothing is queued any more."""

    async def run() -> dict[str, int]:
        region, spool, node = await start_region(config)
        receipt = decode_receipt(await region.accept(*encode_submission(batch, bytes(16))))
        assert not receipt.errors
        await until(lambda: spool.counts()["queued"] == 0, seconds)
        region.check()
        await node.stop()
        await region.stop()
        counts = spool.counts()
        spool.close()
        return counts

    return asyncio.run(run())


def personality(tmp_path: Path, text: str) -> SinkProcess:
    config = tmp_path / "personalities.yaml"
    config.write_text(f"personalities:\n  it: {text}\n")
    return SinkProcess(config, tmp_path / "sink.log")


def test_a_greylisted_message_is_tried_again_and_delivered(tmp_path: Path) -> None:
    text = '{greylist: {after: 1s, reply: "450 4.2.0 Greylisted, please try again later"}}'
    with personality(tmp_path, text) as server:
        counts = run_to_the_end(fleet(tmp_path, server.addresses["it"][1]), messages(50))
        assert counts["delivered"] == 50
        assert set(Counter(server.log().recipients()).values()) == {1}


def test_unknown_users_bounce_and_the_others_are_delivered(tmp_path: Path) -> None:
    text = '{unknown: {pattern: "user[0-9]@", reply: "550 5.1.1 no such user"}}'
    with personality(tmp_path, text) as server:
        counts = run_to_the_end(fleet(tmp_path, server.addresses["it"][1]), messages(60))
    assert (counts["delivered"], counts["bounced"]) == (50, 10)


def test_a_repeated_item_does_not_lend_its_domain_to_the_next(tmp_path: Path) -> None:
    """The items of a batch that were accepted before have no due keys: the others must keep their own routes."""
    config = tmp_path / "personalities.yaml"
    config.write_text("personalities:\n  one: {}\n  two: {}\n")
    with SinkProcess(config, tmp_path / "sink.log") as server:
        ports = {name: address[1] for name, address in server.addresses.items()}
        routes = [
            {"domains": ["one.example"], "hosts": [f"127.0.0.1:{ports['one']}"]},
            {"domains": ["two.example"], "hosts": [f"127.0.0.1:{ports['two']}"]},
        ]
        fleet_config = fleet(tmp_path, 25, routes=routes)

        async def run() -> None:
            region, spool, node = await start_region(fleet_config)
            keyed = messages(1, "one.example", key="only once")
            await region.accept(*encode_submission(keyed, bytes(16)))
            await region.accept(*encode_submission([*keyed, *messages(1, "two.example")], b"x" * 16))
            await until(lambda: spool.counts()["queued"] == 0)
            assert spool.counts()["delivered"] == 2
            queues = [region.parts.windows.get(number) for number in (1, 2)]
            assert [queue and queue.domain for queue in queues] == ["one.example", "two.example"]
            await node.stop()
            await region.stop()
            spool.close()

        asyncio.run(run())
        by_personality = Counter((row.personality, row.recipient) for row in server.log().acceptances)
    assert by_personality == {("one", "user0@one.example"): 1, ("two", "user0@two.example"): 1}


def test_no_window_at_the_sink_holds_more_than_the_rate(tmp_path: Path) -> None:
    """Promise 5, by the sink's own timestamps: at most 40 a second from one source, over any second."""
    with personality(tmp_path, "{}") as server:
        config = fleet(
            tmp_path,
            server.addresses["it"][1],
            providers={"default": {"rate": "40/1s", "max_connections": 3}},
        )
        counts = run_to_the_end(config, messages(300))
        assert counts["delivered"] == 300
        log = server.log()
        clients = {client for client, _ in log.clients()}
        assert len(clients) == 2
        for client in clients:
            assert log.max_in_window(0.99, client=client) <= 40
            assert log.max_connections(client=client) <= 3


def test_no_window_at_the_sink_holds_more_than_the_rate_of_all_sources(tmp_path: Path) -> None:
    """At most 40 a second and 3 connections from both sources together, by the sink's own timestamps."""
    with personality(tmp_path, "{}") as server:
        config = fleet(
            tmp_path,
            server.addresses["it"][1],
            providers={"default": {"rate": "unlimited", "rate_total": "40/1s", "max_connections_total": 3}},
        )
        counts = run_to_the_end(config, messages(200))
        assert counts["delivered"] == 200
        log = server.log()
        assert len({client for client, _ in log.clients()}) == 2
        # a sink that stood still for half a second takes what came meanwhile at once; two sources alone would give 80
        assert log.max_in_window(0.99) <= 60
        assert log.max_connections() <= 3


def test_a_daily_cap_of_all_sources_holds_over_a_restart(tmp_path: Path) -> None:
    with personality(tmp_path, "{}") as server:
        config = fleet(
            tmp_path,
            server.addresses["it"][1],
            providers={"default": {"rate": "unlimited", "daily_cap_total": 30}},
        )

        async def run() -> None:
            region, spool, node = await start_region(config)
            await region.accept(*encode_submission(messages(100), bytes(16)))
            await until(lambda: spool.counts()["delivered"] == 30)
            await node.stop()
            await region.stop()
            spool.close()
            region, spool, node = await start_region(config)
            await until(lambda: "" in region.parts.sites.granted())
            await asyncio.sleep(0.5)
            assert spool.counts()["delivered"] == 30
            assert set(region.parts.sites.granted()[""].values()) == {30}
            await node.stop()
            await region.stop()
            spool.close()

        asyncio.run(run())
        assert len(server.log().acceptances) == 30


@pytest.mark.parametrize("days_back", [0, 1])
def test_daily_cap_holds_over_a_restart(tmp_path: Path, days_back: int) -> None:
    """Two sources with a cap of 20 a day: 40 messages go, the others wait, also after the region starts again, and
    if the clock was set back meanwhile."""
    with personality(tmp_path, "{}") as server:
        config = fleet(
            tmp_path,
            server.addresses["it"][1],
            providers={"default": {"rate": "unlimited", "daily_cap": 20}},
        )

        async def run() -> None:
            region, spool, node = await start_region(config)
            await region.accept(*encode_submission(messages(100), bytes(16)))
            await until(lambda: spool.counts()["delivered"] == 40)
            await node.stop()
            await region.stop()
            for source in ("eu-1", "eu-2"):
                key = daily_key(source, region.parts.sites.site(0).name)
                stored = int.from_bytes(spool.get_state(key) or b"", "big")
                assert stored & (1 << 40) - 1 == 20
                await asyncio.wrap_future(
                    spool.put_state(key, (stored + (days_back << 40)).to_bytes(8, "big"))
                )
            spool.close()
            region, spool, node = await start_region(config)
            await region.accept(*encode_submission(messages(5), b"x" * 16))
            await asyncio.sleep(1.5)
            assert spool.counts()["delivered"] == 40
            assert spool.counts()["queued"] == 65
            await node.stop()
            await region.stop()
            spool.close()

        asyncio.run(run())
    report = audit(tmp_path / "spool" / "eu")
    assert report.is_clean, report.problems


def test_transactional_mail_is_not_buried_behind_a_bulk_backlog(tmp_path: Path) -> None:
    with personality(tmp_path, "{}") as server:
        config = fleet(
            tmp_path,
            server.addresses["it"][1],
            providers={"default": {"rate": "100/1s"}},
            limits={"ready_window": 100, "ready_total": 1000, "pool_credits": 60, "batch": 20},
        )

        async def run() -> None:
            region, spool, node = await start_region(config)
            await region.accept(*encode_submission(messages(1000), bytes(16)))
            await until(lambda: spool.counts()["delivered"] > 50)
            urgent = Message("a@example.com", ("urgent@example.org",), BODY % 1, Stream.TRANSACTIONAL)
            receipt = decode_receipt(await region.accept(*encode_submission([urgent], b"u" * 16)))
            await until(lambda: (region.status(receipt.ids[0][0]) or {})["state"] == "delivered")
            assert spool.counts()["queued"] > 300
            await node.stop()
            await region.stop()
            spool.close()

        asyncio.run(run())


def test_what_expires_while_it_waits_carries_the_last_answer_it_had(tmp_path: Path) -> None:
    """The sender is told why: the reply of the last attempt, with its host, not only that time ran out. The region is
    away while the message's next attempt was due."""
    text = '{greylist: {after: 1h, reply: "450 4.2.0 Greylisted, please try again later"}}'
    waits = {"first": "1s", "factor": 1, "max": "1s", "jitter": 0, "expire": "2s"}
    with personality(tmp_path, text) as server:
        config = fleet(
            tmp_path,
            server.addresses["it"][1],
            retry=dict.fromkeys(("transactional", "notification", "marketing"), waits),
        )

        async def run() -> list[list[object]]:
            region, spool, node = await start_region(config)
            receipt = decode_receipt(await region.accept(*encode_submission(messages(1), bytes(16))))
            id_ = receipt.ids[0][0]
            await until(lambda: (region.status(id_) or {})["attempts"] == 1)
            await node.stop()
            await region.stop()
            spool.close()
            await asyncio.sleep(2.1)
            region, spool, node = await start_region(config)
            await until(lambda: spool.counts()["expired"] == 1)
            found = [event for _, events in spool.read_outbox(100) for event in events]
            await node.stop()
            await region.stop()
            spool.close()
            return found

        events = asyncio.run(run())
    expired = [event for event in events if event[1] == int(OutcomeKind.EXPIRED)]
    assert len(expired) == 1
    assert expired[0][3:6] == [450, "4.2.0", "Greylisted, please try again later"]
    assert expired[0][6] == "127.0.0.1"
    assert expired[0][7] in (0, 1)


def test_no_connection_carries_more_messages_than_the_provider_takes(tmp_path: Path) -> None:
    """Promise 5, by the sink's own log: pipelined transactions behind the last allowed one would show here."""
    with personality(tmp_path, "{}") as server:
        config = fleet(
            tmp_path,
            server.addresses["it"][1],
            providers={"default": {"rate": "unlimited", "max_connections": 2, "messages_per_connection": 7}},
        )
        counts = run_to_the_end(config, messages(200))
        assert counts["delivered"] == 200
        log = server.log()
        assert log.max_messages_per_connection() == 7
        assert len(log.connections()) >= 200 // 7
        for client, _ in log.clients():
            assert log.max_connections(client=client) <= 2


def test_mail_that_no_source_may_carry_expires_in_its_time(tmp_path: Path, accepting: SinkProcess) -> None:
    """All sources of the stream are suspended: the messages are ready, in memory, and never go."""
    config = fleet(
        tmp_path, accepting.addresses["accept"][1], retry={"marketing": {"first": "500ms", "expire": "2s"}}
    )

    async def run() -> None:
        region, spool, node = await start_region(config)
        site = f"mx:127.0.0.1:{accepting.addresses['accept'][1]}"
        for source in ("eu-1", "eu-2"):
            until_ms = round(time.time() * 1000) + 3_600_000
            region.parts.enforcement.suspensions.order(source, site, until_ms, "a test")
        receipt = decode_receipt(await region.accept(*encode_submission(messages(20), bytes(16))))
        assert not receipt.errors
        await until(lambda: spool.counts()["queued"] == 0)
        assert spool.counts()["expired"] == 20
        region.check()
        await node.stop()
        await region.stop()
        spool.close()

    asyncio.run(run())
    assert audit(tmp_path / "spool" / "eu").is_clean
    assert not accepting.log().recipients()


@pytest.mark.parametrize("damage", [b"\xc1", b"\x9c\x09", b"\xcc"])
def test_one_damaged_record_holds_up_nobody(tmp_path: Path, accepting: SinkProcess, damage: bytes) -> None:
    """Not the pool, not the start of the region while it is marked as in flight, not the audit, which names it."""
    config = fleet(tmp_path, accepting.addresses["accept"][1])

    async def run() -> int:
        region, spool, node = await start_region(config)
        region.parts.dispatcher.paused = True
        receipt = decode_receipt(await region.accept(*encode_submission(messages(20), bytes(16))))
        bad = receipt.ids[7][0]

        def now() -> bytes:
            return round(time.time() * 1000).to_bytes(6, "big")

        def spoil(draft: Any) -> None:
            key = bad.to_bytes(8, "big")
            stored = draft.txn.get(key, db=draft.env.db["messages"])
            draft.txn.put(key, damage + stored[len(damage) :], db=draft.env.db["messages"])

        await awaited(spool._writer.submit(spoil))
        await awaited(spool.dispatch(1, b"".join(ids[0].to_bytes(8, "little") for ids in receipt.ids), {}))
        await region.stop()
        spool.close()

        region, spool, node = await start_region(config)
        await until(lambda: spool.counts()["delivered"] == 19)
        await until(lambda: spool.due_rows(b"", 10)[0][0][4:10] > now())
        region.check()
        status = spool.status(bad)
        assert status is not None
        assert status["state"] == "queued"
        assert "damaged" in status
        await node.stop()
        await region.stop()
        spool.close()
        return bad

    bad = asyncio.run(run())
    report = audit(tmp_path / "spool" / "eu")
    assert report.problem_count == 1
    assert report.problems[0].startswith(f"{bad:016x}: queued, but unreadable")
    assert len(accepting.log().recipients()) == 19

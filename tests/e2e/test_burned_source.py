"""A provider turns against one source: it leaves the rotation there at once, no recipient suffers, it comes back."""

import asyncio
import itertools
from pathlib import Path

import orjson
import pytest

from engine.config.schema import FleetConfig
from engine.region.outbox import EventLog
from engine.region.region import Region
from engine.reputation.allowance import decode_summary
from engine.sink.process import SinkProcess
from engine.spool.audit import audit
from engine.values.message import Message
from engine.values.stream import Stream
from engine.values.submission import decode_receipt, encode_submission
from tests.support.region import LocalNode, fleet, start_region, until
from tests.support.sinks import accepting_sink

BODY = b"From: a@example.com\r\nTo: b@example.org\r\nMessage-ID: <%d@example.com>\r\n\r\nhello\r\n"
S3140 = (
    "550 5.7.1 Unfortunately, messages from [127.0.0.11] weren't sent. Please contact your Internet service "
    "provider since part of their network is on our block list (S3140)."
)
BURNED, OTHER = "127.0.0.11", "127.0.0.12"
numbers = itertools.count()


def messages(count: int) -> list[Message]:
    return [
        Message("a@example.com", (f"user{n}@outlook.test",), BODY % n, Stream.MARKETING)
        for n in itertools.islice(numbers, count)
    ]


def sink(tmp_path: Path, lasts: str) -> SinkProcess:
    config = tmp_path / "personalities.yaml"
    config.write_text(
        "personalities:\n  outlook:\n    block:\n"
        f"      clients: ['{BURNED}']\n      after: 40\n      lasts: {lasts}\n      reply: \"{S3140}\"\n"
    )
    return SinkProcess(config, tmp_path / "sink.log")


def outlook_fleet(tmp_path: Path, port: int, **sections: object) -> FleetConfig:
    return fleet(
        tmp_path,
        port,
        routes=[{"domains": ["*"], "hosts": [f"127.0.0.1:{port}"], "provider": "outlook"}],
        tls={"exceptions": [{"provider": "outlook", "mode": "disabled", "reason": "loopback test"}]},
        **{
            "reputation": {
                "removed_stay": "1s",
                "removed_stay_max": "2s",
                "probation": {
                    "interval": "20ms",
                    "probes": 5,
                    "stay": "200ms",
                    "ramp": [0.5],
                    "step": "200ms",
                },
            },
            **sections,
        },
    )


async def submit(region: Region, count: int) -> None:
    key = next(numbers).to_bytes(16, "big")
    receipt = decode_receipt(await region.accept(*encode_submission(messages(count), key)))
    assert not receipt.errors


def state_of(node: LocalNode, source: str) -> str:
    return str(node.owners[source].reputation.standing("outlook").state)


def test_a_burned_source_leaves_at_once_and_comes_back(tmp_path: Path) -> None:
    late = {
        "marketing": {"first": "1h", "max": "1h"}
    }  # what is refused goes on at once, or the test does not end
    with sink(tmp_path, "1500ms") as server:
        config = outlook_fleet(tmp_path, server.addresses["outlook"][1], retry=late)

        async def run() -> dict[str, int]:
            region, spool, node = await start_region(config)
            await submit(region, 500)
            await until(lambda: spool.counts()["queued"] == 0)
            log = server.log()
            burned = [row for row in log.refusals if row.client == BURNED]
            # what was on the wire of its five sessions at that moment, and nothing more
            assert 1 <= len(burned) <= 15
            assert state_of(node, "eu-1") == "removed"
            assert state_of(node, "eu-2") == "active"
            assert len([1 for row in log.acceptances if row.client == BURNED]) == 40
            for _ in range(300):
                await submit(region, 20)
                await asyncio.sleep(0.05)
                if state_of(node, "eu-1") == "active":
                    break
            assert state_of(node, "eu-1") == "active"
            await until(lambda: spool.counts()["queued"] == 0)
            await submit(region, 200)
            await until(lambda: spool.counts()["queued"] == 0)
            region.check()
            events = EventLog(spool, tmp_path / "events", 1 << 20)
            events._directory.mkdir(exist_ok=True)
            while events.ship():
                pass
            await node.stop()
            await region.stop()
            counts = spool.counts()
            spool.close()
            return counts

        counts = asyncio.run(run())
        log = server.log()
    accepted = next(numbers)
    assert counts["bounced"] == counts["suppressed"] == counts["expired"] == 0
    assert counts["delivered"] == len(log.recipients()) < accepted
    assert set(log.recipients().values()) == {1}
    assert len([1 for row in log.acceptances if row.client == BURNED]) > 100
    report = audit(tmp_path / "spool" / "eu")
    assert report.is_clean, report.problems
    lines = [
        orjson.loads(line)
        for file in (tmp_path / "events").glob("*.jsonl")
        for line in file.read_bytes().splitlines()
    ]
    path = [(e["before"], e["state"]) for e in lines if e["event"] == "reputation" and e["source"] == "eu-1"]
    assert path[0] == ("active", "removed")
    assert path[-1] == ("probation", "active")
    assert "outlook-block-list" in next(e["reason"] for e in lines if e["event"] == "reputation")


def test_a_removal_survives_a_restart_of_the_region(tmp_path: Path) -> None:
    with sink(tmp_path, "1h") as server:
        config = outlook_fleet(
            tmp_path,
            server.addresses["outlook"][1],
            reputation={"removed_stay": "1h"},
        )

        async def run() -> None:
            region, spool, node = await start_region(config)
            await submit(region, 300)
            await until(lambda: spool.counts()["queued"] == 0)
            before = len(server.log().refusals)
            for _ in range(2):
                await node.stop()
                await region.stop()
                spool.close()
                region, spool, node = await start_region(config)
                await submit(region, 100)
                await until(lambda: spool.counts()["queued"] == 0)  # noqa: B023
            assert len(server.log().refusals) == before
            await until(lambda: "eu-1" in node.owners)
            assert state_of(node, "eu-1") == "removed"
            (row,) = [r for r in region.snapshot()["allowances"] if r["source"] == "eu-1"]  # type: ignore[attr-defined]
            assert (row["site"], row["state"], row["weight"]) == ("outlook", "removed", 0)
            await node.stop()
            await region.stop()
            spool.close()

        asyncio.run(run())


@pytest.mark.parametrize(("floor", "moves"), [("hold", False), ("trickle", True)])
def test_the_last_source_of_a_stream_never_leaves_silently(
    tmp_path: Path, floor: str, moves: bool, caplog: pytest.LogCaptureFixture
) -> None:
    # held mail must wait beyond the block, and the block must outlast the removal, also on a busy machine
    with sink(tmp_path, "3s" if moves else "60s") as server:
        config = outlook_fleet(
            tmp_path,
            server.addresses["outlook"][1],
            reputation={"removed_stay": "1h", "floor": floor, "probation": {"interval": "50ms"}},
            sources=[
                {
                    "name": "eu-1",
                    "region": "eu",
                    "ip": BURNED,
                    "ehlo": "mta1.example.com",
                    "streams": ["marketing"],
                }
            ],
        )

        async def run() -> None:
            region, spool, node = await start_region(config)
            await submit(region, 60)
            await until(lambda: "has no source left at outlook" in caplog.text)
            if moves:
                await until(lambda: spool.counts()["delivered"] > 40)
            else:
                await asyncio.sleep(3.0)
            assert (spool.counts()["delivered"] > 40) == moves
            assert moves or spool.counts()["queued"] == 20
            await node.stop()
            await region.stop()
            spool.close()

        asyncio.run(run())


def test_a_source_in_warm_up_sends_its_stage_and_the_rest_goes_over_the_others(tmp_path: Path) -> None:
    with sink(tmp_path, "1s") as server:
        config = outlook_fleet(tmp_path, server.addresses["outlook"][1])
        data = config.model_dump(mode="json")
        data["warmup"]["tables"] = {"tiny": {"stages": [{"day": 12, "hour": 12}, 24]}}
        data["warmup"]["hourly_share"] = 1.0
        data["sources"][0]["warmup"] = "tiny"
        config = FleetConfig.model_validate(data)

        async def run() -> None:
            region, spool, node = await start_region(config)
            await submit(region, 300)
            await until(lambda: spool.counts()["queued"] == 0)
            # evenly spread: at most one at once, whatever the backlog
            assert len([1 for row in server.log().acceptances if row.client == BURNED]) <= 1
            await until(lambda: "eu-1" in node.owners)
            assert node.owners["eu-1"].warmup.cap(0, "outlook") is not None
            await node.stop()
            await region.stop()
            spool.close()

        asyncio.run(run())
    assert len(server.log().recipients()) == 300


def test_what_an_owner_that_was_away_has_not_heard_is_told_again(tmp_path: Path) -> None:
    with accepting_sink(tmp_path) as server:
        config = fleet(tmp_path, server.addresses["accept"][1])

        async def run() -> int:
            region, spool, node = await start_region(config)
            hear, told, is_away = node.observe, 0, True

            async def observe(source: str, summary: bytes) -> bytes:
                nonlocal told
                if is_away:
                    raise ConnectionError("no such actor")
                told += sum(row.delivered for row in decode_summary(summary).rows)
                return await hear(source, summary)

            node.observe = observe  # type: ignore[method-assign]
            await region.accept(*encode_submission(messages(60), bytes(16)))
            await until(lambda: spool.counts()["delivered"] == 60)
            await asyncio.sleep(0.6)
            is_away = False
            await until(lambda: told >= 60)
            region.check()
            await node.stop()
            await region.stop()
            spool.close()
            return told

        assert asyncio.run(run()) == 60


@pytest.mark.parametrize(("status", "state"), [("4.2.0", "active"), ("4.7.1", "degraded")])
def test_greylisting_says_nothing_about_the_source(tmp_path: Path, status: str, state: str) -> None:
    """Every first attempt is deferred, for a reason that lies with the recipient, or with us."""
    personalities = tmp_path / "personalities.yaml"
    reply = f"450 {status} Try again later"
    personalities.write_text(f'personalities:\n  it: {{greylist: {{after: 1s, reply: "{reply}"}}}}\n')
    with SinkProcess(personalities, tmp_path / "sink.log") as server:
        config = fleet(tmp_path, server.addresses["it"][1])

        async def run() -> set[str]:
            region, spool, node = await start_region(config)
            await region.accept(*encode_submission(messages(400), bytes(16)))
            deferred = asyncio.get_running_loop().time() + 0.9  # first attempts only, and a report of them
            await until(lambda: asyncio.get_running_loop().time() > deferred)
            site = region.parts.sites.site(0).name
            states = {str(owner.reputation.standing(site).state) for owner in node.owners.values()}
            region.check()
            await node.stop()
            await region.stop()
            spool.close()
            return states

        assert asyncio.run(run()) == {state}

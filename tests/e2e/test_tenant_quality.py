"""A tenant with a bad list beside a good one: its mail leaves the others' source, by the sink's own log."""

import asyncio
import itertools
from pathlib import Path

from engine.region.region import Region
from engine.sink.process import SinkProcess
from engine.spool.audit import audit
from engine.values.message import Message
from engine.values.stream import Stream
from engine.values.submission import decode_receipt, encode_submission
from tests.support.region import fleet, start_region, until

BODY = b"From: a@example.com\r\nTo: b@example.org\r\nMessage-ID: <%d@example.com>\r\n\r\nhello\r\n"
SHARED, APART = "127.0.0.11", "127.0.0.12"
numbers = itertools.count(1)


async def submit(region: Region, tenant: str, word: str, count: int) -> None:
    batch = [
        Message(
            "a@example.com",
            (f"{'dead' if tenant == 'bad' and n % 4 == 0 else f'{tenant}-{word}'}{n}@example.org",),
            BODY % n,
            Stream.MARKETING,
            tenant=tenant,
        )
        for n in itertools.islice(numbers, count)
    ]
    key = next(numbers).to_bytes(16, "big")
    receipt = decode_receipt(await region.accept(*encode_submission(batch, key)))
    assert not receipt.errors


def class_of(region: Region, tenant: str) -> str:
    rows: list[dict[str, str]] = region.snapshot()["tenants"]  # type: ignore[assignment]
    return next((row["quality"] for row in rows if row["tenant"] == tenant), "")


def test_a_bad_list_leaves_the_source_of_the_others(tmp_path: Path) -> None:
    config_file = tmp_path / "personalities.yaml"
    config_file.write_text(
        'personalities:\n  it: {unknown: {pattern: "dead[0-9]+@", reply: "550 5.1.1 no such user"}}\n'
    )
    with SinkProcess(config_file, tmp_path / "sink.log") as server:
        port = server.addresses["it"][1]
        sources = [
            {
                "name": f"eu-{n}",
                "region": "eu",
                "ip": f"127.0.0.{10 + n}",
                "ehlo": f"mta{n}.example.com",
                "streams": ["transactional", "notification", "marketing"],
                **({"quality": ["poor"]} if n == 2 else {}),
            }
            for n in (1, 2)
        ]
        # its source must not leave the rotation for what this test does to it
        lenient = {"metrics": {"bounces": {"good": 0.9, "bad": 1.0, "points": 1}}}
        config = fleet(tmp_path, port, sources=sources, reputation=lenient)

        async def run() -> None:
            region, spool, node = await start_region(config)
            await submit(region, "bad", "first", 200)
            await submit(region, "fine", "first", 200)
            await until(lambda: spool.counts()["queued"] == 0)
            await until(lambda: class_of(region, "bad") == "poor")
            await until(lambda: class_of(region, "fine") != "")
            assert class_of(region, "fine") == "new"
            await submit(region, "bad", "second", 100)
            await submit(region, "fine", "second", 100)
            await until(lambda: spool.counts()["queued"] == 0)
            await node.stop()
            await region.stop()
            spool.close()
            region, spool, node = await start_region(config)
            await submit(region, "bad", "third", 100)
            await until(lambda: spool.counts()["queued"] == 0)
            assert region.move_tenant("bad", "good")
            await submit(region, "bad", "fourth", 100)
            await until(lambda: spool.counts()["queued"] == 0)
            await node.stop()
            await region.stop()
            spool.close()

        asyncio.run(run())
        log = server.log()
    used: dict[str, set[str]] = {}
    for row in log.acceptances:
        used.setdefault(row.recipient.partition("@")[0].rstrip("0123456789"), set()).add(row.client)
    assert used.pop("bad-first") <= {
        SHARED,
        APART,
    }  # it may have been judged before its last message went out
    assert used == {
        "fine-first": {SHARED},
        "bad-second": {APART},
        "fine-second": {SHARED},
        "bad-third": {APART},
        "bad-fourth": {SHARED},
    }
    dead = [row.client for row in log.refusals]
    assert dead[0] == SHARED
    assert set(dead[50:100]) == {APART}
    report = audit(tmp_path / "spool" / "eu")
    assert report.is_clean, report.problems

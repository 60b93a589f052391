"""A site bears fewer connections than are allowed: the region uses fewer, and more again when it bears them."""

import asyncio
import itertools
from pathlib import Path

import pytest
import yaml

from engine.sink.process import SinkProcess
from engine.values.message import Message
from engine.values.stream import Stream
from engine.values.submission import encode_submission
from tests.support.region import fleet, start_region, until

BODY = b"From: a@example.com\r\nTo: b@example.org\r\nMessage-ID: <%d@example.com>\r\n\r\nhello\r\n"
BORNE, ALLOWED = 2, 6
SOURCES = [
    {"name": "eu-1", "region": "eu", "ip": "127.0.0.11", "ehlo": "mta1.example.com", "streams": ["marketing"]}
]


@pytest.mark.parametrize(
    "crowded",
    [{"delay": "250ms"}, {"delay": "100ms", "reply": "451 4.3.2 Too busy, come back later"}],
    ids=["slow", "defers"],
)
def test_connections_follow_what_the_site_bears(tmp_path: Path, crowded: dict[str, str]) -> None:
    personality = {
        "delay": {"final": "10ms"},
        "crowded": {"connections": BORNE, "times": 80, **crowded},
    }
    file = tmp_path / "personalities.yaml"
    file.write_text(yaml.safe_dump({"personalities": {"it": personality}}))
    with SinkProcess(file, tmp_path / "sink.log") as server:
        config = fleet(
            tmp_path,
            server.addresses["it"][1],
            sources=SOURCES,
            providers={"default": {"rate": "unlimited", "max_connections": ALLOWED}},
            # the deferrals must not take the source out of the rotation
            reputation={"windows": [{"half_life": "10m", "minimum": 1_000_000}]},
            shaping={
                "adaptive": {
                    "every": "200ms",
                    "answers": 5,
                    "least": "150ms",
                    "increase_every": "200ms",
                    "increase_every_max": "400ms",
                }
            },
        )

        async def run() -> tuple[list[int], int]:
            region, spool, node = await start_region(config)
            numbers = itertools.count()
            narrow: list[int] = []

            async def feed() -> None:
                while True:
                    if spool.counts()["queued"] < 200:
                        batch = [
                            Message("a@example.com", (f"u{n}@x.test",), BODY % n, Stream.MARKETING)
                            for n in itertools.islice(numbers, 200)
                        ]
                        await region.accept(*encode_submission(batch, next(numbers).to_bytes(16, "big")))
                    await asyncio.sleep(0.02)

            def adapted() -> int:
                rows = [row for row in region.snapshot()["allowances"] if row["source"] == "eu-1"]  # type: ignore[attr-defined]
                found = max((row["adapted"] for row in rows), default=0)
                if found:
                    narrow.append(found)
                return found

            feeding = asyncio.create_task(feed())
            await until(lambda: 0 < adapted() <= BORNE + 1)
            listed = [row for row in node.owners["eu-1"].snapshot(0)["shaping"] if row["action"] == "adapt"]  # type: ignore[attr-defined]
            await until(
                lambda: adapted() == 0
            )  # it has answered 80 times that it is crowded, and is not any more
            feeding.cancel()
            await until(lambda: spool.counts()["queued"] == 0)
            region.check()
            await node.stop()
            await region.stop()
            spool.close()
            assert listed[0]["reply"]
            return narrow, spool.counts()["delivered"]

        narrow, delivered = asyncio.run(run())
        log = server.log()
    assert max(narrow) < ALLOWED
    assert BORNE < log.max_connections(client="127.0.0.11") <= ALLOWED
    assert delivered == len(log.recipients())
    assert set(log.recipients().values()) == {1}

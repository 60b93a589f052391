"""A region, its spool, scheduler and pools in one process against a real sink: every message is accounted for."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from engine.sink.process import SinkProcess
from engine.spool.audit import audit
from engine.values.message import Message
from engine.values.stream import Stream
from engine.values.submission import decode_receipt, encode_submission
from tests.support.region import fleet, start_region, until

BODY = (
    b"From: a@example.com\r\nTo: b@example.org\r\nSubject: x\r\nMessage-ID: <%d@example.com>\r\n\r\nhello\r\n"
)


def messages(count: int, domain: str = "example.org", **fields: object) -> list[Message]:
    return [
        Message("a@example.com", (f"user{n}@{domain}",), BODY % n, Stream.MARKETING, **fields)  # type: ignore[arg-type]
        for n in range(count)
    ]


def sink(tmp_path: Path, text: str) -> SinkProcess:
    config = tmp_path / "sink.yaml"
    config.write_text(text)
    return SinkProcess(config, tmp_path / "sink.log")


ACCEPT = "personalities:\n  accept: {port: 0}\n"


@pytest.fixture
def accepting(tmp_path: Path):
    with SinkProcess(None, tmp_path / "sink.log", only=["accept"]) as process:
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

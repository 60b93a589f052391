"""A caller that gives up waiting, at whatever moment: what is on disk then is sent all the same."""

import asyncio
from dataclasses import asdict
from pathlib import Path

import msgpack

from engine.sink.process import SinkProcess
from engine.spool.audit import audit
from engine.values.message import Message
from engine.values.stream import Stream
from engine.values.submission import encode_submission
from tests.support.region import fleet, start_region, until
from tests.support.sinks import accepting_sink
from tests.support.spools import CAMPAIGN

BODY = b"From: a@example.com\r\nTo: b@example.org\r\nMessage-ID: <%d@example.com>\r\n\r\nhello\r\n"
CALLS = 40
TEMPLATE = {"header_from": "News <news@example.com>", "subject": "Hello {{ name }}", "text": "x", "html": ""}


async def leave_after(turns: int, call: asyncio.Task[bytes]) -> None:
    """Cancel the call when the loop has turned so often, each turn as long as a small part of a commit."""
    for _ in range(turns):
        await asyncio.sleep(0.0005)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)


def test_what_was_accepted_is_sent_though_the_caller_has_left(tmp_path: Path) -> None:
    async def run(sink: SinkProcess) -> dict[str, int]:
        region, spool, node = await start_region(fleet(tmp_path, sink.addresses["accept"][1]))
        record = {**asdict(CAMPAIGN), "template": TEMPLATE}
        campaign = await region.put_campaign(msgpack.packb(record))
        loop = asyncio.get_running_loop()
        for n in range(CALLS):
            batch = [Message("a@example.com", (f"u{n}@x.test",), BODY % n, Stream.MARKETING)]
            call = loop.create_task(region.accept(*encode_submission(batch, n.to_bytes(16, "big"))))
            await leave_after(n % 8, call)
            part = (campaign, n, n.to_bytes(16, "big"), ("name",), [f"c{n}@x.test"], [("Ada",)])
            await leave_after(n % 8, loop.create_task(region.accept_chunk(msgpack.packb(part))))
        await until(lambda: spool.counts()["queued"] == 0)
        region.check()
        await node.stop()
        await region.stop()
        counts = spool.counts()
        spool.close()
        return counts

    with accepting_sink(tmp_path) as sink:
        counts = asyncio.run(run(sink))
        recipients = sink.log().recipients()
    assert audit(tmp_path / "spool" / "eu").is_clean
    assert 0 < counts["delivered"] == len(recipients)
    assert set(recipients.values()) == {1}

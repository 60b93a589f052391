"""A sender who asks for it is told of a failure, once, by mail that goes the same way as any other."""

import asyncio
from pathlib import Path
from typing import Any

from engine.bounces.report import ReportKind, read_report
from engine.spool.audit import audit
from engine.values.message import Message
from engine.values.options import Notify, Options
from engine.values.stream import Stream
from engine.values.submission import encode_submission
from tests.e2e.test_region_in_process import BODY, personality
from tests.support.host import Host
from tests.support.region import fleet, start_region, until

ASKING = (Options(notify=Notify.FAILURE, ret="FULL", envid="order-17"),)


def messages() -> list[Message]:
    sender, stream = "shop@sender.example", Stream.MARKETING
    return [
        Message(sender, ("user1@example.org",), BODY % 1, stream, options=ASKING),
        Message(sender, ("user2@example.org",), BODY % 2, stream),
        Message("", ("user3@example.org",), BODY % 3, stream, options=ASKING),
        Message(sender, ("other@example.org",), BODY % 4, stream, options=ASKING),
    ]


def test_a_failure_is_told_once_to_who_asked(tmp_path: Path, host: Host) -> None:
    text = '{unknown: {pattern: "user[0-9]@", reply: "550 5.1.1 no such user"}}'
    with personality(tmp_path, text) as server:
        routes: list[dict[str, Any]] = [
            {"domains": ["sender.example"], "hosts": [f"127.0.0.1:{host.port}"]},
            {"domains": ["*"], "hosts": [f"127.0.0.1:{server.addresses['it'][1]}"]},
        ]
        config = fleet(tmp_path, 25, routes=routes)

        async def run() -> None:
            region, spool, node = await start_region(config)
            await region.accept(*encode_submission(messages(), bytes(16)))
            await until(lambda: len(host.envelopes) == 1 and spool.counts()["queued"] == 0)
            assert spool.notices(10) == []
            region.check()
            await node.stop()
            await region.stop()
            spool.close()

        asyncio.run(run())
    ((recipient, sender, data),) = host.envelopes
    assert (recipient, sender) == ("shop@sender.example", "")
    report = read_report(data, sender="")
    assert report.kind is ReportKind.FAILED
    assert report.failures[0].addresses == ("user1@example.org",)
    assert b"Original-Envelope-Id: order-17" in data
    found = audit(tmp_path / "spool" / "eu")
    assert found.is_clean, found.problems
    assert (found.counts["delivered"], found.counts["bounced"]) == (2, 3)


def test_a_crash_before_the_row_is_dropped_makes_no_second_one(tmp_path: Path, host: Host) -> None:
    text = '{unknown: {pattern: "user[0-9]@", reply: "550 5.1.1 no such user"}}'
    with personality(tmp_path, text) as server:
        routes: list[dict[str, Any]] = [
            {"domains": ["sender.example"], "hosts": [f"127.0.0.1:{host.port}"]},
            {"domains": ["*"], "hosts": [f"127.0.0.1:{server.addresses['it'][1]}"]},
        ]
        config = fleet(tmp_path, 25, routes=routes)

        async def run(*, first: bool) -> None:
            region, spool, node = await start_region(config)
            if first:
                done = spool.notice_done
                spool.notice_done = lambda key: spool.put_state("lost", key)  # type: ignore[method-assign]
                await region.accept(*encode_submission(messages(), bytes(16)))
                await until(lambda: len(host.envelopes) == 1)
                assert len(spool.notices(10)) == 1
                assert done is not None
            await until(lambda: spool.counts()["queued"] == 0)
            if not first:
                await until(lambda: not spool.notices(10))
                assert spool.counts()["queued"] == 0
            await node.stop()
            await region.stop()
            spool.close()

        asyncio.run(run(first=True))
        asyncio.run(run(first=False))
    assert len(host.envelopes) == 1

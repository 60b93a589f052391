"""A spool queue whose name is damaged: its mail waits, and everything about other mail goes on."""

import asyncio
from pathlib import Path

from engine.spool.audit import audit
from engine.values.clock import SteadyClock
from engine.values.outcome import Outcome, OutcomeKind, Scope
from engine.values.reply import Reply
from tests.support.region import fleet, start_region, until
from tests.support.sinks import accepting_sink
from tests.support.spools import accept, batch, id_of, open_spool


def test_a_damaged_name_holds_up_no_report_no_count_and_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "spool" / "eu"
    path.mkdir(parents=True)
    now_ms = SteadyClock().wall_ms()
    spool = open_spool(path)
    lost = accept(spool, batch(recipients=3, domain="lost.example", due_ms=now_ms))
    other = accept(spool, batch(recipients=2, domain="other.example", due_ms=now_ms + 3_600_000))
    accept(spool, batch(domain="third.example", due_ms=now_ms))
    with spool._env.write() as txn:
        txn.put((1).to_bytes(4, "big"), b"damaged", db=spool._env.db["queues"])
    spool.close()

    async def run(port: int) -> None:
        region, spool, node = await start_region(fleet(tmp_path, port))
        await until(lambda: spool.counts()["delivered"] == 1)
        await region.parts.depth.walk()
        waiting = sum(
            p.value for p in region.parts.depth.points() if p.metric == "sendfleet.messages.waiting"
        )
        assert waiting == 5
        # a pool that outlived a restart tells of what it had
        reports = [
            Outcome(id_of(key), kind, Scope.RECIPIENT, Reply(code, "", "said so"), 0, "mx", now_ms)
            for key, kind, code in (
                (lost[0], OutcomeKind.DELIVERED, 250),
                (lost[1], OutcomeKind.DEFERRED, 450),
                (other[0], OutcomeKind.DELIVERED, 250),
            )
        ]
        await region.parts.outcomes.settle_outcomes(reports, 0)
        assert spool.counts()["delivered"] == 3
        trace = await region.trace(id_of(lost[2]), "", 0, "")
        assert trace is not None
        assert "name of queue 1 is damaged" in str(trace["route"])
        region.check()
        await node.stop()
        await region.stop()
        spool.close()

    with accepting_sink(tmp_path) as server:
        asyncio.run(run(server.addresses["accept"][1]))
    report = audit(path)
    assert report.counts["queued"] == 3
    assert all("the name of its queue is damaged" in problem for problem in report.problems)

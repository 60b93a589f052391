"""The counters that a region shows while it runs are those of its disk: when it is stopped, and when it is killed."""

import asyncio
import json
import multiprocessing
import time
from pathlib import Path

import yaml

from engine.sink.process import SinkProcess
from engine.spool.audit import audit
from engine.spool.store import Spool
from engine.values.clock import SteadyClock
from engine.values.message import Message
from engine.values.stream import Stream
from engine.values.submission import decode_receipt, encode_submission
from engine.values.suppression import Reason, Suppression, encode_rows
from tests.support.region import fleet, start_region, until

BODY = b"From: a@example.com\r\nTo: b@example.org\r\nSubject: x\r\n\r\nhello\r\n"
FINAL = ("delivered", "bounced", "expired", "suppressed", "cancelled")
PATIENCE_S = 60.0


def sink(folder: Path) -> SinkProcess:
    """Knows no users 0 to 9, and puts off everybody else's first attempt in the domain `slow`."""
    unknown = {"pattern": "user[0-9]@", "reply": "550 5.1.1 no such user"}
    slow = {"after": "1s", "reply": "450 4.2.0 Greylisted, please try again later"}
    personalities = {"it": {"unknown": unknown}, "slow": {"greylist": slow}}
    config = folder / "sink.yaml"
    config.write_text(yaml.safe_dump({"personalities": personalities}))
    return SinkProcess(config, folder / "sink.log")


def routes(server: SinkProcess) -> list[dict[str, object]]:
    ports = {name: address[1] for name, address in server.addresses.items()}
    return [
        {"domains": ["slow.example"], "hosts": [f"127.0.0.1:{ports['slow']}"]},
        {"domains": ["*"], "hosts": [f"127.0.0.1:{ports['it']}"]},
    ]


def messages(count: int, domain: str = "example.org", send_at_ms: int = 0) -> list[Message]:
    return [
        Message("a@example.com", (f"user{n}@{domain}",), BODY, Stream.MARKETING, send_at_ms=send_at_ms)
        for n in range(count)
    ]


def on_disk(folder: Path) -> dict[str, int]:
    report = audit(folder / "spool" / "eu")
    assert report.is_clean, report.problems
    return {"accepted": report.accepted, **report.counts}


def test_at_an_orderly_stop_in_the_middle_of_everything(tmp_path: Path) -> None:
    with sink(tmp_path) as server:
        config = fleet(tmp_path, 25, routes=routes(server))

        async def run() -> dict[str, int]:
            region, spool, node = await start_region(config)
            row = Suppression("user11@example.org", "", -1, Reason.MANUAL, 0, 0, "")
            await region.suppress(encode_rows([row]), spread=False)
            later_ms = time.time_ns() // 1_000_000 + 3_600_000
            later = messages(5, "later.example", later_ms)
            receipt = decode_receipt(await region.accept(*encode_submission(later, b"later".ljust(16))))
            assert await region.cancel([receipt.ids[0][0], receipt.ids[1][0]]) == 2
            await region.accept(*encode_submission(messages(60, "slow.example"), b"slow".ljust(16)))
            await region.accept(*encode_submission(messages(300), b"now".ljust(16)))
            await until(lambda: spool.counts()["delivered"] >= 50, PATIENCE_S)
            await node.stop()
            await region.stop()
            spool.close()
            shown = region._spool.counts()
            assert shown["suppressed"] == 1
            assert shown["cancelled"] == 2
            assert shown["queued"] >= 3
            return shown

        assert asyncio.run(run()) == on_disk(tmp_path)


def work(folder: Path, hosts: list[dict[str, object]], out: Path) -> None:
    """A region that accepts and sends, and writes down what it shows, until it is killed."""

    async def show(counts: "dict[str, int]") -> None:
        with out.open("a") as file:
            file.write(json.dumps(counts) + "\n")

    async def run() -> None:
        region, _, _ = await start_region(fleet(folder, 25, routes=hosts))
        for number in range(1000):
            await region.accept(*encode_submission(messages(20), b"%16d" % number))
            for _ in range(5):
                snapshot = region.snapshot()
                await show(snapshot["counts"])  # type: ignore[arg-type]
                await asyncio.sleep(0.002)

    asyncio.run(run())


def shown_by(out: Path) -> list[dict[str, int]]:
    """Complete lines only: the last one may be torn."""
    if not out.exists():
        return []
    return [json.loads(line) for line in out.read_text().split("\n")[:-1]]


def test_after_a_kill(tmp_path: Path) -> None:
    out = tmp_path / "shown"
    with sink(tmp_path) as server:
        hosts = routes(server)
        child = multiprocessing.get_context("spawn").Process(target=work, args=(tmp_path, hosts, out))
        child.start()
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not any(row["delivered"] >= 100 and row["queued"] for row in shown_by(out)[-1:]):
                assert time.monotonic() < deadline
                assert child.is_alive()
                time.sleep(0.05)
        finally:
            child.kill()
            child.join()
        rows = shown_by(out)
        for row in rows:
            assert row["accepted"] == row["queued"] + sum(row[kind] for kind in FINAL)
        found = on_disk(tmp_path)
        for kind in ("accepted", *FINAL):
            assert [row[kind] for row in rows] == sorted(row[kind] for row in rows)
            assert rows[-1][kind] <= found[kind], "it has shown what was not on disk yet"
        config = fleet(tmp_path, 25, routes=hosts)
        spool = Spool.open(tmp_path / "spool" / "eu", region_number=1, clock=SteadyClock())
        assert spool.counts() == found
        spool.close()

        async def rest() -> dict[str, int]:
            region, spool, node = await start_region(config)
            await until(lambda: spool.counts()["queued"] == 0, PATIENCE_S)
            await node.stop()
            await region.stop()
            spool.close()
            return region._spool.counts()

        counts = asyncio.run(rest())
        assert counts == on_disk(tmp_path)
        assert counts["accepted"] == found["accepted"]

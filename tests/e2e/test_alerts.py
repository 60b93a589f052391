"""A receiver without TLS and one that stalls: the fleet calls, and says when it is over."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.alerts.monitor import Monitor
from engine.config.schema import FleetConfig
from engine.metrics import gather
from engine.region import depth
from engine.sink.process import SinkProcess
from engine.values.message import Message
from engine.values.stream import Stream
from engine.values.submission import encode_submission
from tests.support.certificates import make, write_pair
from tests.support.region import fleet, start_region

BODY = b"From: a@example.com\r\nTo: b@example.org\r\nSubject: x\r\n\r\nhello\r\n"
SOON = {"first": "1s", "factor": 1, "max": "1s", "jitter": 0, "expire": "1h"}
PATIENCE_S = 120.0
LOOK_S = 0.1
EXPECTED = {("tls", ""), ("stall", "yahoo"), ("stall", "default")}
WATCHED = {name for name, _ in EXPECTED}


def config_of(folder: Path, server: SinkProcess) -> FleetConfig:
    ports = {name: address[1] for name, address in server.addresses.items()}
    return fleet(
        folder,
        25,
        routes=[
            {"domains": ["slow.example"], "hosts": [f"127.0.0.1:{ports['slow']}"], "provider": "yahoo"},
            {"domains": ["*"], "hosts": [f"127.0.0.1:{ports['bare']}"]},
        ],
        providers={"default": {"rate": "unlimited"}, "yahoo": {"rate": "unlimited"}},
        tls={},
        retry=dict.fromkeys(("transactional", "notification", "marketing"), SOON),
        alerts={
            "quiet": "1s",
            "stall": {"after": "2s", "deferrals": 5},
            "tls": {"after": "1s", "at_least": 2, "window": "4s"},
        },
    )


class Looks:
    """Looks at a fleet; `seen` are the alerts of `WATCHED` that have ever fired."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self.seen: set[tuple[str, str]] = set()

    async def until(self, condition: Callable[[set[tuple[str, str]]], bool]) -> None:
        """Until what fires now, or has been seen, is as it should be."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                await self._monitor.look()
                rows = [(str(row["alert"]), str(row["where"])) for row in self._monitor.listing()]
                firing = {row for row in rows if row[0] in WATCHED}
                self.seen |= firing
                if condition(firing):
                    return
                await asyncio.sleep(LOOK_S)


def test_alerts_of_tls_and_of_a_stall_fire_and_are_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather, "FRESH_S", 0.0)
    monkeypatch.setattr(depth, "REST_S", LOOK_S)
    write_pair(make("localhost"), tmp_path / "cert.pem", tmp_path / "key.pem")
    tls = {"tls": {"certificate": "cert.pem", "key": "key.pem"}}
    file = tmp_path / "sink.yaml"
    file.write_text(
        yaml.safe_dump({"personalities": {"bare": {}, "slow": {**tls, "delay": {"greeting": "1h"}}}})
    )
    with SinkProcess(file, tmp_path / "sink.log") as server:
        config = config_of(tmp_path, server)

        async def run() -> list[dict[str, Any]]:
            region, spool, node = await start_region(config)
            monitor = Monitor(config, node)
            await monitor.look()
            for domain in ("slow.example", "bare.example"):
                batch = [
                    Message("a@example.com", (f"u{n}@{domain}",), BODY, Stream.MARKETING) for n in range(5)
                ]
                await region.accept(*encode_submission(batch, domain.encode().ljust(16)))
            looks = Looks(monitor)
            await looks.until(lambda _: looks.seen == EXPECTED)
            await asyncio.to_thread(server.kill)
            file.write_text(yaml.safe_dump({"personalities": {"bare": tls, "slow": tls}}))
            await asyncio.to_thread(server.restart)
            await looks.until(lambda firing: not firing and spool.counts()["delivered"] == 10)
            events = [event for _, events in spool.read_outbox(1000) for event in events if len(event) == 3]
            await node.stop()
            await region.stop()
            spool.close()
            return [fields for _, kind, fields in events if kind == "alert"]

        told = asyncio.run(run())
    for alert in EXPECTED:
        states = [row["state"] for row in told if (row["alert"], row["where"]) == alert]
        assert states[::2] == ["firing"] * (len(states) // 2)
        assert states[1::2] == ["resolved"] * (len(states) // 2)
        assert states
    text = next(row["reason"] for row in told if row["alert"] == "tls")
    assert "starttls-not-supported" in text

"""What a region shows to Prometheus and to a collector is what its disk and the receiver say."""

import asyncio
import gzip
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from engine.alerts.watch import Watch
from engine.config.alerts import AlertsConfig
from engine.config.schema import FleetConfig
from engine.metrics.catalogue import Point
from engine.metrics.serving import MetricsServing
from engine.ops.free_port import free_port
from engine.sink.process import SinkProcess
from engine.spool.audit import audit
from engine.values.message import Message
from engine.values.stream import Stream
from engine.values.submission import decode_receipt, encode_submission
from engine.values.suppression import Reason, Suppression, encode_rows
from tests.support.prometheus import Scrape, read
from tests.support.region import LocalNode, fleet, start_region, until

BODY = b"From: a@example.com\r\nTo: b@example.org\r\nSubject: x\r\n\r\nhello\r\n"
KINDS = ("delivered", "bounced", "expired", "suppressed", "cancelled")
MAIL = 60
HOUR_MS = 3_600_000


@contextmanager
def sink(folder: Path) -> Iterator[SinkProcess]:
    """Knows no users 0 to 9; puts off everybody's first attempt in the domain `slow`."""
    unknown = {"pattern": "user[0-9]@", "reply": "550 5.1.1 no such user"}
    slow = {"after": "1s", "reply": "450 4.2.0 Greylisted, please try again later"}
    config = folder / "sink.yaml"
    config.write_text(
        yaml.safe_dump({"personalities": {"it": {"unknown": unknown}, "slow": {"greylist": slow}}})
    )
    with SinkProcess(config, folder / "sink.log") as server:
        yield server


def messages(count: int, domain: str, stream: Stream, send_at_ms: int = 0) -> list[Message]:
    return [
        Message("a@example.com", (f"user{n}@{domain}",), BODY, stream, send_at_ms=send_at_ms)
        for n in range(count)
    ]


def config_of(folder: Path, server: SinkProcess, **metrics: Any) -> FleetConfig:
    ports = {name: address[1] for name, address in server.addresses.items()}
    routes = [
        {"domains": ["slow.example"], "hosts": [f"127.0.0.1:{ports['slow']}"], "provider": "yahoo"},
        {"domains": ["*"], "hosts": [f"127.0.0.1:{ports['it']}"]},
    ]
    providers = {"default": {"rate": "unlimited"}, "yahoo": {"rate": "unlimited"}}
    exceptions = [{"provider": name, "mode": "disabled", "reason": "loopback test"} for name in providers]
    return fleet(
        folder, 25, routes=routes, providers=providers, tls={"exceptions": exceptions}, metrics=metrics
    )


async def send(region: Any) -> None:
    row = Suppression("user11@example.org", "", -1, Reason.MANUAL, 0, 0, "")
    await region.suppress(encode_rows([row]), spread=False)
    batches = [
        messages(5, "later.example", Stream.NOTIFICATION, time.time_ns() // 1_000_000 + HOUR_MS),
        messages(20, "slow.example", Stream.TRANSACTIONAL),
        messages(MAIL, "example.org", Stream.MARKETING),
    ]
    for number, batch in enumerate(batches):
        receipt = decode_receipt(await region.accept(*encode_submission(batch, b"%16d" % number)))
        assert not receipt.errors
        if not number:
            await region.cancel([receipt.ids[0][0]])


async def look(node: LocalNode, config: FleetConfig) -> Scrape:
    serving = MetricsServing(config, "eu", port=node)
    await serving.start()
    try:
        status, text = await asyncio.to_thread(read, "127.0.0.1", serving.port)
        assert status == 200
        return Scrape(text)
    finally:
        await serving.stop()


def test_what_prometheus_reads_is_what_the_audit_finds(tmp_path: Path) -> None:
    with sink(tmp_path) as server:
        config = config_of(tmp_path, server, listen={"eu": f"127.0.0.1:{free_port()}"})

        async def run() -> Scrape:
            region, spool, node = await start_region(config)
            await send(region)
            await until(lambda: spool.counts()["queued"] == 4)
            await region.parts.depth.walk()
            found = await look(node, config)
            await node.stop()
            await region.stop()
            spool.close()
            return found

        found = asyncio.run(run())
        log = server.log()
        log.refresh()
    delivered = log.unique
    report = audit(tmp_path / "spool" / "eu")
    assert report.is_clean, report.problems
    shown = {
        labels["word"]: value for labels, value in found.rows("sendfleet_ledger_messages_total", region="eu")
    }
    assert shown == {"accepted": report.accepted} | {kind: report.counts[kind] for kind in KINDS}
    assert found.total("sendfleet_messages_queued") == report.counts["queued"] == 4
    assert shown["delivered"] == delivered == MAIL - 11 + 20
    assert found.total("sendfleet_messages_accepted_total") == report.accepted - 1  # suppressed at once

    outcomes = "sendfleet_outcomes_total"
    assert found.total(outcomes, stream="marketing", provider="default", outcome="bounced") == 10
    assert found.total(outcomes, stream="marketing", provider="default", outcome="delivered") == MAIL - 11
    assert found.total(outcomes, stream="transactional", provider="yahoo", outcome="delivered") == 20
    deferred = found.total(outcomes, stream="transactional", provider="yahoo", outcome="deferred")
    assert deferred >= 20
    assert found.total("sendfleet_attempts_total", provider="yahoo") == 20 + deferred
    assert found.total("sendfleet_attempts_total", provider="default") == MAIL - 1

    waiting = "sendfleet_messages_waiting"
    assert found.total(waiting) == 4
    assert found.total(waiting, stream="notification", provider="unknown", state="scheduled") == 4
    plain = found.total("sendfleet_tls_plaintext_sessions_total")
    assert plain > 0
    assert found.total("sendfleet_tls_sessions_total", result="plaintext") == plain
    limits = found.rows("sendfleet_sessions_limit", provider="default")
    assert {labels["source"] for labels, _ in limits} == {"eu-1", "eu-2"}
    assert found.total("sendfleet_source_sites", provider="default", source="eu-1", state="active") == 1
    assert found.total("sendfleet_region_up", region="eu") == 1
    assert found.total("sendfleet_spool_commits_total") > 0
    assert found.total("process_memory_usage_bytes", actor="gateway") > 1 << 20


def waiting(points: list[Point]) -> dict[tuple[str, ...], float]:
    """Provider and state."""
    return {p.labels[1:]: p.value for p in points if p.metric == "sendfleet.messages.waiting"}


def test_what_waits_for_a_cap_or_a_slow_pace_is_held_and_no_stall(tmp_path: Path) -> None:
    """Two sources: five a day each to `default`, one in half an hour each to `yahoo`; what is suspended is not held."""
    with sink(tmp_path) as server:
        ports = {name: address[1] for name, address in server.addresses.items()}
        routes = [
            {"domains": ["slow.example"], "hosts": [f"127.0.0.1:{ports['it']}"], "provider": "yahoo"},
            {"domains": ["gone.example"], "hosts": [f"127.0.0.1:{ports['it']}"], "provider": "google"},
            {"domains": ["*"], "hosts": [f"127.0.0.1:{ports['it']}"]},
        ]
        providers = {
            "default": {"rate": "unlimited", "daily_cap": 5},
            "yahoo": {"rate": "2/h"},
            "google": {"rate": "2/h"},
        }
        exceptions = [{"provider": name, "mode": "disabled", "reason": "test"} for name in providers]
        config = fleet(
            tmp_path, 25, routes=routes, providers=providers, tls={"exceptions": exceptions}, metrics={}
        )

        async def run() -> list[Point]:
            region, spool, node = await start_region(config)
            batches = [
                messages(30, "example.org", Stream.MARKETING)[10:],
                messages(30, "slow.example", Stream.MARKETING)[10:],
                messages(30, "gone.example", Stream.MARKETING)[10:],
            ]
            for number, batch in enumerate(batches):
                await region.accept(*encode_submission(batch, b"%16d" % number))
            await until(lambda: len(region.parts.dispatcher.pool_names()) == 3)
            until_ms = time.time_ns() // 1_000_000 + HOUR_MS
            for source in ("eu-1", "eu-2"):
                region.parts.enforcement.suspensions.order(source, "google", until_ms, "a test")
            found: list[Point] = []
            async with asyncio.timeout(60):
                while (
                    not found
                    or waiting(found)["default", "held"] != 10
                    or waiting(found)["default", "in_flight"]
                ):
                    await asyncio.sleep(0.05)
                    await region.parts.depth.walk()
                    found = region.figures()
            await node.stop()
            await region.stop()
            spool.close()
            return found

        points = asyncio.run(run())
    found = waiting(points)
    assert found["default", "ready"] == 0
    assert found["yahoo", "held"] >= 18
    assert found["yahoo", "ready"] == 0
    assert found["google", "held"] == 0
    assert found["google", "ready"] >= 18
    watch = Watch(AlertsConfig.model_validate({"stall": {"after": "30s"}}))
    for n in range(6):
        watch.look("eu", points, n * 10.0, n * 10_000)
    assert [alert.where for alert in watch.firing() if alert.name == "stall"] == ["google"]


class Collector:
    """A receiver of OTLP over HTTP; `answer` is its status."""

    def __init__(self) -> None:
        self.requests: list[ExportMetricsServiceRequest] = []
        self.headers: list[dict[str, str]] = []
        self.answer = 200
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    data = gzip.decompress(data)
                collector.headers.append({name.lower(): value for name, value in self.headers.items()})
                collector.requests.append(ExportMetricsServiceRequest.FromString(data))
                self.send_response(collector.answer)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1/metrics"

    def __enter__(self) -> "Collector":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def sums(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """The last request's points: (name, labels) -> value."""
        found = {}
        for resource in self.requests[-1].resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    data = metric.sum if metric.HasField("sum") else metric.gauge
                    for point in data.data_points:
                        labels = frozenset((a.key, a.value.string_value) for a in point.attributes)
                        value = point.as_int if point.HasField("as_int") else point.as_double
                        found[metric.name, labels] = value
        return found


def test_what_a_collector_is_sent_is_what_prometheus_reads(tmp_path: Path) -> None:
    headers = tmp_path / "headers"
    headers.write_text("X-Token: secret\n")
    with sink(tmp_path) as server, Collector() as collector:
        config = config_of(
            tmp_path,
            server,
            listen={"eu": f"127.0.0.1:{free_port()}"},
            otlp={"endpoint": collector.url, "interval": "1s", "headers_file": str(headers)},
        )

        async def run() -> Scrape:
            region, spool, node = await start_region(config)
            await send(region)
            await until(lambda: spool.counts()["queued"] == 4)
            serving = MetricsServing(config, "eu", port=node)
            collector.answer = 400  # what is lost now is in the next one
            await serving.start()
            await until(lambda: len(collector.requests) == 1)
            collector.answer = 200
            await until(lambda: len(collector.requests) >= 2)
            _, text = await asyncio.to_thread(read, "127.0.0.1", serving.port)
            await serving.stop()
            await node.stop()
            await region.stop()
            spool.close()
            return Scrape(text)

        shown = asyncio.run(run())
    sent = collector.sums()
    assert collector.headers[-1]["x-token"] == "secret"
    attributes = {
        a.key: a.value.string_value for a in collector.requests[-1].resource_metrics[0].resource.attributes
    }
    assert attributes["service.name"] == "sendfleet"
    assert attributes["service.namespace"] == "fleet"
    assert attributes["service.instance.id"] == "eu"
    for word in ("accepted", *KINDS):
        labels = frozenset({("region", "eu"), ("word", word)})
        value = sent["sendfleet.ledger.messages", labels]
        assert value == shown.samples["sendfleet_ledger_messages_total", labels]
    names = {name for name, _ in sent}
    assert {"sendfleet.outcomes", "process.memory.usage", "sendfleet.tls.sessions"} <= names
    metrics = collector.requests[-1].resource_metrics[0].scope_metrics[0].metrics
    (queued,) = [metric for metric in metrics if metric.name == "sendfleet.ledger.messages"]
    assert queued.sum.is_monotonic
    assert queued.unit == "{message}"

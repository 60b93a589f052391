"""`sendfleet bench`: a throughput trial on the running fleet, for the people who run it.

Its messages go only to domains that the fleet routes to hosts on this machine (a sink); without such a route it
refuses to start, so it can never send test mail to the world. Measured from outside: receipts by their latency,
deliveries by the regions' counters.
"""

import asyncio
import ipaddress
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engine.config.schema import FleetConfig
from engine.config.types import split_host
from engine.values.message import Message
from engine.values.stream import Stream

BATCH = 200
IN_FLIGHT = 4
SAMPLE_S = 0.25
DRAIN_S = 300.0
WIDTH, HEIGHT = 640, 240


class UnsafeTrial(ValueError):
    """A destination of the trial would leave this machine."""


@dataclass(slots=True)
class TrialReport:
    """Figures of one trial. `samples` are (seconds, accepted, delivered) since its start."""

    messages: int
    size_bytes: int
    destinations: int
    accepted: int = 0
    refused: int = 0
    delivered: int = 0
    bounced: int = 0
    seconds: float = 0.0
    accepted_per_s: float = 0.0
    delivered_per_s: float = 0.0
    receipt_p50_ms: float = 0.0
    receipt_p99_ms: float = 0.0
    queued_at_end: int = 0
    held_back: list[str] = field(default_factory=list)
    samples: list[tuple[float, int, int]] = field(default_factory=list)


def destinations_of(config: FleetConfig, count: int) -> list[str]:
    """Recipient domains for a trial: those of routes whose hosts are all on this machine; UnsafeTrial if none."""
    domains: list[str] = []
    for route in config.routes:
        hosts = [split_host(host)[0] for host in route.hosts]
        if not hosts or not all(_is_loopback(host) for host in hosts):
            continue
        for pattern in route.domains:
            if pattern == "*":
                domains.extend(f"d{n}.bench.invalid" for n in range(count))
            elif pattern.startswith("*."):
                domains.extend(f"d{n}{pattern[1:]}" for n in range(count))
            else:
                domains.append(pattern)
    if not domains:
        raise UnsafeTrial(
            "no route of this fleet leads to hosts on this machine only: a trial sends to a sink"
        )
    return [domains[n % len(domains)] for n in range(count)]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def run_trial(
    client: Any,
    *,
    messages: int,
    size: int,
    rate: float,
    destinations: int,
    stream: Stream = Stream.MARKETING,
) -> TrialReport:
    """Send `messages` of `size` bytes at `rate` per second (0: no limit); returns when all are settled."""
    report = TrialReport(messages, size, destinations)
    domains = destinations_of(client.config, destinations)
    before = _sums(await client.snapshot())
    waits: list[float] = []
    started = time.monotonic()
    watching = asyncio.create_task(_watch(client, report, before, started))
    firsts = iter(range(0, messages, BATCH))

    async def worker() -> None:
        for first in firsts:
            if rate:
                await asyncio.sleep(max(0.0, started + first / rate - time.monotonic()))
            batch = [
                Message(
                    "bench@bench.invalid",
                    (f"user{n}@{domains[n % len(domains)]}",),
                    body_of(n, size),
                    stream,
                    campaign="bench",
                )
                for n in range(first, min(first + BATCH, messages))
            ]
            sent = time.monotonic()
            receipt = await client.submit(batch)
            waits.append(time.monotonic() - sent)
            report.refused += len(receipt.errors)
            report.accepted += sum(map(len, receipt.ids))

    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    report.accepted_per_s = report.accepted / (time.monotonic() - started)
    deadline = time.monotonic() + DRAIN_S
    while time.monotonic() < deadline:
        snapshot = await client.snapshot()
        now = _sums(snapshot)
        if now["delivered"] + now["bounced"] - before["delivered"] - before["bounced"] >= report.accepted:
            break
        await asyncio.sleep(0.05)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    report.seconds = time.monotonic() - started
    report.delivered = now["delivered"] - before["delivered"]
    report.bounced = now["bounced"] - before["bounced"]
    report.queued_at_end = now["queued"]
    report.delivered_per_s = report.delivered / report.seconds
    waits.sort()
    report.receipt_p50_ms = waits[len(waits) // 2] * 1e3
    report.receipt_p99_ms = waits[int(len(waits) * 0.99)] * 1e3
    report.held_back = _limits_met(snapshot)
    return report


async def _watch(client: Any, report: TrialReport, before: dict[str, int], started: float) -> None:
    while True:
        now = _sums(await client.snapshot())
        report.samples.append(
            (
                round(time.monotonic() - started, 3),
                now["accepted"] - before["accepted"],
                now["delivered"] - before["delivered"],
            )
        )
        await asyncio.sleep(SAMPLE_S)


def _sums(snapshot: dict[str, Any]) -> dict[str, int]:
    sums = dict.fromkeys(("accepted", "delivered", "bounced", "queued"), 0)
    for region in snapshot["regions"].values():
        for name in sums:
            sums[name] += region.get("counts", {}).get(name, 0)
    return sums


def _limits_met(snapshot: dict[str, Any]) -> list[str]:
    """What made messages wait, in words."""
    met = []
    for name, region in snapshot["regions"].items():
        parkings = region.get("scheduler", {}).get("parkings", 0)
        if parkings:
            met.append(f"region {name}: {parkings} waits for a source's rate, window or daily cap")
        met.extend(
            f"region {name}: source {s['source']} suspended at {s['site']}: {s['reason']}"
            for s in region.get("suspensions", ())
        )
    return met


def body_of(number: int, size: int) -> bytes:
    """A message of about `size` bytes."""
    head = (
        f"From: Bench <bench@bench.invalid>\r\nSubject: Trial {number}\r\n"
        f"Message-ID: <{number}.{time.time_ns()}@bench.invalid>\r\nMIME-Version: 1.0\r\n\r\n"
    ).encode()
    line = b"Nothing but a line of a throughput trial, repeated until the size is right.\r\n"
    return (
        head + (line * (max(0, size - len(head)) // len(line) + 1))[: max(2, size - len(head) - 2)] + b"\r\n"
    )


def write_json(report: TrialReport, path: Path) -> None:
    path.write_text(json.dumps(asdict(report), indent=1) + "\n")


def write_plot(report: TrialReport, path: Path) -> None:
    """Accepted and delivered over time, as SVG."""
    end_s = max((sample[0] for sample in report.samples), default=1.0) or 1.0
    top = max(report.messages, 1)

    def line(column: int, colour: str) -> str:
        points = " ".join(
            f"{40 + sample[0] / end_s * (WIDTH - 60):.1f},{HEIGHT - 30 - sample[column] / top * (HEIGHT - 60):.1f}"
            for sample in report.samples
        )
        return f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>'

    title = f"{report.messages} messages of {report.size_bytes} bytes: accepted (grey), delivered (blue)"
    parts = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}"',
        ' font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        line(1, "#888888"),
        line(2, "#1f77b4"),
        f'<text x="40" y="20">{title}, {report.delivered_per_s:,.0f}/s</text>',
        f'<text x="{WIDTH - 60}" y="{HEIGHT - 10}">{end_s:.1f} s</text></svg>\n',
    )
    path.write_text("".join(parts))


def lines_of(report: TrialReport) -> Sequence[str]:
    """The report for people."""
    return (
        f"accepted   {report.accepted:>10,}   {report.accepted_per_s:>10,.0f}/s   refused {report.refused:,}",
        f"delivered  {report.delivered:>10,}   {report.delivered_per_s:>10,.0f}/s   bounced {report.bounced:,}",
        f"receipt    p50 {report.receipt_p50_ms:.1f} ms   p99 {report.receipt_p99_ms:.1f} ms",
        f"queued at the end {report.queued_at_end:,}",
        *(f"held back: {text}" for text in report.held_back),
    )

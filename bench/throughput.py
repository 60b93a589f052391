"""Throughput from the client through Ray to the sink, durable: 10 KB, 2 KB, and a campaign from one template.

    python -m bench.throughput [--messages 60000] [--repeats 3]

One region, one pool, four sources, Postfix's smtp-sink in its own process. The clock runs from the first submit to the
last delivery seen at the sink; the region's counters and the sink's number must both equal what was accepted.
CPU is that of all our processes: client, actors, Ray's daemons; without the sink.
"""

import argparse
import asyncio
import hashlib
import sys
import time
from collections.abc import Callable

from bench.fleet import BenchFleet
from bench.harness import (
    Measurement,
    Meter,
    Miscounted,
    await_count,
    compare,
    ours,
    print_results,
    write_result,
)
from bench.smtp_sink import SmtpSink
from engine.values.message import CampaignChunk, CampaignTemplate, Message
from engine.values.stream import Stream

BATCH = 200
IN_FLIGHT = 4
CHUNK = 500
DRAIN_S = 120.0

TEXT = "Dear {{ name }},\n\n" + "\n".join(
    f"Line {n} of the letter, with some words to fill it." for n in range(30)
)


def make_body(number: int, size: int) -> bytes:
    head = (
        f"From: News <news@example.com>\r\nTo: user{number}@example.org\r\nSubject: Number {number}\r\n"
        f"Message-ID: <{number}@bench.example.com>\r\nMIME-Version: 1.0\r\n"
        "Content-Type: text/plain; charset=us-ascii\r\n\r\n"
    ).encode()
    line = b"The quick brown fox jumps over the lazy dog, again and again and again.\r\n"
    text = line * ((size - len(head)) // len(line) + 1)
    return head + text[: size - len(head) - 2] + b"\r\n"


async def submit_all(client: object, count: int, size: int) -> list[float]:
    """Submit in batches, a few at a time; returns the seconds that each waited for its receipt."""
    waits: list[float] = []
    numbers = iter(range(0, count, BATCH))

    async def worker() -> None:
        for first in numbers:
            batch = [
                Message(
                    "news@example.com",
                    (f"user{n}@example.org",),
                    make_body(n, size),
                    Stream.MARKETING,
                    campaign="bench",
                )
                for n in range(first, min(first + BATCH, count))
            ]
            before = time.monotonic()
            receipt = await client.submit(batch)  # type: ignore[attr-defined]
            waits.append(time.monotonic() - before)
            if receipt.errors:
                raise RuntimeError(f"refused: {receipt.errors[0]}")

    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    return waits


async def submit_campaign(client: object, count: int, name: str) -> list[float]:
    template = CampaignTemplate(
        campaign=name,
        tenant="default",
        stream=Stream.MARKETING,
        sender="news@example.com",
        header_from="News <news@example.com>",
        subject="News for {{ name }}",
        text=TEXT,
    )
    region = "bench"
    number = await client.put_campaign(region, template, ["name"])  # type: ignore[attr-defined]
    waits: list[float] = []
    firsts = iter(range(0, count, CHUNK))

    async def worker() -> None:
        for first in firsts:
            recipients = tuple(f"user{n}@example.org" for n in range(first, min(first + CHUNK, count)))
            fields = tuple((f"Name {n}",) for n in range(first, min(first + CHUNK, count)))
            digest = hashlib.sha256(repr((recipients, fields)).encode()).digest()[:16]
            chunk = CampaignChunk(name, "default", first // CHUNK, digest, ("name",), recipients, fields)
            before = time.monotonic()
            await client.accept_chunk(region, number, chunk)  # type: ignore[attr-defined]
            waits.append(time.monotonic() - before)

    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    return waits


class Bench:
    """The runs, on one fleet and one sink."""

    def __init__(self, fleet: BenchFleet, sink: SmtpSink, loop: asyncio.AbstractEventLoop) -> None:
        self._fleet = fleet
        self._sink = sink
        self._loop = loop
        self._campaigns = 0

    def counts(self) -> dict[str, int]:
        snapshot = self._loop.run_until_complete(self._fleet.client.snapshot())
        return dict(snapshot["regions"]["bench"]["counts"])

    def run(self, count: int, submit: Callable[[], list[float]]) -> Measurement:
        before = self.counts()
        self._sink.mark()
        with Meter(ours(sessions=[self._fleet.session()]), exclude=[self._sink.pid]) as meter:
            started = time.monotonic()
            waits = submit()
            accepted_s = time.monotonic() - started
            ended = await_count(self._sink.messages, count, timeout_s=DRAIN_S)
        deadline = time.monotonic() + DRAIN_S
        while (after := self.counts())["queued"] and time.monotonic() < deadline:
            time.sleep(0.05)
        delivered = after["delivered"] - before["delivered"]
        if delivered != count or self._sink.messages() != count:
            raise Miscounted(count, self._sink.messages(), delivered)
        waits.sort()
        return Measurement(
            count,
            ended - started,
            meter.usage,
            {
                "accepted_per_s": count / accepted_s,
                "receipt_p50_ms": waits[len(waits) // 2] * 1e3,
                "receipt_p99_ms": waits[int(len(waits) * 0.99)] * 1e3,
            },
        )

    def plain(self, count: int, size: int) -> Measurement:
        return self.run(
            count, lambda: self._loop.run_until_complete(submit_all(self._fleet.client, count, size))
        )

    def campaign(self, count: int) -> Measurement:
        self._campaigns += 1
        name = f"bench-{self._campaigns}"
        return self.run(
            count, lambda: self._loop.run_until_complete(submit_campaign(self._fleet.client, count, name))
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=60_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    loop = asyncio.new_event_loop()
    with SmtpSink() as sink, BenchFleet(sink.port) as fleet:
        bench = Bench(fleet, sink, loop)
        bench.plain(5000, 2048)  # starts the pool
        runs = {
            "10 KB": lambda: bench.plain(options.messages, 10_240),
            "2 KB": lambda: bench.plain(options.messages, 2_048),
            "campaign": lambda: bench.campaign(max(options.messages, 100_000)),
        }
        results = compare(runs, repeats=options.repeats)
    print_results("throughput, durable, plain text", results)
    write_result(
        "throughput", results, settings={"messages": options.messages, "batch": BATCH}, is_durable=True
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Throughput from the client through Ray to the sink, durable: 10 KB, 2 KB, and a campaign from one template.

    python -m bench.throughput [--quick] [--messages 60000] [--repeats 3] [--directory DIR] [--no-postfix]

One region, one pool, four sources, Postfix's smtp-sink in its own process. The clock runs from the first submit to the
last delivery seen at the sink; the region's counters and the sink's number must both equal what was accepted.
CPU is that of all our processes: client, actors, Ray's daemons; without the sink.

Machines differ, and so do a machine's minutes. So two yardsticks are measured in the same rounds, and the result has
each round's ratio to them: the ceiling, smtp-source straight into smtp-sink (not durable, nothing between; CPU is that
of the load and the sink), and Postfix relaying 10 KB (durable; CPU is Postfix's). Postfix needs root; `--no-postfix`
leaves it out. `--quick` is one short round, to see that all of it works and about where it stands; its result is a file
apart. `--directory` is where both spools are kept; choose the disk.
"""

import argparse
import asyncio
import hashlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import postfix, source_sink
from bench.fleet import BenchFleet
from bench.harness import (
    Measurement,
    Meter,
    Miscounted,
    await_count,
    compare,
    ours,
    print_results,
    ratios,
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


RELAYED = "Postfix relaying 10 KB"
CEILINGS = {"10 KB": "smtp-source to smtp-sink, 10 KB", "2 KB": "smtp-source to smtp-sink, 2 KB"}
SIZES = {"10 KB": 10_240, "2 KB": 2_048}


@dataclass(frozen=True, slots=True)
class Plan:
    """How many messages each run has."""

    messages: int
    campaign: int
    ceiling: int
    relayed: int
    repeats: int


QUICK = Plan(messages=6_000, campaign=10_000, ceiling=10_000, relayed=1_500, repeats=1)


def compared(results: Mapping[str, Sequence[Measurement]]) -> dict[str, object]:
    """Our runs against the ceiling of their size (a campaign's messages are rendered to about 2 KB) and Postfix."""
    found: dict[str, object] = {}
    for name in ("10 KB", "2 KB", "campaign"):
        ceiling = CEILINGS.get(name, CEILINGS["2 KB"])
        of: dict[str, object] = {"to the ceiling": ratios(results[name], results[ceiling])}
        if RELAYED in results and name == "10 KB":
            of["to Postfix"] = ratios(results[name], results[RELAYED])
        found[name] = of
    if RELAYED in results:
        found[RELAYED] = {"to the ceiling": ratios(results[RELAYED], results[CEILINGS["10 KB"]])}
    return found


def show(ratios_of: Mapping[str, object]) -> None:
    for name, others in ratios_of.items():
        assert isinstance(others, dict)
        for other, found in others.items():
            cost = found.get("cpu_per_message")
            print(
                f"{name} {other}: {found['rate']['median']:.2f} of the rate"
                + (f", {cost['median']:.2f} of the CPU per message" if cost else "")
            )


def plan_of(options: argparse.Namespace) -> Plan:
    if options.quick:
        return QUICK
    messages = options.messages
    return Plan(messages, max(messages, 100_000), 40_000, 5_000, options.repeats)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--messages", type=int, default=60_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--no-postfix", action="store_true")
    options = parser.parse_args()
    plan = plan_of(options)
    loop = asyncio.new_event_loop()
    with ExitStack() as stack:
        sink = stack.enter_context(SmtpSink())
        runs: dict[str, Callable[[], Measurement]] = {}
        for name, size in SIZES.items():
            runs[CEILINGS[name]] = lambda size=size: source_sink.run(  # type: ignore[misc]
                sink, messages=plan.ceiling, size=size, sessions=20
            )
        if not options.no_postfix:
            relay = stack.enter_context(postfix.PostfixRelay(sink.port, directory=options.directory))
            runs[RELAYED] = lambda: postfix.run(
                relay, sink, messages=plan.relayed, size=SIZES["10 KB"], sessions=10
            )
        fleet = stack.enter_context(BenchFleet(sink.port, parent=options.directory))
        bench = Bench(fleet, sink, loop)
        bench.plain(5000, 2048)  # starts the pool
        for name, size in SIZES.items():
            runs[name] = lambda size=size: bench.plain(plan.messages, size)  # type: ignore[misc]
        runs["campaign"] = lambda: bench.campaign(plan.campaign)
        results = compare(runs, repeats=plan.repeats)
    print_results("throughput, plain text; the ceiling is not durable, all else is", results)
    found = compared(results)
    show(found)
    path = write_result(
        "throughput-quick" if options.quick else "throughput",
        results,
        settings={**asdict(plan), "batch": BATCH, "not durable": list(CEILINGS.values())},
        is_durable=True,
        further={"ratios": found},
    )
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The region alone: CPU per message of accepting, dispatching and settling, durable, without Ray, pools or SMTP.

    python -m bench.region [--messages 40000] [--size 10240] [--repeats 3] [--profile]

The client's encoding is done before the clock starts. CPU is that of this process.
"""

import argparse
import asyncio
import cProfile
import os
import pstats
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from bench.harness import Measurement, Miscounted, Usage, compare, print_results, write_result
from bench.lone_region import LoneRegion
from bench.throughput import make_body
from engine.values.message import Message
from engine.values.stream import Stream
from engine.values.submission import encode_submission

BATCH = 200
IN_FLIGHT = 4
DRAIN_S = 120.0


async def run(directory: Path, batches: list[tuple[bytes, bytes]], messages: int) -> Measurement:
    async with LoneRegion(directory) as lone:
        waiting = iter(batches)

        async def worker() -> None:
            for header, blob in waiting:
                await lone.region.accept(header, blob)

        started, cpu = time.monotonic(), time.process_time()
        await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
        accepted_s = time.monotonic() - started
        ended = await lone.until("queued", 0, timeout_s=DRAIN_S)
        cpu_s = time.process_time() - cpu
        delivered = lone.spool.counts()["delivered"]
        groups = lone.spool.sizes()["groups"]
    if delivered != messages:
        raise Miscounted(messages, delivered, delivered)
    figures = {"accepted_per_s": messages / accepted_s, "commits_per_1000": groups / messages * 1000}
    return Measurement(messages, ended - started, Usage(cpu_s, 0, 0), figures)


def measure(batches: list[tuple[bytes, bytes]], messages: int) -> Measurement:
    with tempfile.TemporaryDirectory(prefix="sendfleet-bench-") as directory:
        return uvloop.run(run(Path(directory), batches, messages))


def encoded(messages: int, size: int) -> list[tuple[bytes, bytes]]:
    batches = []
    for first in range(0, messages, BATCH):
        batch = [
            Message(
                "news@example.com",
                (f"user{n}@example.org",),
                make_body(n, size),
                Stream.MARKETING,
                campaign="bench",
            )
            for n in range(first, min(first + BATCH, messages))
        ]
        batches.append(encode_submission(batch, os.urandom(16)))
    return batches


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=40_000)
    parser.add_argument("--size", type=int, default=10_240)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="print where the time of one run goes")
    options = parser.parse_args()
    batches = encoded(options.messages, options.size)
    if options.profile:
        profile = cProfile.Profile()
        profile.runcall(measure, batches, options.messages)
        pstats.Stats(profile).sort_stats("tottime").print_stats(40)
        return 0
    results = compare({"region": lambda: measure(batches, options.messages)}, repeats=options.repeats)
    print_results("the region alone, durable", results)
    settings = {"messages": options.messages, "size_bytes": options.size, "batch": BATCH}
    write_result("region", results, settings=settings, is_durable=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The region alone: CPU per message of accepting, dispatching and settling, durable, without Ray, pools or SMTP.

    python -m bench.region [--messages 40000] [--size 10240] [--repeats 3] [--profile]

A pool that answers "delivered" to everything it is handed, in reports like a real one's, stands behind a real region
on a real spool. What is left is what the region costs; the client's encoding is done before the clock starts.
"""

import argparse
import asyncio
import cProfile
import os
import pstats
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import uvloop

from bench.fleet import bench_config
from bench.harness import Measurement, Miscounted, Usage, compare, print_results, write_result
from bench.throughput import make_body
from engine.delivery.wire import ENTRY, OutcomeRow, decode_header, encode_report, encode_resume
from engine.providers.profiles import load_profiles
from engine.region.outbox import EventLog
from engine.region.ports import PoolName
from engine.region.region import Region, RegionPorts, deliver_on
from engine.reputation.allowance import decode_summary, encode_allowances
from engine.reputation.source import SourceRecord
from engine.routing.resolver import build_resolver
from engine.routing.router import Router
from engine.spool.store import Spool, SpoolOptions
from engine.values.clock import SteadyClock
from engine.values.message import Message
from engine.values.outcome import OutcomeKind
from engine.values.stream import Stream
from engine.values.submission import encode_submission

BATCH = 200
IN_FLIGHT = 4
REPORT_ROWS = 100
DRAIN_S = 120.0


class EchoPool:
    """Answers every entry with a delivery."""

    def __init__(self) -> None:
        self.region: Region | None = None
        self._sequence = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def launch(self, name: PoolName, on_death: Callable[[PoolName], None]) -> "EchoPool":
        return self

    async def survivors(self) -> list[PoolName]:
        return []

    async def resume(self, epoch: int) -> bytes:
        return encode_resume(0, [], [])

    async def acknowledge(self, sequence: int) -> None:
        pass

    async def stop(self, deadline_s: float) -> None:
        pass

    async def deliver(self, header: bytes, entries: bytes) -> None:
        head = decode_header(header)
        at_ms = time.time_ns() // 1_000_000
        kind = int(OutcomeKind.DELIVERED)
        rows: list[OutcomeRow] = [
            (id_, kind, "recipient", 250, "2.0.0", "Ok", "mx.example.org", source, at_ms, False, head.batch)
            for id_, _, _, source, *_ in ENTRY.iter_unpack(entries)
        ]
        task = asyncio.get_running_loop().create_task(self._settle(rows, head.epoch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _settle(self, rows: list[OutcomeRow], epoch: int) -> None:
        assert self.region is not None
        for start in range(0, len(rows), REPORT_ROWS):
            self._sequence += 1
            await self.region.settle(encode_report(self._sequence, epoch, rows[start : start + REPORT_ROWS]))


class EchoSources:
    def __init__(self) -> None:
        self._records: dict[str, SourceRecord] = {}

    async def observe(self, source: str, summary: bytes) -> bytes:
        record = self._records.setdefault(source, SourceRecord(source))
        return encode_allowances(record.observe(*decode_summary(summary)))


async def run(directory: Path, batches: list[tuple[bytes, bytes]], messages: int) -> Measurement:
    config = bench_config(directory, 25)
    clock = SteadyClock()
    options = SpoolOptions.from_config(config.spool, deliver=deliver_on(asyncio.get_running_loop()))
    spool = Spool.open(directory / "spool", region_number=1, clock=clock, options=options)
    pool = EchoPool()
    profiles = load_profiles(config.providers)
    region = Region(
        config=config,
        name="bench",
        spool=spool,
        router=Router(config, profiles, build_resolver(config.resolver), clock),
        ports=RegionPorts(launcher=pool, sources=EchoSources()),
        clock=clock,
        seed=1,
    )
    pool.region = region
    await region.start()
    log = EventLog(spool, directory / "events", config.events.max_file)
    log.start()
    waiting = iter(batches)

    async def worker() -> None:
        for header, blob in waiting:
            await region.accept(header, blob)

    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    accepted_s = time.perf_counter() - started
    deadline = time.monotonic() + DRAIN_S
    while spool.counts()["queued"] and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    counts = spool.counts()
    await region.stop()
    await log.stop()
    sizes = spool.sizes()
    spool.close()
    if counts["delivered"] != messages:
        raise Miscounted(messages, counts["delivered"], counts["delivered"])
    return Measurement(
        messages,
        seconds,
        Usage(cpu_s, 0, 0, {}),
        {"accepted_per_s": messages / accepted_s, "groups_per_1000": sizes["groups"] / messages * 1000},
    )


def measure(batches: list[tuple[bytes, bytes]], messages: int) -> Measurement:
    with tempfile.TemporaryDirectory(prefix="sendfleet-bench-") as directory:
        return uvloop.run(run(Path(directory), batches, messages))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=40_000)
    parser.add_argument("--size", type=int, default=10_240)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="print where the time of one run goes")
    options = parser.parse_args()
    batches = [
        encode_submission(
            [
                Message(
                    "news@example.com",
                    (f"user{n}@example.org",),
                    make_body(n, options.size),
                    Stream.MARKETING,
                    campaign="bench",
                )
                for n in range(first, min(first + BATCH, options.messages))
            ],
            os.urandom(16),
        )
        for first in range(0, options.messages, BATCH)
    ]
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

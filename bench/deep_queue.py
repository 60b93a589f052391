"""A queue far larger than memory: 5 million recipients of one campaign, queued; what memory and speed then are.

    python -m bench.deep_queue [--queued 5000000] [--probe 200000] [--directory DIR] [--repeats 3]

The region alone (bench/lone_region.py), durable. The rates with an empty queue: `probe` recipients are accepted while
no pool can be launched, then delivered. The same on top of a full queue, after the region has been started again from
its spool (so recovery is measured too). Both spools have been turned over equally often: a probe is made in each, as a
warm-up, before those that count, because a file that has never given a page back is faster than any that has.

Memory is the process's resident memory, sampled; of it the pages of LMDB's map are the kernel's cache and can be
dropped at any time, so both are given: all, and without file pages.

What other work on the machine does not change is given as well: bytes written and write calls made per message, both
accepted and delivered, and the size of the index.
"""

import argparse
import asyncio
import hashlib
import sys
import tempfile
import threading
import time
from pathlib import Path

import msgpack
import uvloop

from bench.harness import Measurement, Miscounted, Usage, print_results, write_result
from bench.lone_region import LoneRegion
from engine.values.stream import Stream

CHUNK = 500
IN_FLIGHT = 4
DOMAINS = 1000
TIMEOUT_S = 3600.0


class MemoryWatch:
    """The largest resident memory of this process while it is entered: all of it, and without file pages."""

    def __init__(self) -> None:
        self.resident = 0
        self.anonymous = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            fields = dict(
                line.split(":", 1)
                for line in Path("/proc/self/status").read_text().splitlines()
                if ":" in line
            )
            self.resident = max(self.resident, _kib(fields["VmRSS"]))
            self.anonymous = max(self.anonymous, _kib(fields["RssAnon"]))


def io_counts() -> tuple[int, int]:
    """Bytes written by this process so far, and the calls that took."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["wchar"]), int(fields["syscw"])


def _kib(text: str) -> int:
    return int(text.split()[0]) * 1024


async def submit(lone: LoneRegion, campaign: int, first: int, count: int) -> float:
    """Accept so many recipients; returns the seconds it took, without the making of the chunks."""
    firsts = iter(range(first, first + count, CHUNK))
    making_s = 0.0

    async def worker() -> None:
        nonlocal making_s
        for start in firsts:
            before = time.monotonic()
            numbers = range(start, min(start + CHUNK, first + count))
            recipients = [f"user{n}@d{n % DOMAINS}.example.org" for n in numbers]
            fields = [[f"Name {n}"] for n in numbers]
            digest = hashlib.sha256(repr(recipients).encode()).digest()[:16]
            chunk = msgpack.packb((campaign, start // CHUNK, digest, ["name"], recipients, fields))
            making_s += time.monotonic() - before
            await lone.region.accept_chunk(chunk)

    started = time.monotonic()
    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    return time.monotonic() - started - making_s


async def put_campaign(lone: LoneRegion, name: str) -> int:
    record = {
        "campaign": name,
        "tenant": "default",
        "stream": int(Stream.MARKETING),
        "sender": "news@example.com",
        "field_names": ["name"],
        "template": {"header_from": "News <news@example.com>", "subject": "News", "text": "Dear {{ name }}"},
    }
    return await lone.region.put_campaign(msgpack.packb(record))


async def probe(lone: LoneRegion, campaign: int, first: int, count: int) -> tuple[float, float]:
    """Recipients accepted per second with no delivery going on, and delivered per second with no accepting."""
    queued = lone.spool.counts()["queued"]
    lone.pool.gate.clear()
    accepted_s = await submit(lone, campaign, first, count)
    started = time.monotonic()
    lone.pool.gate.set()
    ended = await lone.until("queued", queued, timeout_s=TIMEOUT_S)
    return count / accepted_s, count / (ended - started)


async def fill(directory: Path, count: int) -> Measurement:
    async with LoneRegion(directory) as lone:
        lone.pool.gate.clear()
        campaign = await put_campaign(lone, "full")
        cpu = time.process_time()
        with MemoryWatch() as memory:
            seconds = await submit(lone, campaign, 0, count)
        usage = Usage(time.process_time() - cpu, memory.resident, memory.anonymous)
        size = lone.spool.sizes()["index_bytes"]
    return Measurement(count, seconds, usage, {"index_mib": size / 2**20})


async def on_top(directory: Path, count: int) -> Measurement:
    """Accept and deliver on top of what is queued; its own messages are what is delivered."""
    cpu = time.process_time()
    written = io_counts()
    with MemoryWatch() as memory:
        started = time.monotonic()
        lone = LoneRegion(directory)
        lone.pool.gate.clear()
        async with lone:
            start_s = time.monotonic() - started
            before = lone.spool.counts()
            campaign = await put_campaign(lone, f"on top {before['accepted']}")
            accept, deliver = await probe(lone, campaign, 0, count)
            after = lone.spool.counts()
            index_mib = lone.spool.sizes()["index_bytes"] / 2**20
    if after["delivered"] - before["delivered"] < count or after["queued"] > before["queued"]:
        raise Miscounted(count, after["delivered"] - before["delivered"], count)
    usage = Usage(time.process_time() - cpu, memory.resident, memory.anonymous)
    bytes_written, calls = (now - before for now, before in zip(io_counts(), written, strict=True))
    figures = {
        "accepted_per_s": accept,
        "start_s": start_s,
        "written_b": bytes_written / count,
        "write_calls": calls / count,
        "index_mib": index_mib,
    }
    return Measurement(count, count / deliver, usage, figures)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queued", type=int, default=5_000_000)
    parser.add_argument("--probe", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--directory", type=Path, default=None, help="where the spools go (about 2 GiB)")
    options = parser.parse_args()
    results: dict[str, list[Measurement]] = {"empty": [], "fill": [], "full": []}
    with tempfile.TemporaryDirectory(prefix="sendfleet-bench-", dir=options.directory) as name:
        deep = Path(name) / "deep"
        results["fill"].append(uvloop.run(fill(deep, options.queued)))
        spools = {"empty": Path(name) / "empty", "full": deep}
        for number in range(options.repeats + 1):
            for run, directory in spools.items():
                measured = uvloop.run(on_top(directory, options.probe))
                if number:
                    results[run].append(measured)
    print_results(f"{options.queued:,} queued recipients of one campaign, durable", results)
    settings = {"queued": options.queued, "probe": options.probe, "domains": DOMAINS}
    write_result("deep_queue", results, settings=settings, is_durable=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

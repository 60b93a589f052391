"""Bodies in append-only segments against bodies as LMDB values, over many turnovers of a queue of constant length.

    python -m bench.spool_turnover [--live 10000] [--turnovers 5]

Both keep an index in LMDB with the same keys, sync every batch, and delete mostly in order. A fresh file flatters LMDB:
what counts is the last turnover. Bodies are 1.5 to 30 KB, as of a mixed stream.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import lmdb

from bench.harness import Measurement, compare, print_results, write_result
from engine.spool.bodies import SegmentWriter, segment_path

BATCH = 200
SEGMENT = 64 << 20


class Plain:
    """One environment with the bodies in it."""

    def __init__(self, path: Path) -> None:
        self._env = lmdb.open(str(path), map_size=32 << 30, max_dbs=2)

    def put(self, first: int, bodies: list[bytes]) -> None:
        with self._env.begin(write=True) as txn:
            for number, body in enumerate(bodies, first):
                txn.put(number.to_bytes(8, "big"), body, append=True)

    def drop(self, first: int, count: int) -> None:
        with self._env.begin(write=True) as txn:
            for number in range(first, first + count):
                txn.delete(number.to_bytes(8, "big"))

    def close(self) -> None:
        self._env.close()


class Segments:
    """Bodies in segments, their places in LMDB; a segment is dropped when nothing in it is left."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._env = lmdb.open(str(path), map_size=32 << 30, max_dbs=2)
        self._writer = SegmentWriter(path, SEGMENT)
        self._live: dict[int, int] = {}

    def put(self, first: int, bodies: list[bytes]) -> None:
        if not self._writer.is_open or self._writer.is_full:
            self._writer.sync()
            self._writer.begin(self._writer.number + 1)
            self._live[self._writer.number] = 0
        segment = self._writer.number
        offset = self._writer.append(b"".join(bodies))
        self._writer.sync()
        with self._env.begin(write=True) as txn:
            for number, body in enumerate(bodies, first):
                place = segment.to_bytes(4, "big") + offset.to_bytes(6, "big") + len(body).to_bytes(4, "big")
                txn.put(number.to_bytes(8, "big"), place, append=True)
                offset += len(body)
        self._live[segment] += len(bodies)

    def drop(self, first: int, count: int) -> None:
        with self._env.begin(write=True) as txn:
            for number in range(first, first + count):
                key = number.to_bytes(8, "big")
                place = txn.get(key)
                assert place is not None
                segment = int.from_bytes(place[:4], "big")
                txn.delete(key)
                self._live[segment] -= 1
        for segment in [s for s, live in self._live.items() if live == 0 and s != self._writer.number]:
            segment_path(self._path, segment).unlink()
            del self._live[segment]

    def close(self) -> None:
        self._writer.close()
        self._env.close()


def run(make: Callable[[Path], Plain | Segments], live: int, turnovers: int) -> Measurement:
    """Fill to `live` messages, then turn the queue over; the figure is that of the last turnover."""
    path = Path(tempfile.mkdtemp(prefix="turnover-"))
    rng = random.Random(1)
    noise = os.urandom(1 << 20)
    store = make(path)
    rates = []
    waiting: deque[tuple[int, int]] = deque()
    number = 0
    try:
        for _ in range(turnovers):
            started = time.monotonic()
            for _ in range(live // BATCH):
                bodies = []
                for _ in range(BATCH):
                    start = rng.randrange(1 << 19)
                    bodies.append(noise[start : start + rng.randint(1500, 30_000)])
                store.put(number, bodies)
                waiting.append((number, BATCH))
                number += BATCH
                if len(waiting) * BATCH > live:
                    # mostly in order: now and then a younger batch goes first
                    if rng.random() < 0.1:
                        waiting.rotate(-rng.randrange(4))
                    store.drop(*waiting.popleft())
            rates.append(live / (time.monotonic() - started))
        size = sum(file.stat().st_size for file in path.iterdir())
    finally:
        store.close()
        shutil.rmtree(path)
    seconds = live / rates[-1]
    return Measurement(live, seconds, None, {"fresh_per_s": rates[0], "disk_mib": size / (1 << 20)})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--live", type=int, default=10_000)
    parser.add_argument("--turnovers", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    runs = {
        "segments": lambda: run(Segments, options.live, options.turnovers),
        "LMDB values": lambda: run(Plain, options.live, options.turnovers),
    }
    results = compare(runs, repeats=options.repeats)
    print_results("put and delete after many turnovers, every batch synced", results)
    write_result(
        "spool_turnover",
        results,
        settings={"live": options.live, "turnovers": options.turnovers, "batch": BATCH},
        is_durable=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What a connection carries over a long line: messages per second of each of 5 connections at a 50 ms round trip.

    python -m bench.round_trip [--messages 600] [--size 10240] [--connections 5] [--round-trip-ms 50]

The delivery pool sends to our sink through a relay that holds everything for half a round trip in each direction, as
a long line does; it limits nothing else. One message per round trip is the mark: 20 a second on each connection at
50 ms. The rate is taken from the sink's own timestamps, from the acceptance after all connections have had their first
one to the last, so the opening of the first sessions is left out, and that of later ones is not.

  pipelining   MAIL, RCPT and DATA in one write, behind the message before (RFC 2920)
  chunking     the message goes with them (BDAT, RFC 3030)
  profile      as chunking, with 100 messages per connection, as the default profile has it: each then ends and is
               opened anew

The run fails if the sink has not got each message once. It needs little of a processor but needs it at once: on a busy
machine run it with real-time priority (`chrt -f 10`), or the figure is the scheduler's of that machine.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Self

from bench.delivery import Memory, Profile, Source
from bench.harness import Measurement, Miscounted, compare, print_results, write_result
from engine.delivery.pool import PoolEngine
from engine.delivery.wire import ENTRY, Header, encode_header
from engine.sink.log import SinkLog
from engine.sink.process import SinkProcess
from engine.values.clock import SystemClock

BATCH = 10
MEMORY = Path("/dev/shm")  # the sink syncs its log before it answers: not the disk is measured here
OUTSTANDING = 8  # messages per connection that the pool has at once
LINE = b"x" * 74 + b"\r\n"
HEAD = b"Message-ID: <%d@example.com>\r\nDate: Tue, 14 Nov 2023 22:13:20 +0000\r\nSubject: bench\r\n\r\n"


class Half(asyncio.Protocol):
    """One side of a relayed connection: what comes in goes out at the other side after the delay, in its order."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._waiting: deque[tuple[float, bytes | None]] = deque()
        self.other: Half
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._hold(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._hold(None)

    def _hold(self, data: bytes | None) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + self._delay_s
        self._waiting.append((due, data))
        loop.call_at(due, self._pass_on)

    def _pass_on(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._waiting and self._waiting[0][0] <= now + 1e-6:
            _, data = self._waiting.popleft()
            if self.other.transport is None:
                continue
            if data is None:
                self.other.transport.close()
            else:
                self.other.transport.write(data)


class Relay:
    """A long line to a port of this machine; in a thread of its own."""

    def __init__(self, port: int, round_trip_s: float) -> None:
        self._to = port
        self._delay_s = round_trip_s / 2
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        self.port = server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _listen(self) -> asyncio.Server:
        return await asyncio.get_running_loop().create_server(self._accept, "127.0.0.1", 0)

    def _accept(self) -> Half:
        near, far = Half(self._delay_s), Half(self._delay_s)
        near.other, far.other = far, near
        task = self._loop.create_task(self._connect(far))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return near

    async def _connect(self, far: Half) -> None:
        await self._loop.create_connection(lambda: far, "127.0.0.1", self._to)


async def send(port: int, profile: Profile, *, messages: int, size: int) -> int:
    """Send so many messages through a pool; returns how many it reports as delivered."""
    done = asyncio.Event()
    room = asyncio.Semaphore(OUTSTANDING * profile.max_connections // BATCH)
    waiting = asyncio.Event()
    seen = sequence = 0

    def report(data: bytes) -> None:
        nonlocal seen, sequence
        sequence += 1
        before = seen
        seen = int(pool.stats()["reported"])  # type: ignore[call-overload]
        for _ in range(seen // BATCH - before // BATCH):
            room.release()
        waiting.set()
        if seen == messages:
            done.set()

    async def acknowledge() -> None:
        while True:
            await waiting.wait()
            waiting.clear()
            await pool.acknowledge(sequence)

    lines = LINE * max(1, (size - len(HEAD)) // len(LINE))
    memory = Memory(lambda id_: HEAD % id_ + lines, size, port, messages)
    pool = PoolEngine(
        profile=profile,
        reader=memory,
        router=memory,
        sources={0: Source()},
        clock=SystemClock(),
        report=report,
        render=lambda id_, record: b"",
        rng=random.Random(1),
    )
    acknowledging = asyncio.create_task(acknowledge())
    for first in range(0, messages, BATCH):
        await room.acquire()
        entries = b"".join(ENTRY.pack(first + i, 0, 0, 0, 0, 0, 0, 0) for i in range(BATCH))
        await pool.deliver(encode_header(Header(first // BATCH, 1, {0: "sink"})), entries)
    await done.wait()
    outcomes = pool.stats()["outcomes"]
    acknowledging.cancel()
    await pool.stop(5.0)
    assert isinstance(outcomes, dict)
    return int(outcomes.get("delivered", 0))


def measure(log: SinkLog, connections: int) -> tuple[int, float]:
    """(messages, seconds) at the sink, from when each of the first connections has had a message."""
    rows = sorted(log.acceptances, key=lambda row: row.at_ns)
    met: set[int] = set()
    begun = 0
    while len(met) < connections:
        met.add(rows[begun].session)
        begun += 1
    return len(rows) - begun, (rows[-1].at_ns - rows[begun - 1].at_ns) / 1e9


def run(options: argparse.Namespace, profile: Profile) -> Measurement:
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        config = Path(folder) / "sink.yaml"
        config.write_text("personalities: {it: {}}\n")
        with SinkProcess(config, Path(folder) / "sink.log") as sink:
            with Relay(sink.addresses["it"][1], options.round_trip_ms / 1000) as line:
                began = time.monotonic()
                delivered = asyncio.run(
                    send(line.port, profile, messages=options.messages, size=options.size)
                )
                seconds = time.monotonic() - began
            log = sink.log()
        if not (delivered == log.total == log.unique == options.messages):
            raise Miscounted(options.messages, delivered, log.unique)
        count, lasted_s = measure(log, profile.max_connections)
        per_connection = count / lasted_s / profile.max_connections
        figures = {
            "per_connection_per_s": per_connection,
            "of_one_per_round_trip": per_connection * options.round_trip_ms / 1000,
            "most_connections": float(log.max_connections()),
        }
    return Measurement(options.messages, seconds, None, figures)


def runs(options: argparse.Namespace) -> dict[str, Callable[[], Measurement]]:
    profiles = {
        "pipelining": Profile(options.connections),
        "chunking": Profile(options.connections, chunking=True),
        "profile": Profile(options.connections, chunking=True, messages_per_connection=100),
    }
    return {name: lambda profile=profile: run(options, profile) for name, profile in profiles.items()}  # type: ignore[misc]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=1_500)
    parser.add_argument("--size", type=int, default=10_240)
    parser.add_argument("--connections", type=int, default=5)
    parser.add_argument("--round-trip-ms", type=float, default=50.0)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    options.messages -= options.messages % BATCH
    results = compare(runs(options), repeats=options.repeats)
    print_results(f"{options.connections} connections at {options.round_trip_ms:g} ms", results)
    for name, measurements in results.items():
        shares = sorted(m.figures["of_one_per_round_trip"] for m in measurements)
        print(f"{name}: {shares[len(shares) // 2]:.3f} messages per round trip on each connection")
    settings = {key: value for key, value in vars(options).items() if key != "repeats"}
    write_result("round_trip", results, settings=settings, is_durable=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())

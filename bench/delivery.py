"""The delivery pool alone: messages per second and CPU per message against a sink in its own process.

    python -m bench.delivery --sink PATH/TO/smtp-sink [--messages 50000] [--size 10240] [--sessions 4]

Records come from memory, so this is what the pool, the sessions and the transaction machine cost; nothing is
durable here. The run fails if the sink has not counted exactly what the pool reports as delivered. Results go
to bench/results.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import re
import resource
import socket
import statistics
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import uvloop

from engine.config.signing import DkimConfig
from engine.delivery.pool import PoolEngine
from engine.delivery.wire import ENTRY, Header, decode_report, encode_header
from engine.dkim.signer import signer_of
from engine.ops.free_port import free_port
from engine.routing.route import HostAnswer, HostStatus
from engine.tls.policy import PLAIN, HostPolicy
from engine.values.clock import SystemClock
from engine.values.outcome import OutcomeKind

BATCH = 500
CREDITS = 2000


@dataclass(frozen=True, slots=True)
class Record:
    sender: str
    recipient: str
    content: tuple[int, int, int, int]
    id: int
    accepted_ms: int = 1_700_000_000_000
    expires_ms: int = 1_700_086_400_000
    options: None = None


@dataclass(frozen=True, slots=True)
class Host:
    name: str
    port: int
    preference: int = 0


@dataclass(frozen=True, slots=True)
class Route:
    site: str
    provider: str
    hosts: tuple[Host, ...]
    tls: str = "disabled"
    auth: None = None


@dataclass(frozen=True, slots=True)
class Profile:
    max_connections: int
    name: str = "sink"
    max_connections_total: int = 0
    messages_per_connection: int = 1_000_000
    max_recipients: int = 1
    rate: None = None
    rate_total: None = None
    pipelining: bool = True
    chunking: bool = False
    idle_timeout_s: float = 60.0
    transaction_timeout_s: float = 7200.0
    min_data_rate: int = 500


@dataclass(frozen=True, slots=True)
class Source:
    ip: str = "127.0.0.2"
    ehlo: str = "mta.example.com"
    name: str = "mta"


class Memory:
    """Records and routes that cost nothing: the records exist before the clock starts. `body`: of a message."""

    def __init__(self, body: Callable[[int], bytes], size: int, port: int, messages: int) -> None:
        self._body = body
        self._route = Route("sink", "sink", (Host("127.0.0.1", port),))
        self._records = [
            Record("sender@example.com", f"user{id_}@example.net", (1, id_, size, 0), id_)
            for id_ in range(messages)
        ]

    def fetch(self, ids: bytes) -> Sequence[Any]:
        (first,) = struct.unpack_from("<Q", ids)
        return self._records[first : first + len(ids) // 8]

    def body(self, content: Any) -> bytes:
        return self._body(content[1])

    def tenant_of(self, record: Any) -> str:
        return "default"

    def cached(self, domain: str) -> Any:
        return self._route

    async def route(self, domain: str) -> Any:
        return self._route

    async def addresses(self, host: str) -> HostAnswer:
        return HostAnswer(HostStatus.USABLE, ((2, "127.0.0.1"),), canonical=host)

    async def policy(self, route: Any, host: Any, answer: HostAnswer) -> HostPolicy:
        return PLAIN

    def wished(self, route: Any, tls_wish: int) -> Any:
        return route


@dataclass(frozen=True, slots=True)
class Result:
    messages: int
    seconds: float
    messages_per_s: float
    cpu_us_per_message: float


class Sink:
    """smtp-sink as a child process; it must come from a postfix package."""

    def __init__(self, path: Path) -> None:
        self.port = free_port()
        libraries = path.parent.parent / "lib" / "postfix"
        # a file, not a pipe: the sink prints its counters at every message and would block on a full pipe
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._process = subprocess.Popen(
            [str(path), "-u", "nobody", "-c", f"127.0.0.1:{self.port}", "1000"],
            stdout=self._output,
            env=os.environ | {"LD_LIBRARY_PATH": str(libraries)},
        )
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise SystemExit("the sink does not listen")

    def close(self) -> int:
        """End it; returns how many messages it counted."""
        self._process.terminate()
        self._process.wait()
        with self._output as output:
            output.seek(0)
            counts = re.findall(rb"mesg=(\d+)", output.read())
        return int(counts[-1]) if counts else 0


def one_body(size: int) -> Callable[[int], bytes]:
    """The same body for every message."""
    line = b"x" * 74 + b"\r\n"
    head = b"Message-ID: <1@example.com>\r\nDate: Tue, 14 Nov 2023 22:13:20 +0000\r\nSubject: bench\r\n\r\n"
    body = head + line * max(1, (size - len(head)) // len(line))
    return lambda _: body


async def run(
    port: int,
    *,
    messages: int,
    size: int,
    sessions: int,
    body: Callable[[int], bytes] | None = None,
    dkim: DkimConfig | None = None,
) -> Result:
    """`body`: of message number so and so; `dkim`: all are signed."""
    reports: list[bytes] = []
    room = asyncio.Semaphore(CREDITS // BATCH)
    done = asyncio.Event()
    waiting = asyncio.Event()
    reported = 0

    def report(data: bytes) -> None:
        nonlocal reported
        reports.append(data)
        before = reported
        reported = int(pool.stats()["reported"])  # type: ignore[call-overload]
        for _ in range(reported // BATCH - before // BATCH):
            room.release()
        waiting.set()
        if reported == messages:
            done.set()

    async def acknowledge() -> None:
        while True:
            await waiting.wait()
            waiting.clear()
            await pool.acknowledge(len(reports))

    memory = Memory(body or one_body(size), size, port, messages)
    batches = [
        b"".join(ENTRY.pack(first + i, 0, 0, 0, 0, 0, 0, 0) for i in range(BATCH))
        for first in range(0, messages, BATCH)
    ]
    pool = PoolEngine(
        profile=Profile(max_connections=sessions),
        reader=memory,
        router=memory,
        sources={0: Source()},
        clock=SystemClock(),
        report=report,
        render=lambda id_, record: b"",
        rng=random.Random(1),
        signer=None if dkim is None else signer_of(dkim, time.monotonic),
        signing=dkim,
        hold_s=600.0,
    )
    acknowledging = asyncio.create_task(acknowledge())
    started = time.perf_counter()
    cpu = time.process_time()
    for number, entries in enumerate(batches):
        await room.acquire()
        await pool.deliver(encode_header(Header(number, 1, {0: "sink"})), entries)
    await done.wait()
    seconds = time.perf_counter() - started
    used = time.process_time() - cpu
    acknowledging.cancel()
    await pool.stop(5.0)
    outcomes = [outcome for data in reports for outcome in decode_report(data).outcomes]
    failed = [outcome for outcome in outcomes if outcome.kind is not OutcomeKind.DELIVERED]
    if failed or len({outcome.id for outcome in outcomes}) != messages:
        raise SystemExit(f"not every message was delivered once: {failed[:3]}")
    return Result(messages, seconds, messages / seconds, used / messages * 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sink", type=Path, default=Path(".tools/postfix/usr/sbin/smtp-sink"))
    parser.add_argument("--messages", type=int, default=50_000)
    parser.add_argument("--size", type=int, default=10_240)
    parser.add_argument("--sessions", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    messages = options.messages // BATCH * BATCH
    results = []
    for _ in range(options.repeats):
        sink = Sink(options.sink)
        try:
            result = uvloop.run(
                run(sink.port, messages=messages, size=options.size, sessions=options.sessions)
            )
        finally:
            counted = sink.close()
        if counted != messages:
            raise SystemExit(f"the sink counted {counted} messages, the pool delivered {messages}")
        results.append(result)
        print(f"{result.messages_per_s:9.0f} messages/s  {result.cpu_us_per_message:6.1f} us CPU per message")
    rates = [result.messages_per_s for result in results]
    costs = [result.cpu_us_per_message for result in results]
    document = {
        "bench": "delivery",
        "durable": False,
        "size_bytes": options.size,
        "sessions": options.sessions,
        "messages_per_s": {"median": statistics.median(rates), "min": min(rates), "max": max(rates)},
        "cpu_us_per_message": {"median": statistics.median(costs), "min": min(costs), "max": max(costs)},
        "peak_memory_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "arch": platform.machine()},
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip(),
        "runs": [asdict(result) for result in results],
    }
    path = Path(__file__).parent / "results" / f"delivery-{options.size}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""What TLS costs: the same mail through the whole engine in clear text and over TLS 1.3, to the same sink; durable.

    python -m bench.tls [--quick] [--messages 30000] [--size 10240] [--repeats 3]

One fleet (one region, one pool, four sources), one sink that speaks both (bench/tls_sink.py), unsigned mail. A domain
with a written exception goes in clear text, another one over TLS; the runs take turns, and the ratio is that of each
round. In the same rounds the machine's ceiling is measured, smtp-source straight into smtp-sink. Each message has a
recipient of its own; the sink's numbers of messages and of different recipients must both equal what was accepted.
CPU is that of all our processes, without the sink.
"""

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import source_sink
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
from bench.servers import NotInstalled
from bench.smtp_sink import SmtpSink
from bench.throughput import make_body
from bench.tls_sink import TlsSink
from engine.values.message import Message
from engine.values.stream import Stream

BATCH = 200
IN_FLIGHT = 4
DRAIN_S = 120.0
EXCEPTION = {"domain": "plain.example", "mode": "disabled", "reason": "what TLS is measured against"}


def make_certificate(folder: Path) -> Path:
    """A self-signed certificate and its key, as most MX hosts have them: RSA, 2048 bits."""
    file = folder / "sink.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=sink.test"
    subprocess.run(
        [*command.split(), "-keyout", file, "-out", folder / "cert.pem"], check=True, capture_output=True
    )
    file.write_bytes(file.read_bytes() + (folder / "cert.pem").read_bytes())
    return file


async def submit(client: object, count: int, size: int, domain: str, run: int) -> None:
    firsts = iter(range(0, count, BATCH))

    async def worker() -> None:
        for first in firsts:
            batch = [
                Message(
                    "news@example.com",
                    (f"user{run}-{n}@{domain}",),
                    make_body(n, size),
                    Stream.MARKETING,
                    campaign="bench",
                )
                for n in range(first, min(first + BATCH, count))
            ]
            receipt = await client.submit(batch)  # type: ignore[attr-defined]
            if receipt.errors:
                raise RuntimeError(f"refused: {receipt.errors[0]}")

    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))


class Bench:
    """The runs, on one fleet and one sink."""

    def __init__(self, fleet: BenchFleet, sink: TlsSink, loop: asyncio.AbstractEventLoop) -> None:
        self._fleet = fleet
        self._sink = sink
        self._loop = loop
        self._runs = 0

    def run(self, count: int, size: int, domain: str) -> Measurement:
        self._runs += 1
        self._sink.mark()
        with Meter(ours(sessions=[self._fleet.session()]), exclude=[self._sink.pid]) as meter:
            started = time.monotonic()
            self._loop.run_until_complete(submit(self._fleet.client, count, size, domain, self._runs))
            ended = await_count(self._sink.messages, count, timeout_s=DRAIN_S)
        messages, recipients = self._sink.messages(), self._sink.recipients()
        if messages != count or recipients != count:
            raise Miscounted(count, messages, recipients)
        return Measurement(count, ended - started, meter.usage)

    def secured(self) -> set[tuple[str, str]]:
        """(policy, TLS version) of all sessions, by the region's own counters."""
        snapshot = self._loop.run_until_complete(self._fleet.client.snapshot())
        return {(row["policy"], row["version"]) for row in snapshot["regions"]["bench"]["tls"]}


def main() -> int:
    parser = argparse.ArgumentParser(description="What TLS costs", epilog=__doc__)
    parser.add_argument("--messages", type=int, default=30_000)
    parser.add_argument("--size", type=int, default=10_240)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one short round, to see that all of it works")
    options = parser.parse_args()
    messages, repeats = (5000, 1) if options.quick else (options.messages, options.repeats)
    loop = asyncio.new_event_loop()
    with (
        tempfile.TemporaryDirectory() as folder,
        TlsSink(make_certificate(Path(folder))) as sink,
        SmtpSink() as ceiling,
        BenchFleet(sink.port, tls={"exceptions": [EXCEPTION]}) as fleet,
    ):
        bench = Bench(fleet, sink, loop)
        for domain in ("plain.example", "tls.example"):
            bench.run(1000, options.size, domain)  # starts the pool and its sessions
        plain, tls = "clear text", "TLS 1.3"
        results = compare(
            {
                "source-sink": lambda: source_sink.run(
                    ceiling, messages=messages, size=options.size, sessions=20
                ),
                plain: lambda: bench.run(messages, options.size, "plain.example"),
                tls: lambda: bench.run(messages, options.size, "tls.example"),
            },
            repeats=repeats,
        )
        if bench.secured() != {("exception", ""), ("required", "TLSv1.3")}:
            raise RuntimeError(f"not what was meant to be measured: {bench.secured()}")
    print_results("TLS, durable, unsigned", results)
    of_plain, of_ceiling = ratios(results[tls], results[plain]), ratios(results[tls], results["source-sink"])
    print(f"TLS to clear text: {of_plain}\nTLS to the ceiling: {of_ceiling}")
    write_result(
        "tls-quick" if options.quick else "tls",
        results,
        settings={"messages": messages, "size_bytes": options.size, "yardstick": "source-sink, not durable"},
        is_durable=True,
        further={"tls_to_clear_text": of_plain, "tls_to_ceiling": of_ceiling},
    )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except NotInstalled as error:
        sys.exit(str(error))

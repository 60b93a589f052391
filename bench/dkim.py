"""What DKIM costs: signed against unsigned, end to end and durable, 10 KB, one RSA-2048 signature per message.

    python -m bench.dkim [--messages 30000] [--repeats 3] [--ed25519]

Each run has a fleet of its own (client, Ray, region, pool, four sources, Postfix's smtp-sink): with a `dkim` section or
without, in turn. Between them the bare cost of a signature, one thread and nothing else, and smtp-source straight into
the sink, the ceiling of this machine. A run before the timed ones counts the signatures that arrive.

`overhead`: (our CPU per signed message - our CPU per unsigned one) / CPU of a bare signature. 1.0 would mean that
canonical forms, body hashes, threads and the larger message cost nothing. What runs by the clock and not by the message
(Ray's daemons, timers) counts for longer in the slower run, so `overhead_of_pool` says the same of the pool alone.
"""

import argparse
import asyncio
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from bench.fleet import BenchFleet
from bench.harness import Measurement, Miscounted, compare, print_results, write_result
from bench.smtp_sink import SmtpSink
from bench.source_sink import run as run_source
from bench.throughput import Bench
from engine.dkim.keys import signing_key

SIZE = 10_240
WARM_UP = 2_000
COUNTED = 500
BARE = 3_000
SESSIONS = 20
POOL = "ray::IspPool"  # as much of its name as the kernel keeps


def make_keys(directory: Path, *, ed25519: bool) -> dict[str, Any]:
    """The `dkim` section for example.com, with new keys in that directory."""
    keys: list[tuple[str, Any]] = [("r1", generate_private_key(65537, 2048))]
    if ed25519:
        keys.append(("e1", Ed25519PrivateKey.generate()))
    entries = []
    for selector, key in keys:
        file = directory / f"{selector}.pem"
        file.touch(mode=0o600)
        file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        entries.append({"selector": selector, "file": str(file)})
    return {"domains": [{"domain": "example.com", "keys": entries}]}


def bare(*, ed25519: bool) -> Measurement:
    """Signatures of 1 KB by one thread; `seconds` is CPU time."""
    keys = [signing_key("example.com", "r1", generate_private_key(65537, 2048))]
    if ed25519:
        keys.append(signing_key("example.com", "e1", Ed25519PrivateKey.generate()))
    data = b"x" * 1024
    started = time.process_time()
    for _ in range(BARE):
        for key in keys:
            key.sign(data)
    return Measurement(BARE, time.process_time() - started)


def end_to_end(messages: int, sections: dict[str, Any]) -> Measurement:
    loop = asyncio.new_event_loop()
    with SmtpSink() as sink, BenchFleet(sink.port, **sections) as fleet:
        bench = Bench(fleet, sink, loop)
        bench.plain(WARM_UP, SIZE)  # starts the pool
        return bench.plain(messages, SIZE)


def count_signatures(sections: dict[str, Any]) -> int:
    """Signatures that arrive with COUNTED messages."""
    loop = asyncio.new_event_loop()
    with SmtpSink(dump=True) as sink:
        with BenchFleet(sink.port, **sections) as fleet:
            Bench(fleet, sink, loop).plain(COUNTED, SIZE)
        return sink.dumped().count(b"\nDKIM-Signature:")


def in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """In a process of its own: one can be the driver of only one cluster."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(function, *arguments).result()


def _cpu_s(measurement: Measurement, process: str = "") -> float:
    """CPU seconds per message, of all processes or of those with a name that begins so."""
    usage = measurement.usage
    assert usage is not None
    used_s = (
        sum(s for name, s in usage.cpu_of.items() if name.startswith(process)) if process else usage.cpu_s
    )
    return used_s / measurement.messages


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=30_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ed25519", action="store_true", help="a second signature per message")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as keys, SmtpSink() as sink:
        dkim = {"dkim": make_keys(Path(keys), ed25519=options.ed25519)}
        expected = COUNTED * (1 + options.ed25519)
        found = in_process(count_signatures, dkim)
        if found != expected:
            raise Miscounted(expected, found, found)
        runs: dict[str, Callable[[], Measurement]] = {
            "unsigned": lambda: in_process(end_to_end, options.messages, {}),
            "signed": lambda: in_process(end_to_end, options.messages, dkim),
            "bare signatures": lambda: bare(ed25519=options.ed25519),
            "source to sink": lambda: run_source(
                sink, messages=options.messages, size=SIZE, sessions=SESSIONS
            ),
        }
        results = compare(runs, repeats=options.repeats)
    print_results("DKIM, durable, 10 KB, plain text", results)
    rounds = list(zip(results["signed"], results["unsigned"], results["bare signatures"], strict=True))
    overheads = [(_cpu_s(s) - _cpu_s(u)) * pure.rate for s, u, pure in rounds]
    of_pool = [(_cpu_s(s, POOL) - _cpu_s(u, POOL)) * pure.rate for s, u, pure in rounds]
    shares = [
        signed.rate / ceiling.rate
        for signed, ceiling in zip(results["signed"], results["source to sink"], strict=True)
    ]
    figures = {
        "overhead": {"median": statistics.median(overheads), "each": overheads},
        "overhead_of_pool": {"median": statistics.median(of_pool), "each": of_pool},
        "share_of_ceiling": {"median": statistics.median(shares), "each": shares},
    }
    for name, figure in figures.items():
        print(f"{name}: {figure['median']:.2f}")
    write_result("dkim", results, settings={**vars(options), "size": SIZE, **figures}, is_durable=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

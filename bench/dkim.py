"""What DKIM costs: signed against unsigned, end to end and durable, 10 KB, one RSA-2048 signature per message.

    python -m bench.dkim [--messages 30000] [--repeats 3] [--ed25519] [--pool-only]

Each run has a fleet of its own (client, Ray, region, pool, four sources, Postfix's smtp-sink): with a `dkim` section or
without, in turn. Between them the bare cost of a signature, one thread and nothing else, and smtp-source straight into
the sink, the ceiling of this machine. A run before the timed ones counts the signatures that arrive.

`overhead`: (our CPU per signed message - our CPU per unsigned one) / CPU of a bare signature. 1.0 would mean that
canonical forms, body hashes, threads and the larger message cost nothing. What runs by the clock and not by the message
(Ray's daemons, timers) counts for longer in the slower run, so `overhead_of_pool` says the same of the pool alone.
Where two cores share what they calculate with, a signature costs more while the other one works, as it does in a fleet
that signs: `overhead_of_pool_both` divides by the cost of a bare signature when both cores make them.
`overhead_in_process` says the same of a pool without Ray, region and spool, in this process, in rounds of a second or
two, so that it can be measured on a machine that does other things as well (`--pool-only`: nothing else is).
`overhead_of_signer` is engine/dkim alone, one thread, bodies that all differ: its CPU per message / CPU of a bare
signature in the same round.
"""

import argparse
import asyncio
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from actors.isp_pool import SWITCH_INTERVAL_S
from bench import delivery
from bench.fleet import BenchFleet
from bench.harness import Measurement, Miscounted, compare, print_results, write_result
from bench.smtp_sink import SmtpSink
from bench.source_sink import run as run_source
from bench.throughput import Bench
from engine.config.signing import DkimConfig
from engine.delivery.preparation import BATCH
from engine.dkim.keys import KeyRing, signing_key
from engine.dkim.signer import Signer, Unsigned

SIZE = 10_240
WARM_UP = 2_000
COUNTED = 500
BARE = 3_000
IN_PROCESS = 2_000
SESSIONS = 20
HEAD = (
    b"From: Shop <news@example.com>\r\nTo: user%d@example.org\r\nSubject: news\r\nMIME-Version: 1.0\r\n"
    b"Date: Mon, 01 Jan 2024 00:00:00 +0000\r\nMessage-ID: <%d@example.com>\r\nContent-Type: text/plain\r\n"
)
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


def bare_on_both(*, ed25519: bool) -> Measurement:
    """As `bare`, by two threads at once; `seconds` is CPU time of both."""
    with ThreadPoolExecutor(2) as executor:
        started = time.process_time()
        done = [executor.submit(bare, ed25519=ed25519) for _ in range(2)]
        count = sum(future.result().messages for future in done)
        return Measurement(count, time.process_time() - started)


def signer(sections: dict[str, Any]) -> Measurement:
    """engine/dkim on messages of SIZE, in the batches of a pool; `seconds` is CPU time."""
    it = Signer(KeyRing(DkimConfig.model_validate(sections["dkim"]), time.monotonic))
    line = b"word " * 14 + b"\r\n"
    batches = [
        [
            Unsigned(HEAD % (n, n), b"%d " % n + line * (SIZE // len(line)), 1_800_000_000, 1_801_000_000)
            for n in range(first, first + BATCH)
        ]
        for first in range(0, BARE, BATCH)
    ]
    started = time.process_time()
    for batch in batches:
        fields = it.sign(batch)
        if not all(isinstance(field, bytes) and field for field in fields):
            raise Miscounted(BATCH, 0, 0)
    return Measurement(BATCH * len(batches), time.process_time() - started)


def varied(number: int) -> bytes:
    """A message of SIZE whose body is no other's."""
    line = b"word " * 14 + b"\r\n"
    return HEAD % (number, number) + b"\r\n" + b"%d " % number + line * (SIZE // len(line))


def pool(dkim: DkimConfig | None) -> Measurement:
    """A pool in this process; `seconds` is CPU time."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with SmtpSink() as sink:
        result = uvloop.run(
            delivery.run(sink.port, messages=IN_PROCESS, size=SIZE, sessions=SESSIONS, body=varied, dkim=dkim)
        )
    sys.setswitchinterval(before_s)
    return Measurement(IN_PROCESS, result.cpu_us_per_message * IN_PROCESS / 1e6)


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


def in_process_figures(results: Mapping[str, Sequence[Measurement]]) -> dict[str, Any]:
    """What the runs without a fleet say, by round."""
    found: dict[str, list[float]] = {"overhead_of_signer": [], "overhead_in_process": []}
    found["overhead_in_process_both"] = []
    names = ("bare signatures", "bare signatures on both cores", "signer alone")
    pools = ("pool alone, unsigned", "pool alone, signed")
    for pure, both, own, plain, signed in zip(*[results[name] for name in (*names, *pools)], strict=True):
        extra_s = signed.seconds / signed.messages - plain.seconds / plain.messages
        found["overhead_of_signer"].append(pure.rate / own.rate)
        found["overhead_in_process"].append(extra_s * pure.rate)
        found["overhead_in_process_both"].append(extra_s * both.rate)
    return {name: {"median": statistics.median(each), "each": each} for name, each in found.items()}


def show(figures: Mapping[str, Any]) -> None:
    for name, figure in figures.items():
        print(f"{name}: {figure['median']:.2f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=30_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ed25519", action="store_true", help="a second signature per message")
    parser.add_argument(
        "--pool-only", action="store_true", help="no fleets: what one process costs; not kept"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as keys, SmtpSink() as sink:
        dkim = {"dkim": make_keys(Path(keys), ed25519=options.ed25519)}
        config = DkimConfig.model_validate(dkim["dkim"])
        alone: dict[str, Callable[[], Measurement]] = {
            "bare signatures": lambda: bare(ed25519=options.ed25519),
            "bare signatures on both cores": lambda: bare_on_both(ed25519=options.ed25519),
            "signer alone": lambda: signer(dkim),
            "pool alone, unsigned": lambda: pool(None),
            "pool alone, signed": lambda: pool(config),
        }
        if options.pool_only:
            show(in_process_figures(compare(alone, repeats=options.repeats)))
            return 0
        expected = COUNTED * (1 + options.ed25519)
        found = in_process(count_signatures, dkim)
        if found != expected:
            raise Miscounted(expected, found, found)
        runs: dict[str, Callable[[], Measurement]] = {
            "unsigned": lambda: in_process(end_to_end, options.messages, {}),
            "signed": lambda: in_process(end_to_end, options.messages, dkim),
            **alone,
            "source to sink": lambda: run_source(
                sink, messages=options.messages, size=SIZE, sessions=SESSIONS
            ),
        }
        results = compare(runs, repeats=options.repeats)
    print_results("DKIM, durable, 10 KB, plain text", results)
    rounds = list(zip(results["signed"], results["unsigned"], results["bare signatures"], strict=True))
    overheads = [(_cpu_s(s) - _cpu_s(u)) * pure.rate for s, u, pure in rounds]
    of_pool = [(_cpu_s(s, POOL) - _cpu_s(u, POOL)) * pure.rate for s, u, pure in rounds]
    both = [pure.rate for pure in results["bare signatures on both cores"]]
    of_pool_both = [
        (_cpu_s(s, POOL) - _cpu_s(u, POOL)) * rate for (s, u, _), rate in zip(rounds, both, strict=True)
    ]
    shares = [
        signed.rate / ceiling.rate
        for signed, ceiling in zip(results["signed"], results["source to sink"], strict=True)
    ]
    figures = {
        "overhead": {"median": statistics.median(overheads), "each": overheads},
        "overhead_of_pool": {"median": statistics.median(of_pool), "each": of_pool},
        "overhead_of_pool_both": {"median": statistics.median(of_pool_both), "each": of_pool_both},
        **in_process_figures(results),
        "share_of_ceiling": {"median": statistics.median(shares), "each": shares},
    }
    show(figures)
    write_result("dkim", results, settings={**vars(options), "size": SIZE, **figures}, is_durable=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

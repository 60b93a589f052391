"""Regions that cover for each other: the price of the copies, and what a failure costs the mail that it hits.

    python -m bench.failover [--quick] [--messages 30000] [--repeats 3] [--rounds 5] [--rate 600] [--directory DIR]

Three regions, each a node of a real Ray cluster on this machine (two sources and a pool each), one sink in a
process of its own; durable as always. Every run is a process with a fleet of its own (bench/failover_round.py).

Price: the same messages with `replicas: 0` and `replicas: 1`, in turn, and each round's ratio; the aim is 0.6.

Faults, under a steady load, several rounds each: a region's whole node killed and its disk moved away; the node
stopped (SIGSTOP) and continued; the pool, a source and Fleet killed. `detection_s`: until Fleet calls the region dead,
by Fleet's own clock. `share_gap_s`: the longest time in which nothing arrives of the batches whose first choice is that
region; `share_gap_before_s` the same before the fault. `drain_s`: until all that had a receipt when the fault was made
has arrived. A message with a receipt that does not arrive, or that arrives twice without the mark, fails the bench.

Machines with few cores cannot carry 3,000 messages/s beside three Ray nodes and a sink: the rate is in the result.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from bench.harness import Measurement, Miscounted, print_results, ratios, write_result

KINDS = ("region-kill", "region-freeze", "pool-kill", "source-kill", "fleet-kill")
FIGURES = ("detection_s", "gap_s", "share_gap_s", "share_gap_before_s", "drain_s", "receipt_p99_ms")
RUN_S = 900.0
PREFIX = "FIGURES "


def run(kind: str, options: dict[str, object]) -> dict[str, Any]:
    """One process. RuntimeError, with its last words: it failed."""
    command = [sys.executable, "-m", "bench.failover_round", kind, json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S, check=False)
    for line in done.stdout.splitlines():
        if line.startswith(PREFIX):
            found: dict[str, Any] = json.loads(line.removeprefix(PREFIX))
            return found
    raise RuntimeError(f"{kind} {options}: {done.stderr.strip()[-2000:]}")


def measure_price(options: dict[str, object]) -> Measurement:
    found = run("price", options)
    if found["unique"] != found["messages"]:
        raise Miscounted(found["messages"], found["unique"], found["unique"])
    kept = {name: found[name] for name in ("accepted_s", "receipt_p50_ms", "receipt_p99_ms")}
    return Measurement(found["messages"], found["seconds"], None, kept)


def measure_fault(kind: str, rounds: int, options: dict[str, object]) -> dict[str, object]:
    """A killed node does not come back: each of its rounds has a fleet of its own."""
    if kind == "region-kill":
        parts = [run(kind, {**options, "rounds": 1}) for _ in range(rounds)]
    else:
        parts = [run(kind, {**options, "rounds": rounds})]
    whole = [part["whole"] for part in parts]
    found: dict[str, object] = {
        "rounds": rounds,
        **{
            name: sum(figures[name] for figures in whole)
            for name in ("accepted", "lost", "duplicated", "unmarked")
        },
        "refused": sum(figures["refused"] for figures in whole),
        "errors": sorted({error for part in parts for error in part["errors"]}),
    }
    each = [figures for part in parts for figures in part["rounds"]]
    for name in FIGURES:
        values = [figures[name] for figures in each if figures[name] is not None]
        found[name] = {"median": statistics.median(values), "worst": max(values)} if values else None
    return found


def failures(faults: dict[str, dict[str, Any]]) -> list[str]:
    return [
        f"{kind}: {found[name]} {text}"
        for kind, found in faults.items()
        for name, text in (("lost", "messages lost"), ("unmarked", "sent twice without the mark"))
        if found[name]
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="one short round of each; its result is a file apart"
    )
    parser.add_argument("--messages", type=int, default=30_000)
    parser.add_argument("--repeats", type=int, default=3, help="rounds of the price")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each fault")
    parser.add_argument("--rate", type=float, default=600.0, help="messages/s while faults are made")
    parser.add_argument("--only", choices=("price", *KINDS), action="append", help="not all of it")
    parser.add_argument("--directory", help="where the spools are kept")
    options = parser.parse_args(arguments)
    if options.quick:
        options.messages, options.repeats, options.rounds = 4000, 1, 1
        options.rate = min(options.rate, 100.0)
    wanted = options.only or ["price", *KINDS]
    common: dict[str, object] = {"directory": options.directory}
    prices: dict[str, list[Measurement]] = {"replicas-0": [], "replicas-1": []}
    for number in range(options.repeats if "price" in wanted else 0):
        for replicas in (0, 1):
            found = measure_price({**common, "replicas": replicas, "messages": options.messages})
            prices[f"replicas-{replicas}"].append(found)
            print(
                f"{number + 1}/{options.repeats} replicas {replicas}: {found.rate:,.0f} messages/s",
                flush=True,
            )
    faults: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        if kind in wanted:
            faults[kind] = measure_fault(kind, options.rounds, {**common, "rate": options.rate})
            print(kind, json.dumps(faults[kind]), flush=True)
    results = {name: runs for name, runs in prices.items() if runs}
    further: dict[str, object] = {"faults": faults}
    if results:
        print_results("the price of a copy", results)
        further["replicas_1_to_0"] = ratios(prices["replicas-1"], prices["replicas-0"])
    settings = {key: value for key, value in vars(options).items() if key not in ("directory", "only")}
    is_whole = not options.quick and options.only is None
    path = write_result(
        "failover" if is_whole else "failover-quick",
        results,
        settings=settings,
        is_durable=True,
        further=further,
    )
    print(path)
    problems = failures(faults)
    print("\n".join(problems))
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())

"""Regions that cover for each other: the price of the copies, and what a failure costs the mail that it hits.

    python -m bench.failover [--rounds 5] [--kill-rounds 20] [--rate 3000] [--only KIND ...] [--directory DIR]
    python -m bench.failover --table      # the figures so far, as in the README

Three regions, each a node of a real Ray cluster on this machine (two sources and a pool each), one sink in a
process of its own; durable as always. Every round is a process with a fleet of its own (bench/failover_round.py), and
is in the result (bench/results/failover.json) as soon as it is over: a bench that was interrupted goes on with what is
missing, one with other settings needs --fresh.

Price: the same messages with `replicas: 0` and `replicas: 1`, in turn, and each round's ratio; the aim is 0.6.

Faults, under a steady load: a region's whole node killed and its disk moved away; the node stopped (SIGSTOP) and
continued; the pool, a source and Fleet killed; Ray's head killed with Fleet, and away for five seconds. Pools are
killed when their spares are ready, as they are some seconds after the first use. `detection_s`:
until Fleet calls the region dead, by Fleet's own clock; else until another process has the place of the one that died
(head-kill: until a new Fleet answers, five seconds included). `share_gap_s`: the longest time in which nothing arrives
of the batches whose first choice is that region; `share_gap_before_s` the same before the fault. `drain_s`: until all
that had a receipt when the fault was made has arrived. `receipts_late` of `receipts_after`: calls after the fault that
waited for more than half a second. `in_flight`: at the pools of the region when it was hit; for region-kill batches
of which, by its lost disk, not all was settled. `oldest_twice_s`: how long before the fault what came twice had
arrived. A message with a receipt that does not arrive fails the bench, and so does one that arrives twice without the
mark, or of which the first had come more than half a second before the fault; so does a round that does not get to its
end.

Machines with few cores may not carry the rate beside three Ray nodes and a sink: what was accepted is in the result.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actors.undertaker import Undertaker
from bench.failover_result import PRICE, Result, failures, table
from bench.harness import RESULTS

KINDS = ("region-kill", "region-freeze", "pool-kill", "source-kill", "fleet-kill", "head-kill")
ROUND_S = 600.0
PREFIX = "FIGURES "


def run(kind: str, options: Mapping[str, object]) -> dict[str, Any]:
    """One process. RuntimeError, with its last words: it failed."""
    command = [sys.executable, "-m", "bench.failover_round", kind, json.dumps(options)]
    try:
        with Undertaker():  # a bench that is killed leaves no fleet behind
            done = subprocess.run(command, capture_output=True, text=True, timeout=ROUND_S, check=False)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"no end within {ROUND_S:.0f} s") from None
    for line in done.stdout.splitlines():
        if line.startswith(PREFIX):
            found: dict[str, Any] = json.loads(line.removeprefix(PREFIX))
            return found
    raise RuntimeError(done.stderr.strip()[-2000:] or f"ended with status {done.returncode} and said nothing")


def plan(options: argparse.Namespace) -> list[tuple[str, dict[str, object], int]]:
    """Names in the result, what a round is told, and how many rounds; those of the price in turn."""
    common = {"directory": options.directory}
    found: list[tuple[str, dict[str, object], int]] = []
    if PRICE in options.kinds:
        for name, replicas in (("replicas-0", 0), ("replicas-1", 1)):
            told = {**common, "replicas": replicas, "messages": options.messages}
            found.append((name, told, options.repeats))
    for kind in KINDS:
        if kind in options.kinds:
            rounds = options.kill_rounds if kind == "region-kill" else options.rounds
            found.append((kind, {**common, "rate": options.rate, "after": options.after}, rounds))
    return found


def measure(result: Result, options: argparse.Namespace) -> list[str]:
    """Run what is missing; what went wrong. All kinds in turn, so that an early end leaves something of each."""
    problems = []
    parts = plan(options)
    for number in range(max(rounds for _, _, rounds in parts)):
        for name, told, rounds in parts:
            if not result.count(name) <= number < rounds:
                continue
            began_s = time.monotonic()
            try:
                found = run(PRICE if name.startswith("replicas") else name, told)
            except RuntimeError as error:
                problems.append(f"{name}, round {number + 1}: {error}")
                print(problems[-1], flush=True)
                continue
            result.add(name, found)
            brief = {key: value for key, value in found.items() if key != "errors"}
            print(
                f"{name} {number + 1}/{rounds}, {time.monotonic() - began_s:.0f} s: {json.dumps(brief)}",
                flush=True,
            )
    return problems


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=30_000, help="of a round of the price")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of the price")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each fault")
    parser.add_argument("--kill-rounds", type=int, default=20, help="rounds of region-kill")
    parser.add_argument("--rate", type=float, default=3000.0, help="messages/s while faults are made")
    parser.add_argument("--after", type=float, default=5.0, help="seconds of load after the fault")
    parser.add_argument("--only", choices=(PRICE, *KINDS), action="append", help="not all of it")
    parser.add_argument("--quick", action="store_true", help="one short round of each, in a file of its own")
    parser.add_argument("--fresh", action="store_true", help="forget the rounds that are in the result")
    parser.add_argument("--table", action="store_true", help="print the result as a table, measure nothing")
    parser.add_argument("--result", type=Path, help="another file than bench/results/failover.json")
    parser.add_argument("--directory", help="where the spools are kept")
    options = parser.parse_args(arguments)
    if options.quick:
        options.messages, options.repeats, options.rounds, options.kill_rounds = 4000, 1, 1, 1
        options.rate = min(options.rate, 200.0)
    options.kinds = options.only or [PRICE, *KINDS]
    path = options.result or RESULTS / ("failover-quick.json" if options.quick else "failover.json")
    settings = {"rate": options.rate, "messages": options.messages}
    try:
        result = Result.read(
            path, None if options.table else settings, is_fresh=options.fresh or options.quick
        )
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    problems = [] if options.table else measure(result, options)
    print("\n".join(table(result.document)))
    problems += failures(result.document)
    print("\n".join(problems), file=sys.stderr)
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())

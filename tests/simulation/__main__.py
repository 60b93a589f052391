"""python -m tests.simulation: run many schedules, or one with its trace.

python -m tests.simulation --schedules 100000 --json bench/results/failover_simulation.json
python -m tests.simulation --seed 4711 --trace
"""

import argparse
import functools
import gc
import json
import multiprocessing
import platform
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.simulation.census import ORDERS
from tests.simulation.mutations import MUTATIONS
from tests.simulation.replay import OPTIONS, replay_command
from tests.simulation.schedule import Result, run


def main(words: list[str] | None = None) -> int:
    """`words`: of the command, instead of those with which this process was started."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--schedules", type=int, default=2000, help="how many schedules")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="this schedule alone")
    parser.add_argument("--trace", action="store_true", help="print what happens (with --seed)")
    parser.add_argument("--mutation", choices=sorted(MUTATIONS), help="a broken protocol, to see it found")
    parser.add_argument("--shards", action="store_true", help="some of the nodes are shards of one region")
    parser.add_argument("--gone", action="store_true", help="one of three or four regions does not come back")
    parser.add_argument("--pages", action="store_true", help="all keys are exported in several entries")
    parser.add_argument(
        "--clocks", action="store_true", help="clocks are set back between two starts of a process"
    )
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args(words)
    options = {name: getattr(arguments, name) for name in OPTIONS}
    mutation = {**options, **MUTATIONS.get(arguments.mutation, {})}
    if arguments.seed is not None:
        result = run(arguments.seed, **mutation, trace=print if arguments.trace else None)
        print(result)
        return bool(result.violation)
    started = time.monotonic()
    seeds = range(arguments.first, arguments.first + arguments.schedules)
    if arguments.jobs > 1:
        with multiprocessing.get_context("spawn").Pool(arguments.jobs) as pool:
            results = list(pool.imap_unordered(functools.partial(run, **mutation), seeds, chunksize=200))
    else:
        results = run_all(seeds, mutation)
    seconds = time.monotonic() - started
    failed = sorted((r for r in results if r.violation), key=lambda r: r.seed)
    report = report_of(results, seconds)
    print(json.dumps(report, indent=1))
    for result in failed[:10]:
        print(f"seed {result.seed} {result.kinds}: {result.violation}")
        print(f"  replay: {replay_command(result.seed, mutation=arguments.mutation, **options)}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return bool(failed)


def run_all(seeds: range, mutation: dict[str, Any]) -> list[Result]:
    """One after the other; a schedule's garbage, which refers to itself, is swept after every hundred of them."""
    results = []
    gc.disable()
    for seed in seeds:
        results.append(run(seed, **mutation))
        if results[-1].violation:
            print(f"seed {seed}: {results[-1].violation}", flush=True)
        if len(results) % 100 == 0:
            gc.collect()
        if len(results) % 1000 == 0:
            print(f"{len(results)} schedules", flush=True)
    gc.enable()
    return results


def report_of(results: list[Result], seconds: float) -> dict[str, object]:
    drained = sorted(r.drained_ms for r in results if r.drained_ms >= 0)
    kinds = Counter(kind for r in results for kind in r.kinds)
    return {
        "schedules": len(results),
        "seeds": [min(r.seed for r in results), max(r.seed for r in results)],
        "violations": sum(1 for r in results if r.violation),
        "schedules_with_fault": dict(sorted(kinds.items())),
        "schedules_with_order": {order: sum(order in r.orders for r in results) for order in ORDERS},
        "messages_acknowledged": sum(r.accepted for r in results),
        "messages_sent_twice_all_marked": sum(r.sent_twice for r in results),
        "events": sum(r.events for r in results),
        "drained_after_peace_ms": {
            "median": drained[len(drained) // 2] if drained else None,
            "p99": drained[len(drained) * 99 // 100] if drained else None,
            "worst": drained[-1] if drained else None,
        },
        "seconds": round(seconds, 1),
        "schedules_per_second": round(len(results) / seconds, 1),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }


if __name__ == "__main__":
    sys.exit(main())

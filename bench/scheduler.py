"""The scheduler alone: nanoseconds per decision with 1,000,000 ready messages, 10,000 destinations, 200 sources.

One decision is one message taken. The backlog is steady: after each take of a batch the batch before it is settled
and as many new messages are added; each step is timed by itself, and the figure is that of the takes.

  open      every source has room at once: the cost of order and choice
  rates     each (source, site) has a rate and a daily cap that are seldom met
  tenants   as `rates`, with 20 tenants at each site, half of them with a dedicated source
  crowded   as `tenants`, but all messages are for 500 of the destinations: their sources' rates are mostly used up
  all       as `tenants`, a dedicated, a hybrid or no source of its own for each tenant; reputation weights from 50 to
            1,000; a warm-up cap at half of the pairs, used up at a tenth; a pair in 20, a source in 40 and a netblock
            suspended; a site in 50 suspended for a moment

The messages are spread evenly: one tenant's 1,000,000 are 100 at each destination, 20 tenants' 5 for each at each.
"""

import argparse
import random
import struct
import sys
import time
from collections import deque
from dataclasses import dataclass

from bench.harness import Measurement, compare, print_results, write_result
from native.scheduler import Scheduler

S = 1_000_000_000
ENTRY = struct.Struct("<QqIHHIIQ")
ID = struct.Struct("<Q")
KEY = struct.Struct(">IHIQ")
START = 10 * S
STEP_NS = 200_000  # how far time goes on with each batch
NEVER = 1 << 62
WARM_UP_CAPS = (50, 200, 1000, 5000)


@dataclass(frozen=True, slots=True)
class Load:
    """`sites`: how many of them the messages are for, None for all."""

    interval_ns: int
    daily: int
    tenants: int
    sites: int | None = None
    is_all_on: bool = False


LOADS = {
    "open": Load(interval_ns=0, daily=-1, tenants=1),
    "rates": Load(interval_ns=S, daily=1_000_000, tenants=1),
    "tenants": Load(interval_ns=S, daily=1_000_000, tenants=20),
    "crowded": Load(interval_ns=S, daily=1_000_000, tenants=20, sites=500),
    "all": Load(interval_ns=S, daily=-1, tenants=20, is_all_on=True),
}


@dataclass(frozen=True, slots=True)
class Size:
    ready: int
    sites: int
    sources: int
    batch: int
    decisions: int


def build(load: Load, size: Size) -> tuple[Scheduler, list[int]]:
    """A scheduler with its topology and one flow per (site, tenant) that gets messages."""
    scheduler = Scheduler(seed=1)
    rng = random.Random(2)
    for source in range(size.sources):
        tenancy = tenancy_of(load, source)
        scheduler.set_source(
            source, netblock=source // 8, streams=7, tenancy=tenancy, tenant=source if tenancy else 0
        )
    flows = []
    for site in range(size.sites):
        scheduler.add_site(site, 0)
        for source in range(size.sources):
            daily, weight = load.daily, 1000
            if load.is_all_on:
                daily = rng.choice((-1, -1, -1, -1, -1, 0, *WARM_UP_CAPS))
                weight = rng.randint(50, 1000)
            scheduler.set_limit(
                source, site, interval_ns=load.interval_ns, daily_left=daily, weight=weight, window=100_000
            )
            if load.is_all_on and rng.random() < 0.05:
                scheduler.suspend(source, site, NEVER)
        if load.is_all_on and site % 50 == 0:
            scheduler.suspend_site(site, START + rng.randrange(S // 2))
        if load.sites is None or site < load.sites:
            flows += [scheduler.flow(site, 2, tenant, 0) for tenant in range(load.tenants)]
    if load.is_all_on:
        for source in range(7, size.sources, 40):
            scheduler.suspend(source, -1, NEVER)
        scheduler.suspend_netblock(3, -1, NEVER)
    return scheduler, flows


def tenancy_of(load: Load, source: int) -> int:
    """0 shared, 1 dedicated, 2 hybrid: the first sources belong to the tenant of the same number."""
    if load.is_all_on:
        return source % 3 if source < load.tenants else 0
    return int(load.tenants > 1 and source < load.tenants // 2)


def run(load: Load, size: Size) -> Measurement:
    """Fill, warm up by a tenth, and time takes, settlements and additions."""
    scheduler, flows = build(load, size)
    rng = random.Random(1)
    next_id = 1
    each = size.ready // len(flows)
    for flow in flows:
        scheduler.add(flow, b"".join(KEY.pack(1, 0, 1000, n) for n in range(next_id, next_id + each)))
        next_id += each
    ready = next_id - 1
    earlier: deque[bytes] = deque()
    now = START
    spent = {"take": 0, "settle": 0, "add": 0}
    counted = {"take": 0, "settle": 0, "add": 0}
    decided = 0
    empty = 0
    clock = time.thread_time_ns  # CPU time: other processes of the machine do not count
    while decided < size.decisions:
        if decided < size.decisions // 10:
            spent, counted = dict.fromkeys(spent, 0), dict.fromkeys(counted, 0)
        now += STEP_NS
        begin = clock()
        taken = scheduler.take(0, now, size.batch)
        spent["take"] += clock() - begin
        count = len(taken) // ENTRY.size
        decided += count
        counted["take"] += count
        empty += not count
        if count:
            earlier.append(b"".join(ID.pack(entry[0]) for entry in ENTRY.iter_unpack(taken)))
            keys = b"".join(KEY.pack(1, 0, 1000, n) for n in range(next_id, next_id + count))
            next_id += count
            begin = clock()
            scheduler.add(flows[rng.randrange(len(flows))], keys)
            spent["add"] += clock() - begin
            counted["add"] += count
        if len(earlier) > 20:
            ids = earlier.popleft()
            begin = clock()
            scheduler.settle(ids)
            spent["settle"] += clock() - begin
            counted["settle"] += len(ids) // ID.size
    if scheduler.held() - sum(len(ids) // ID.size for ids in earlier) != ready:
        raise AssertionError("the scheduler lost messages")
    figures = {f"{name}_ns": spent[name] / counted[name] for name in spent}
    figures["empty_takes"] = float(empty)
    figures["parkings_per_decision"] = scheduler.stats()["parkings"] / decided
    return Measurement(counted["take"], spent["take"] / S, None, figures)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ready", type=int, default=1_000_000)
    parser.add_argument("--sites", type=int, default=10_000)
    parser.add_argument("--sources", type=int, default=200)
    parser.add_argument("--batch", type=int, default=200)
    parser.add_argument("--decisions", type=int, default=500_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=LOADS)
    options = parser.parse_args()
    size = Size(options.ready, options.sites, options.sources, options.batch, options.decisions)
    names = [options.only] if options.only else list(LOADS)
    results = compare(
        {name: lambda load=LOADS[name]: run(load, size) for name in names},  # type: ignore[misc]
        repeats=options.repeats,
    )
    print_results("decisions of the scheduler (takes alone)", results)
    for name, measurements in results.items():
        best = sorted(measurements, key=lambda m: m.figures["take_ns"])[len(measurements) // 2]
        print(name, {key: round(value, 2) for key, value in best.figures.items()})
    if not options.only:
        settings = {key: value for key, value in vars(options).items() if key not in ("only", "repeats")}
        write_result("scheduler", results, settings=settings, is_durable=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())

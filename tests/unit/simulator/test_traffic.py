"""The mail of a simulation: nothing is lost by rounding, ids say what they must."""

import random
import struct

import pytest

from engine.simulator.plan import PATTERNS
from engine.simulator.traffic import Arrivals, Flow, Split, attempts_of, due_keys, minute_of
from native.scheduler import Scheduler

KEY = struct.Struct(">IHIQ")


def test_due_keys_are_those_of_the_spool() -> None:
    first = (3 << 56) + (77 << 36) + 250
    keys = due_keys(first, 300, 9, (5 << 32) + 6)
    assert keys == b"".join(KEY.pack(9, 5, 6, first + n) for n in range(300))


def test_a_flow_counts_what_waits_and_numbers_what_goes() -> None:
    flow = Flow(0, "google", 1)
    flow.arrive(5, 10)
    flow.arrive(7, 10)
    flow.arrive(2, 11)
    flow.retry(1000, 4, 9, 3)
    flow.depth += 3
    assert flow.depth == 17
    flow.due(999)
    keys, count = flow.take(13, 100, 0)
    assert count == 13
    ids = [key[3] for key in KEY.iter_unpack(keys)]
    assert [minute_of(id_) for id_ in ids] == [10] * 12 + [11]
    flow.due(1000)
    keys, count = flow.take(13, 113, 0)
    ids = [key[3] for key in KEY.iter_unpack(keys)]
    assert [(attempts_of(id_), minute_of(id_)) for id_ in ids] == [(4, 9)] * 3 + [(0, 11)]
    assert flow.take(5, 200, 0) == (b"", 0)


def test_what_a_scheduler_held_is_found_again() -> None:
    scheduler = Scheduler(seed=1)
    scheduler.set_source(0, netblock=0, streams=7, tenancy=0, tenant=0)
    scheduler.add_site(0, 0)
    scheduler.set_limit(0, 0, interval_ns=0, window=1000)
    number = scheduler.flow(0, 2, 0, 0)
    flow = Flow(0, "google", 1)
    flow.arrive(100, 0)
    for serial in range(0, 100, 10):
        keys, _ = flow.take(10, serial, 0)
        scheduler.add(number, keys)
        taken = scheduler.take(0, serial, 7)
        scheduler.settle(b"".join(taken[at : at + 8] for at in range(0, len(taken), 40)))
        flow.forget_loaded(scheduler.ready(number))
    held = sum(scheduler.contains(id_) for first, count in flow.loaded for id_ in range(first, first + count))
    assert held == scheduler.ready(number) == 30
    assert len(flow.loaded) < 10


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_arrivals_do_not_depend_on_the_steps(pattern: str) -> None:
    rng = random.Random(pattern)
    arrivals = Arrivals(100_003, PATTERNS[pattern], 3_000.0, 200_000.0)
    steps = sorted(rng.uniform(0, 260_000) for _ in range(200))
    counts = [arrivals.by(at) for at in steps]
    assert counts == sorted(counts)
    assert arrivals.by(0) == arrivals.by(3_000.0) == 0
    assert arrivals.by(1e6) == arrivals.by(200_000.0)
    whole = Arrivals(100_003, PATTERNS[pattern], 0.0, 1e9)
    assert [whole.by(86_400.0 * day) for day in (1, 2, 30)] == [100_003 * day for day in (1, 2, 30)]


def test_a_split_loses_nothing_and_keeps_the_weights() -> None:
    rng = random.Random(2)
    split = Split([0.5, 0.3, 0.2, 0.0])
    sums = [0] * 4
    total = 0
    for _ in range(2_000):
        count = rng.randrange(4)
        parts = split.of(count, [True, True, True, True])
        assert sum(parts) == count
        assert min(parts) >= 0
        sums = [a + b for a, b in zip(sums, parts, strict=True)]
        total += count
    assert sums[3] == 0
    assert all(abs(part - total * w) <= 3 for part, w in zip(sums, (0.5, 0.3, 0.2, 0), strict=True))


def test_a_split_uses_what_is_usable() -> None:
    split = Split([1.0, 1.0])
    assert split.of(10, [True, False]) == [10, 0]
    assert split.of(10, [False, False]) == [0, 0]
    assert sum(split.of(11, [True, True])) == 11

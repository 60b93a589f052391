"""The arithmetic of a trial's report."""

import mmap

import pytest

from engine.ops.process import ProcessUsage, process_usage
from engine.trial.figures import Latency, Sample, UsageBook, latency_of, percentile, seconds_until


def reading(pid: int, cpu_s: float, resident: int = 100, anonymous: int = 50) -> ProcessUsage:
    return ProcessUsage(pid=pid, cpu_s=cpu_s, resident_bytes=resident, anonymous_bytes=anonymous)


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [(1, 0.5, 1), (1, 0.99, 1), (2, 0.5, 1), (2, 0.51, 2), (100, 0.5, 50), (100, 0.95, 95), (100, 0.99, 99)],
)
def test_percentiles_are_by_nearest_rank(count: int, share: float, expected: int) -> None:
    assert percentile(range(1, count + 1), share) == expected


def test_latencies_of_any_order() -> None:
    assert latency_of(float(n) for n in range(200, 0, -1)) == Latency(200, 100.0, 190.0, 198.0, 200.0)
    assert latency_of([]) is None


def samples(*counts: tuple[float, int]) -> list[Sample]:
    return [Sample(at_s, 0, 0, delivered, 0) for at_s, delivered in counts]


def test_a_moment_between_two_samples_is_interpolated() -> None:
    found = samples((1.0, 0), (2.0, 100), (3.0, 100), (4.0, 200))
    assert seconds_until(found, "delivered", 50) == 1.5
    assert seconds_until(found, "delivered", 100) == 2.0
    assert seconds_until(found, "delivered", 175) == 3.75
    assert seconds_until(found, "delivered", 201) is None
    assert seconds_until([], "delivered", 1) is None


def test_usage_is_what_was_used_since_the_first_reading() -> None:
    book = UsageBook()
    book.add({"region": reading(1, 10.0, 300, 20)}, is_first=True)
    book.add({"region": reading(1, 11.0, 500, 90), "pool": reading(2, 3.0)})
    book.add({"region": reading(1, 14.0, 400, 10), "pool": reading(2, 5.0)})
    found = book.usage(8.0)
    assert list(found) == ["pool", "region"]  # the largest first; the pool began during the trial
    assert (found["pool"].cpu_s, found["region"].cpu_s) == (5.0, 4.0)
    assert found["region"].cores == 0.5
    assert (found["region"].peak_resident_bytes, found["region"].peak_anonymous_bytes) == (500, 90)


def test_an_actor_that_was_started_again_keeps_what_it_had_used() -> None:
    book = UsageBook()
    book.add({"region": reading(1, 10.0)}, is_first=True)
    book.add({"region": reading(1, 12.0)})
    book.add({"region": reading(7, 1.0)})
    book.add({"region": reading(7, 1.5)})
    usage = book.usage(1.0)["region"]
    assert (usage.cpu_s, usage.restarts) == (3.5, 1)


def test_a_process_tells_what_it_has_used() -> None:
    before = process_usage()
    sum(n * n for n in range(3_000_000))
    # memory of its own: what is allocated may be memory that was freed before
    with mmap.mmap(-1, 30 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as kept:
        kept.write(b"x" * len(kept))
        after = process_usage()
        assert after["cpu_s"] > before["cpu_s"]
        assert after["anonymous_bytes"] - before["anonymous_bytes"] > len(kept) // 2
        assert after["resident_bytes"] >= after["anonymous_bytes"]

"""What held a trial back is what the regions' counters say."""

from typing import Any

import pytest

from engine.config.schema import LimitsConfig
from engine.trial.figures import ActorUsage, Limit
from engine.trial.limits import LimitWatch, cpu_limits, is_held_back, rate_limit

LIMITS = LimitsConfig(pool_credits=1000, batch=200)


def region(name: str = "eu", *, queued: int = 100, held: int = 0, busy_ms: int = 0, **waits: int) -> Any:
    return {
        "region": name,
        "counts": {"queued": queued},
        "outstanding": {"default.0": held},
        "scheduler": waits,
        "spool": {"busy_ms": busy_ms},
    }


def watched(*regions: Any) -> dict[str, Limit]:
    """The limits after these snapshots of one region, a second apart."""
    watch = LimitWatch(LIMITS)
    for number, one in enumerate(regions):
        watch.add({"regions": {one["region"]: one}}, 1.0 if number else 0.0)
    return {limit.name: limit for limit in watch.limits()}


@pytest.mark.parametrize(
    ("counter", "name"),
    [
        ("waits_rate", "rate"),
        ("waits_window", "connections"),
        ("waits_daily", "daily caps"),
        ("waits_suspended", "suspensions"),
    ],
)
def test_a_wait_counts_for_the_interval_in_which_it_was(counter: str, name: str) -> None:
    found = watched(*(region(**{counter: waits}) for waits in (5, 8, 8, 8, 9)))
    assert found[name].share == 0.5
    assert found[name].said.endswith(": 4 times")
    assert all(limit.share == 0.0 for other, limit in found.items() if other != name)


def test_time_without_mail_is_no_time_of_the_trial() -> None:
    found = watched(
        region(waits_rate=0), region(waits_rate=1), region(queued=0, waits_rate=9), region(queued=0)
    )
    assert found["rate"].share == 1.0


def test_credits_are_met_when_a_pool_is_full_and_more_is_queued() -> None:
    full, more = region(held=900, queued=2000), region(held=700, queued=2000)
    all_held = region(held=900, queued=900)
    assert watched(full, full, more, all_held, full)["credits"].share == 0.5


def test_the_spool_is_judged_by_its_writers_time() -> None:
    assert watched(region(busy_ms=100), region(busy_ms=1000), region(busy_ms=1700))["spool"].share == 0.8


def test_the_busiest_region_counts() -> None:
    watch = LimitWatch(LIMITS)
    for busy in (0, 900):
        watch.add({"regions": {"eu": region(busy_ms=busy), "us": region("us", busy_ms=busy // 9)}}, 1.0)
    assert {limit.name: limit.share for limit in watch.limits()}["spool"] == 0.9


def test_a_region_that_was_started_again_counts_from_zero_and_a_silent_one_not_at_all() -> None:
    assert watched(region(waits_rate=50), region(waits_rate=2))["rate"].said.endswith(": 2 times")
    watch = LimitWatch(LIMITS)
    for one in (region(), {"region": "eu", "error": "gone"}, region(waits_rate=7)):
        watch.add({"regions": {"eu": one}}, 1.0)
    assert all(limit.share == 0.0 for limit in watch.limits())


def test_processes_with_a_core_to_themselves_are_named() -> None:
    actors = {
        "region:eu": ActorUsage(9.0, 0.95, 0, 0, 0),
        "fleet": ActorUsage(0.1, 0.01, 0, 0, 0),
        "client": ActorUsage(1.0, 0.3, 0, 0, 0),
    }
    found = {limit.name: limit for limit in cpu_limits(actors, 0.5)}
    assert set(found) == {"CPU of region:eu", "client", "machine"}
    assert [name for name, limit in found.items() if is_held_back(limit)] == ["CPU of region:eu"]


def test_the_rate_asked_for_held_back_if_it_was_kept() -> None:
    assert is_held_back(rate_limit(100.0, 99.0))
    assert not is_held_back(rate_limit(100.0, 80.0))
    assert not is_held_back(rate_limit(0.0, 5000.0))

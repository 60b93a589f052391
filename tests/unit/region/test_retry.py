"""Retry times: growth, bounds, jitter, the explicit schedule, the last try at the expiry."""

import random

import pytest

from engine.region.retry import RetrySchedule

MINUTE = 60_000


def schedule(**changes: object) -> RetrySchedule:
    fields: dict[str, object] = {
        "first_ms": 5 * MINUTE,
        "factor": 2.0,
        "max_ms": 240 * MINUTE,
        "jitter": 0.0,
        "expire_ms": 7200 * MINUTE,
    }
    return RetrySchedule(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(("attempts", "minutes"), [(1, 5), (2, 10), (3, 20), (6, 160), (7, 240), (500, 240)])
def test_waits_double_up_to_the_maximum(attempts: int, minutes: int) -> None:
    assert schedule().delay_ms(attempts, random.Random(1)) == minutes * MINUTE


def test_jitter_stays_within_its_share_and_is_used() -> None:
    delays = {schedule(jitter=0.2).delay_ms(1, random.Random(seed)) for seed in range(200)}
    assert len(delays) > 100
    assert min(delays) >= 4 * MINUTE
    assert max(delays) <= 6 * MINUTE


def test_explicit_schedule_repeats_its_last_entry() -> None:
    explicit = schedule(schedule_ms=(1000, 2000, 3000))
    assert [explicit.delay_ms(n, random.Random(1)) for n in (1, 2, 3, 4, 90)] == [
        1000,
        2000,
        3000,
        3000,
        3000,
    ]


def test_last_try_falls_on_the_expiry_and_then_there_is_none() -> None:
    rng = random.Random(1)
    assert schedule().next_due_ms(now_ms=0, attempts=1, expires_ms=MINUTE, rng=rng) == MINUTE
    assert schedule().next_due_ms(now_ms=MINUTE, attempts=2, expires_ms=MINUTE, rng=rng) is None

"""The timer wheel against its promise: never early, at most one tick late, constant cost, handles used once."""

import pytest

from native.wheel import Wheel

TICK = 1 << 20
START = 1_800_000_000_000 * 1_000_000


@pytest.mark.parametrize(
    "ticks",
    [1, 2, 255, 256, 257, 65_535, 65_536, 65_537, 1 << 24, (1 << 24) + 1, (1 << 32) + 3, (1 << 38) - 2],
)
@pytest.mark.parametrize("start", [0, 7, START, (255 << 32) * TICK + 12_345 * TICK])
def test_a_timer_fires_at_its_tick_on_every_level(ticks: int, start: int) -> None:
    wheel = Wheel(start)
    due = start + ticks * TICK - 5
    wheel.add(due, 42)
    assert wheel.advance(due - TICK, 10) == []
    assert wheel.advance(due + TICK, 10) == [42]
    assert wheel.advance(due + 1000 * TICK, 10) == []


def test_a_timer_never_fires_early_and_at_most_one_tick_late() -> None:
    wheel = Wheel(START)
    due = START + 3 * TICK + 1
    wheel.add(due, 1)
    assert wheel.advance(due - 1, 10) == []
    assert wheel.advance(due + TICK, 10) == [1]


def test_what_is_overdue_fires_at_the_next_tick() -> None:
    wheel = Wheel(START)
    wheel.add(START - 10**12, 1)
    assert wheel.advance(START, 10) == []
    assert wheel.advance(START + TICK, 10) == [1]


def test_earlier_ticks_fire_first_and_no_more_than_the_limit() -> None:
    wheel = Wheel(0)
    for ticks in (900, 3, 70_000, 260, 1):
        wheel.add(ticks * TICK, ticks)
    assert wheel.advance(10**6 * TICK, 2) == [1, 3]
    assert wheel.advance(10**6 * TICK, 10) == [260, 900, 70_000]
    assert len(wheel) == 0


def test_a_timer_can_be_added_while_time_stands_inside_a_long_stretch() -> None:
    wheel = Wheel(0)
    wheel.advance(1000 * TICK, 1)
    wheel.add(1001 * TICK, 1)
    wheel.add(1256 * TICK, 2)
    assert wheel.advance(1001 * TICK, 9) == [1]
    assert wheel.advance(1255 * TICK, 9) == []
    assert wheel.advance(1256 * TICK, 9) == [2]


def test_a_cancelled_timer_does_not_fire_and_cancels_once() -> None:
    wheel = Wheel(0)
    first, second, third = (wheel.add(5 * TICK, n) for n in range(3))
    assert wheel.cancel(second)
    assert not wheel.cancel(second)
    assert sorted(wheel.advance(5 * TICK, 10)) == [0, 2]
    assert not wheel.cancel(first)
    assert not wheel.cancel(third)


def test_an_old_handle_does_not_cancel_the_timer_that_took_its_place() -> None:
    wheel = Wheel(0)
    old = wheel.add(5 * TICK, 1)
    wheel.cancel(old)
    wheel.add(5 * TICK, 2)
    assert not wheel.cancel(old)
    assert not wheel.cancel(-1)
    assert not wheel.cancel(10**6)
    assert wheel.advance(5 * TICK, 10) == [2]


def test_next_due_is_exact_when_near_and_never_after_the_earliest() -> None:
    wheel = Wheel(START)
    assert wheel.next_due_ns() == -1
    far = wheel.add(START + 10**15, 1)
    assert START < wheel.next_due_ns() <= START + 10**15
    near = wheel.add(START + 2 * TICK, 2)
    assert START + 2 * TICK <= wheel.next_due_ns() < START + 3 * TICK
    wheel.cancel(near)
    assert START < wheel.next_due_ns() <= START + 10**15
    wheel.cancel(far)
    assert wheel.next_due_ns() == -1


def test_following_next_due_reaches_a_far_timer_in_a_few_steps() -> None:
    wheel = Wheel(START)
    due = START + 40 * 86_400 * 10**9
    wheel.add(due, 9)
    steps = 0
    fired: list[int] = []
    while not fired:
        steps += 1
        fired = wheel.advance(wheel.next_due_ns(), 10)
    assert steps <= 6


def test_a_due_time_beyond_the_wheel_is_brought_nearer_and_does_not_overflow() -> None:
    wheel = Wheel(START)
    wheel.add((1 << 63) - 1, 1)
    assert START < wheel.next_due_ns() < 1 << 62


def test_the_highest_level_goes_round() -> None:
    start = ((1 << 40) - 2) * TICK
    wheel = Wheel(start)
    wheel.add(start + 7 * TICK, 1)
    wheel.add(start + (5 << 32) * TICK, 2)
    assert 0 < wheel.next_due_ns() <= start + 7 * TICK
    assert wheel.advance(start + 6 * TICK, 10) == []
    assert wheel.advance(start + 7 * TICK, 10) == [1]
    assert wheel.advance(start + (5 << 32) * TICK, 10) == [2]


def test_a_clock_that_goes_back_fires_nothing_and_breaks_nothing() -> None:
    wheel = Wheel(START)
    wheel.advance(START + 100 * TICK, 1)
    wheel.add(START + 50 * TICK, 1)
    assert wheel.advance(START, 10) == []
    assert wheel.advance(START + 101 * TICK, 10) == [1]


def test_many_timers_all_fire_once() -> None:
    wheel = Wheel(0)
    count = 5000
    for n in range(count):
        wheel.add((n * 7919 % 100_003) * TICK, n)
    assert len(wheel) == count
    fired: list[int] = []
    for now in range(0, 100_004, 997):
        due = wheel.advance(now * TICK, count)
        assert all(n * 7919 % 100_003 <= now for n in due)
        fired += due
    fired += wheel.advance(100_004 * TICK, count)
    assert sorted(fired) == list(range(count))

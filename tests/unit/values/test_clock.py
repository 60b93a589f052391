"""The steady clock follows steps of the wall clock slowly, and time itself exactly."""

from engine.values.clock import SteadyClock
from tests.support.clock import ManualClock


def test_a_step_forward_does_not_jump() -> None:
    base = ManualClock(wall_ms=1_000_000)
    clock = SteadyClock(base)
    base.step_wall(3600)
    assert clock.wall_ms() == 1_000_000
    base.advance(10)
    assert 1_010_000 <= clock.wall_ms() <= 1_010_100 + 1


def test_a_step_back_never_runs_backwards() -> None:
    base = ManualClock(wall_ms=1_000_000)
    clock = SteadyClock(base)
    base.step_wall(-3600)
    times = []
    for _ in range(100):
        base.advance(0.5)
        times.append(clock.wall_ms())
    assert times == sorted(times)


def test_it_arrives_at_the_wall_clock_in_the_end() -> None:
    base = ManualClock(wall_ms=1_000_000)
    clock = SteadyClock(base)
    base.step_wall(2)
    for _ in range(400):
        base.advance(1)
        clock.wall_ms()
    assert abs(clock.wall_ms() - base.wall_ms()) <= 1

"""The clock Protocol: every service gets its time from one, so that tests and the simulator can own it."""

import time
from typing import Protocol


class Clock(Protocol):
    def wall_ms(self) -> int:
        """Unix milliseconds, for what is stored."""

    def monotonic_ns(self) -> int:
        """CLOCK_MONOTONIC nanoseconds, comparable between processes of one host, for intervals."""


class SystemClock:
    """The machine's clocks."""

    __slots__ = ()

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()


class SteadyClock:
    """Wall time that never jumps: it follows the monotonic clock and approaches the machine's wall clock slowly.

    A step of the wall clock (NTP, an operator) must neither fire nor hold a whole queue at once. The offset between
    the two clocks is corrected by at most `MAX_SLEW` of the time that passed.
    """

    __slots__ = ("_base", "_last_ns", "_offset_ms")

    MAX_SLEW = 0.01

    def __init__(self, base: Clock | None = None) -> None:
        self._base: Clock = base or SystemClock()
        self._last_ns = self._base.monotonic_ns()
        self._offset_ms = self._base.wall_ms() - self._last_ns / 1e6

    def wall_ms(self) -> int:
        now_ns = self._base.monotonic_ns()
        room_ms = (now_ns - self._last_ns) / 1e6 * self.MAX_SLEW
        if room_ms >= 1.0:
            error_ms = self._base.wall_ms() - (now_ns / 1e6 + self._offset_ms)
            self._offset_ms += max(-room_ms, min(room_ms, error_ms))
            self._last_ns = now_ns
        return round(now_ns / 1e6 + self._offset_ms)

    def monotonic_ns(self) -> int:
        return self._base.monotonic_ns()

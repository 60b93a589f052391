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

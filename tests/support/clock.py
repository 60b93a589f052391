"""Clocks that tests own."""

from engine.values.clock import Clock


class ManualClock:
    """A clock that moves only when told."""

    def __init__(self, wall_ms: int = 1_800_000_000_000, monotonic_ns: int = 1_000_000_000) -> None:
        self._wall_ms = wall_ms
        self._monotonic_ns = monotonic_ns

    def wall_ms(self) -> int:
        return self._wall_ms

    def monotonic_ns(self) -> int:
        return self._monotonic_ns

    def advance(self, seconds: float) -> None:
        self._wall_ms += round(seconds * 1e3)
        self._monotonic_ns += round(seconds * 1e9)

    def step_wall(self, seconds: float) -> None:
        """A jump of the wall clock alone, as an NTP step makes."""
        self._wall_ms += round(seconds * 1e3)


class ShiftedClock:
    """A clock that runs, and can be put forward."""

    def __init__(self, base: Clock) -> None:
        self._base = base
        self._shift_s = 0.0

    def wall_ms(self) -> int:
        return self._base.wall_ms() + round(self._shift_s * 1e3)

    def monotonic_ns(self) -> int:
        return self._base.monotonic_ns() + round(self._shift_s * 1e9)

    def shift(self, seconds: float) -> None:
        self._shift_s += seconds


class BehindClock:
    """A machine's clock whose wall time has been set back."""

    def __init__(self, base: Clock, seconds: float) -> None:
        self._base = base
        self._behind_ms = round(seconds * 1e3)

    def wall_ms(self) -> int:
        return self._base.wall_ms() - self._behind_ms

    def monotonic_ns(self) -> int:
        return self._base.monotonic_ns()

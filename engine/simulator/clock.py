"""A clock that the simulation moves."""


class VirtualClock:
    """Both clocks start together; only `step_wall` parts them. Starts at `start_ms` (unix milliseconds)."""

    __slots__ = ("_ns", "_start_ms")

    def __init__(self, start_ms: int) -> None:
        self._start_ms = start_ms
        self._ns = 0

    def wall_ms(self) -> int:
        return self._start_ms + self._ns // 1_000_000

    def monotonic_ns(self) -> int:
        return self._ns

    def move_to(self, ns: int) -> None:
        """Nanoseconds since the start; never back."""
        if ns < self._ns:
            raise ValueError(f"clock: allowed is a time from {self._ns} ns on, got {ns}")
        self._ns = ns

    def step_wall(self, ms: int) -> None:
        """Somebody sets the wall clock forward or back."""
        self._start_ms += ms

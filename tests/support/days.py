"""Days in seconds for a live region: its clock is put forward from one possible message to the next."""

from engine.region.region import Region
from engine.region.sites import DAY_MS
from engine.values.clock import SteadyClock
from tests.support.clock import ShiftedClock
from tests.support.region import until

HOUR_S = 3600


class Days(ShiftedClock):
    """A clock that is put forward, and knows what it showed at any time."""

    def __init__(self) -> None:
        super().__init__(SteadyClock())
        self._real = SteadyClock()
        self._shifts: list[tuple[int, float]] = [(0, 0.0)]

    def shift(self, seconds: float) -> None:
        super().shift(seconds)
        self._shifts.append((self._real.monotonic_ns(), self._shift_s))

    def showed_ms(self, real_ns: int) -> int:
        """The wall clock at a monotonic time of this machine."""
        shift_s = next(shift_s for since_ns, shift_s in reversed(self._shifts) if since_ns <= real_ns)
        since_ms = (real_ns - self._real.monotonic_ns()) / 1e6
        return round(self._real.wall_ms() + since_ms + shift_s * 1e3)

    def to_time_of_day(self, hour: float) -> None:
        """Forward to the next such time, UTC."""
        self.shift((hour * HOUR_S - self.wall_ms() / 1000) % 86_400)


class Run:
    """A region, and its clock put forward from one possible message to the next."""

    def __init__(self, region: Region, clock: Days) -> None:
        self.region = region
        self.clock = clock

    def _wakes(self) -> list[int]:
        """When each pool may be given something, ns from now; 0 for now."""
        now_ns = self.clock.monotonic_ns()
        pools = range(len(self.region.parts.sites.pools))
        found = [self.region.parts.scheduler.next_wake_ns(pool) for pool in pools]
        return [max(0, at_ns - now_ns) for at_ns in found if at_ns >= 0]

    def _is_quiet(self) -> bool:
        under_way = sum(self.region.parts.dispatcher.outstanding().values())
        return not under_way and all(self._wakes()) and bool(self.region.parts.sites.opened())

    async def _rest(self) -> None:
        """Until nothing is under way, and what happened is on disk and known to the sources' owners."""
        await until(self._is_quiet)
        await self.region.parts.observer.exchange()

    def _put_forward(self, seconds: float) -> None:
        self.clock.shift(seconds)
        self.region.parts.dispatcher.wake_all()

    async def to_the_end_of_the_day(self) -> None:
        await self._rest()
        while True:
            midnight_s = DAY_MS / 1000 - self.clock.wall_ms() % DAY_MS / 1000
            wait_s = min((ns / 1e9 for ns in self._wakes()), default=midnight_s)
            if wait_s >= midnight_s:
                break
            self._put_forward(wait_s + 0.001)
            await until(self._is_quiet)
        await self._rest()  # the owners know what the day was
        self._put_forward(midnight_s + 1)
        await self._rest()  # and begin the next

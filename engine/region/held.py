"""Mail that is due and waits by plan: for tomorrow's cap, or for its turn at the slow pace of a warm-up.

Nothing is wrong with it, so it is told apart from what is ready. By plan it waits if no source that may carry it can
send to its site now, or only at a slow pace, and a cap or a pace is a reason; what waits for the end of suspensions
alone does not.

Asked by a walk over all spool queues: an answer holds for one walk (`begin`), and what the answers have cost is told.
"""

from engine.region.paths import Paths
from engine.region.sites import Sites
from engine.region.windows import Windows
from engine.values.clock import Clock
from native.scheduler import Scheduler


class HeldMail:
    """See the module docstring. A pace is slow if messages of a source are `slow_s` apart."""

    def __init__(
        self,
        *,
        windows: Windows,
        scheduler: Scheduler,
        sites: Sites,
        paths: Paths,
        clock: Clock,
        slow_s: float,
    ) -> None:
        self._windows = windows
        self._scheduler = scheduler
        self._sites = sites
        self._paths = paths
        self._clock = clock
        self._slow_ns = round(slow_s * 1e9)
        self._carriers: dict[tuple[int, str], list[int]] = {}
        self._answers: dict[tuple[int, int, str], bool] = {}
        self._cost = 0

    def begin(self) -> None:
        """A walk begins: nothing is known."""
        self._carriers.clear()
        self._answers.clear()

    def take_cost(self) -> int:
        """How many sources have been looked at since the last call."""
        cost, self._cost = self._cost, 0
        return cost

    def holds(self, number: int) -> bool:
        """Whether what is due in this spool queue waits by plan."""
        queue = self._windows.get(number)
        if queue is None or queue.flow < 0:
            return False
        site = self._scheduler.site_of(queue.flow)
        path = site, queue.stream, queue.tenant
        answer = self._answers.get(path)
        if answer is None:
            answer = self._answers[path] = self._is_held(*path)
        return answer

    def _is_held(self, site: int, stream: int, tenant: str) -> bool:
        sources = self._carriers.get((stream, tenant))
        if sources is None:
            sources = self._carriers[stream, tenant] = self._paths.may_carry(stream, tenant)
            self._cost += len(self._sites.sources)
        self._cost += len(sources)
        name = self._sites.site(site).name
        return self._paths.waits_by_plan(name, sources, self._clock.wall_ms(), self._slow_ns)

"""How long what goes next has been ready, by path and by site: a fact of now, where a forecast would be a guess.

What a pool has does not wait, nor what is not due. A flow's messages leave in the order in which they have come, so
the one that goes next is as good as the oldest.
"""

from collections.abc import Collection

from engine.region.flows import Flows
from engine.region.need import Path
from engine.region.sites import Sites
from engine.region.windows import Windows


class Waits:
    """See the module docstring. What the answers have cost is told (`take_cost`), in flows."""

    def __init__(self, *, flows: Flows, windows: Windows, sites: Sites) -> None:
        self._flows = flows
        self._windows = windows
        self._sites = sites
        self._cost = 0

    def waited_ms(self, path: Path, now_ms: int) -> int:
        """Of all flows of a path, the longest; 0 if nothing is ready there."""
        site, stream, tenant = path
        if not self._sites.known(site) or tenant not in self._sites.tenants:
            return 0
        numbers = self._flows.of_path(self._sites.number(site), stream, self._sites.tenants.number(tenant))
        return self._longest(numbers, now_ms)

    def before_ms(self, site: str, stream: int, now_ms: int) -> int:
        """Of all mail that goes to a site in this stream or in one that is served first, the longest."""
        if not self._sites.known(site):
            return 0
        return max(
            (
                self._longest(numbers, now_ms)
                for (other, _), numbers in self._flows.at_site(self._sites.number(site)).items()
                if other <= stream
            ),
            default=0,
        )

    def unrouted_ms(self, now_ms: int) -> int:
        """Of all mail whose site is not known yet, the longest: what a region takes may have to stand there, too."""
        since_ms = self._windows.unrouted_since()
        return 0 if since_ms is None else max(0, now_ms - since_ms)

    def _longest(self, numbers: Collection[int], now_ms: int) -> int:
        self._cost += len(numbers)
        since = [since_ms for flow in numbers if (since_ms := self._windows.ready_since(flow)) is not None]
        return max(0, now_ms - min(since)) if since else 0

    def take_cost(self) -> int:
        """How many flows have been looked at since the last call."""
        cost, self._cost = self._cost, 0
        return cost

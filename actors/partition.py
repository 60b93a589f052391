"""A partition on purpose: calls of the failover protocol to and from one region are lost, for a drill.

Only `RegionActor.cut` turns it on, for a minute at most, and it ends by itself in the region's own process: a drill
that dies leaves none behind, and neither does a region that is started anew. What a client submits still arrives: a
partition between regions is not one between a region and its clients.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from actors.ports import NodeServices
from engine.failover.handover import Reply, Request
from engine.failover.messages import Message

LONGEST_S = 60.0
BOTH, IN, OUT = "both", "in", "out"
WAYS = (BOTH, IN, OUT)


class Lost(ConnectionError):
    """The call did not get through."""


@dataclass(slots=True)
class Partition:
    """`way`: "in" is lost on its way to this region, "out" from it. `now_s`: monotonic seconds."""

    now_s: Callable[[], float]
    _until_s: float = 0.0
    _way: str = BOTH

    def cut(self, seconds: float, way: str) -> None:
        """From now on; what was cut before is over. ValueError: not a way, or not a time."""
        if way not in WAYS:
            raise ValueError(f"way: {way!r}, allowed are {', '.join(WAYS)}")
        if not 0 <= seconds <= LONGEST_S:
            raise ValueError(f"seconds: {seconds:g}, allowed is 0 to {LONGEST_S:g}")
        self._until_s = self.now_s() + seconds
        self._way = way

    def loses(self, way: str) -> bool:
        """Whether a call that way ("in" or "out") is lost now."""
        return self.now_s() < self._until_s and self._way in (BOTH, way)

    def check(self, way: str) -> None:
        """Lost, if it is."""
        if self.loses(way):
            raise Lost(f"cut off by a drill ({self._way})")


class PartedLink:
    """How a region reaches its peers, with the partition in between."""

    def __init__(self, services: NodeServices, partition: Partition) -> None:
        self._services = services
        self._partition = partition

    async def tell(self, region: str, sender: str, messages: Sequence[Message]) -> None:
        self._partition.check(OUT)
        await self._services.tell(region, sender, messages)

    async def hand_over(self, region: str, request: Request) -> Reply | None:
        self._partition.check(OUT)
        reply = await self._services.hand_over(region, request)
        self._partition.check(IN)
        return reply

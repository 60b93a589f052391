"""Which orders of failures a schedule went through: what fails while what else is under way.

Only what happens after the fleet has once come up counts. The report of `python -m tests.simulation` tells how many
schedules had each, so that a promise that is kept "whatever the order" is seen to have been tried.
"""

from collections.abc import Mapping
from typing import Protocol

from engine.failover.messages import AWAY, Standing
from engine.failover.region import RegionMachine
from tests.support.failover_store import Disk

ORDERS = (
    "a region dies while another is dead",
    "a region dies while another returns",
    "a region dies that has adopted",
    "a region returns before it is adopted from",
    "crash or freeze amid adoption",
    "crash or freeze amid its return",
    "crash or freeze of one that has adopted, the owner dead",
    "disk lost while another is away",
    "disk lost amid adoption",
    "disk lost of one that has adopted, the owner dead",
    "fleet restarts while one is dead",
    "fleet restarts amid adoption",
    "fleet restarts amid a return",
    "network or disk fails amid adoption",
    "clock jumps amid adoption",
    "clock jumps while one is away",
)


class Region(Protocol):
    """What the census looks at: a process, or None, and its disk."""

    machine: RegionMachine | None
    disk: Disk


class Census:
    """Of one schedule. `orders`: those it has had, of ORDERS."""

    def __init__(self, nodes: Mapping[str, Region]) -> None:
        self._nodes = nodes
        self._standing: dict[str, Standing] = {}
        self._unseen = set(nodes)  # regions that have not been live yet
        self.orders: set[str] = set()

    def _see(self, *found: tuple[str, bool]) -> None:
        self.orders.update(order for order, is_so in found if is_so)

    def changed(self, region: str, standing: Standing) -> None:
        """Fleet has changed a region's standing."""
        others = {name: other for name, other in self._standing.items() if name != region}
        self._standing[region] = standing
        if standing is Standing.LIVE:
            self._unseen.discard(region)
        if self._unseen:
            return
        if standing is Standing.DEAD:
            self._see(
                ("a region dies while another is dead", Standing.DEAD in others.values()),
                ("a region dies while another returns", Standing.RETURNING in others.values()),
                ("a region dies that has adopted", _has_adopted(self._nodes[region])),
            )
        if standing is Standing.RETURNING:
            copies = [n.disk.copies.get(region) for n in self._nodes.values() if n.machine is not None]
            self._see(("a region returns before it is adopted from", any(copies)))

    def fault(self, kind: str, name: str) -> None:
        """It is about to happen."""
        if self._unseen:
            return
        node = self._nodes[name]
        others = [standing for region, standing in self._standing.items() if region != name]
        is_dead = Standing.DEAD in self._standing.values()
        is_away = any(standing in AWAY for standing in self._standing.values())
        adopting = [n.name for n in self._nodes.values() if self._is_adopting(n)]
        one_that_has = _has_adopted(node) and Standing.DEAD in others
        match kind:
            case "crash" | "freeze":
                self._see(
                    ("crash or freeze amid adoption", name in adopting),
                    ("crash or freeze amid its return", self._standing[name] is Standing.RETURNING),
                    ("crash or freeze of one that has adopted, the owner dead", one_that_has),
                )
            case "disk":
                self._see(
                    ("disk lost while another is away", any(standing in AWAY for standing in others)),
                    ("disk lost amid adoption", name in adopting),
                    ("disk lost of one that has adopted, the owner dead", one_that_has),
                )
            case "fleet":
                self._see(
                    ("fleet restarts while one is dead", is_dead),
                    ("fleet restarts amid adoption", bool(adopting)),
                    ("fleet restarts amid a return", Standing.RETURNING in self._standing.values()),
                )
            case "clock":
                self._see(
                    ("clock jumps amid adoption", bool(adopting)),
                    ("clock jumps while one is away", is_away),
                )
            case _:
                self._see(("network or disk fails amid adoption", bool(adopting)))

    def _is_adopting(self, node: Region) -> bool:
        """Whether it has begun to, or will with Fleet's next beat."""
        if node.machine is None:
            return False
        dead = (owner for owner in node.disk.copies if self._standing.get(owner) is Standing.DEAD)
        return node.machine.standby.is_adopting() or any(node.disk.copies[owner] for owner in dead)


def _has_adopted(node: Region) -> bool:
    return any(id_ >> 48 != node.disk.number for ids in (node.disk.owned, node.disk.final) for id_ in ids)

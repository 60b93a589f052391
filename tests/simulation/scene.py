"""A stage for failures that are written down by hand: three regions, cast by whose copies are where."""

from collections.abc import Callable

from engine.failover.messages import Copy, Data, Message
from engine.failover.region import RegionMachine
from engine.failover.spans import ids_of
from engine.failover.timing import MS
from tests.simulation.world import Request, World
from tests.support.failover_store import Disk

KEY = b"%016d" % 7
SEEDS = range(12)
FAR = 60_000 * MS

Rule = Callable[[str, str, Message], bool]


def no(kind: type, source: str, target: str = "") -> Rule:
    """What of this kind a region sends, to one region or to all, does not arrive."""
    return lambda s, t, m: s == source and target in ("", t) and isinstance(m, kind)


def no_copies(source: str) -> Rule:
    """Keys arrive, messages do not."""
    return lambda s, _, m: (
        s == source and isinstance(m, Data) and isinstance(m.entry, Copy) and bool(m.entry.spans)
    )


def cut(name: str) -> Rule:
    """Nothing comes to this region, and nothing from it."""
    return lambda s, t, _: name in (s, t)


class Scene:
    """Three regions: `owner`, its `standby`, and the third, `other`. `rules`: which messages do not arrive."""

    def __init__(
        self,
        seed: int,
        keys_at_once: int = 0,
        *,
        regions: int = 3,
        accept_local: bool = False,
        machine: type[RegionMachine] = RegionMachine,
    ) -> None:
        self.world = World(
            seed, regions=regions, accept_local=accept_local, keys_at_once=keys_at_once, machine=machine
        )
        self.rules: list[Rule] = []
        send = self.world.send

        def sift(source: str, target: str, message: Message) -> None:
            if not any(rule(source, target, message) for rule in self.rules):
                send(source, target, message)

        self.world.send = sift  # type: ignore[method-assign]
        self.after(2500)
        self.owner = self.standby = self.other = ""

    def after(self, ms: int) -> None:
        self.world.run(self.world.now + ms * MS)

    def cast(self, *, chain: bool | None = None) -> bool:
        """Whether there is such an owner. `chain`: the standby has the third as its standby, or the owner itself."""
        for name, node in reversed(self.world.nodes.items()):
            standby = node.disk.standby
            behind = self.world.nodes[standby].disk.standby if standby else ""
            if behind and (chain is None or chain is (behind != name)):
                self.owner, self.standby = name, standby
                self.other = next((one for one in self.world.names if one not in (name, standby)), "")
                return True
        return False

    def accepted(self, *, later: int = FAR) -> Request:
        """A batch that the owner has given a receipt for; the client does not ask again by itself."""
        self.world.submit(KEY, 1, later=later, only=self.owner)
        request = self.world.requests[KEY]
        while KEY not in self.world.acked:
            self.after(1)
        request.receipt, request.repeat = self.world.acked[KEY], False
        return request

    def stop(self, name: str) -> None:
        self.world.nodes[name].stop()

    def start(self, name: str) -> None:
        self.world.nodes[name].start()

    def lose_disk(self, name: str) -> None:
        node = self.world.nodes[name]
        node.stop()
        node.disk = Disk(
            name,
            node.disk.number,
            self.world.numbers,
            self.world.keys_at_once,
            born=self.world.now // MS,
        )
        node.on_wire.clear()
        node.handed.clear()

    def asks_again(self, request: Request, *regions: str, again: bool = True) -> None:
        """The client has not got its receipt. A second one for the same key is a Violation."""
        request.receipt, request.order, request.tries = None, list(regions), int(again)
        self.world._try(request)
        self.after(2000)

    def asks(self, request: Request, region: str, *, again: bool) -> None:
        """One call at one region, which takes no time on its way."""
        node = self.world.nodes[region]
        assert node.machine is not None
        self.world.tokens[10**9] = request
        node.do(node.machine.submit(10**9, request.key, 1, node.local(), again=again))

    def is_known_on(self, disk: Disk) -> bool:
        return KEY in disk.keys or any(key == KEY for key, _ in disk.hearsay)

    def is_there(self, request: Request) -> bool:
        """Whether what has a receipt is on some disk."""
        disks = [node.disk for node in self.world.nodes.values()]
        ids = ids_of(self.world.acked[request.key])
        return all(any(id_ in disk.owned or id_ in disk.final for disk in disks) for id_ in ids)

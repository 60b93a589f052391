"""Failures in an order that random schedules seldom meet, each written down by hand."""

from collections.abc import Callable

import pytest

from engine.failover.messages import Ack, Claim, Copy, Data, Message
from engine.failover.region import RegionMachine
from engine.failover.spans import ids_of
from engine.failover.timing import MS
from tests.simulation.mutations import KeepsNoCopy
from tests.simulation.world import Request, World
from tests.support.failover_store import Disk

KEY = b"%016d" % 7
SEEDS = range(12)
FAR = 60_000 * MS


class Scene:
    """Three regions: `owner`, its `standby`, and the third, `other`. `rules`: which messages do not arrive."""

    def __init__(
        self,
        seed: int,
        keys_at_once: int = 0,
        *,
        regions: int = 3,
        machine: type[RegionMachine] = RegionMachine,
    ) -> None:
        self.world = World(seed, regions=regions, keys_at_once=keys_at_once, machine=machine)
        self.rules: list[Callable[[str, str, Message], bool]] = []
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
        self.world.submit(KEY, 1, later=later, to=self.owner)
        request = self.world.requests[KEY]
        request.order = [self.owner]
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

    def is_there(self, request: Request) -> bool:
        """Whether what has a receipt is on some disk."""
        disks = [node.disk for node in self.world.nodes.values()]
        ids = ids_of(self.world.acked[request.key])
        return all(any(id_ in disk.owned or id_ in disk.final for disk in disks) for id_ in ids)


@pytest.mark.parametrize("keys_at_once", [0, 1])
@pytest.mark.parametrize("later", [FAR, 0], ids=["queued", "sent"])
def test_what_an_adopter_was_told_its_own_standby_hears_of(later: int, keys_at_once: int) -> None:
    """In the session that they have: the owner is back on a new disk, long before the adopter dies."""
    tried = 0
    for seed in SEEDS:
        scene = Scene(seed, keys_at_once)
        if not scene.cast(chain=True):
            continue
        tried += 1
        request = scene.accepted(later=later)
        scene.after(1500)
        scene.lose_disk(scene.owner)
        scene.after(1500)
        scene.start(scene.owner)
        scene.after(8000)
        scene.stop(scene.standby)
        scene.after(1500)
        scene.asks_again(request, scene.other, scene.standby, scene.owner)
    assert tried


@pytest.mark.parametrize("machine", [RegionMachine, KeepsNoCopy])
def test_what_is_given_up_to_one_whose_disk_is_lost_next_is_still_a_copy(
    machine: type[RegionMachine],
) -> None:
    """Of two regions: the adopter has had nobody to copy it to."""
    scene = Scene(1, regions=2, machine=machine)
    assert scene.cast()
    request = scene.accepted()
    scene.stop(scene.owner)
    scene.after(1500)
    scene.rules.append(lambda s, _, m: s == scene.standby and isinstance(m, Data))
    scene.start(scene.owner)
    scene.after(1500)
    assert scene.world.nodes[scene.owner].disk.clean
    scene.lose_disk(scene.standby)
    scene.after(1500)
    assert scene.is_there(request) is (machine is RegionMachine)


@pytest.mark.parametrize("is_owner_back", [True, False])
def test_a_key_whose_messages_go_on_to_another_adopter_stays_known(is_owner_back: bool) -> None:
    tried = 0
    for seed in SEEDS:
        scene = Scene(seed)
        if not scene.cast(chain=True):
            continue
        tried += 1
        request = scene.accepted()
        if is_owner_back:
            scene.lose_disk(scene.owner)
        else:
            scene.stop(scene.owner)
        scene.after(1500)
        scene.stop(scene.standby)
        scene.after(1200)
        scene.start(scene.standby)
        scene.after(2500)
        if is_owner_back:
            scene.start(scene.owner)
            scene.after(3000)
        scene.asks_again(request, scene.other, scene.standby, scene.owner)
    assert tried


def test_a_region_on_a_new_disk_waits_until_what_another_knows_is_on_two_disks() -> None:
    """The other was dead when it returned, has come back since, and dies before its standby knows it."""
    tried = 0
    for seed in SEEDS:
        scene = Scene(seed)
        if not scene.cast():
            continue
        tried += 1
        request = scene.accepted()
        scene.stop(scene.standby)
        scene.lose_disk(scene.owner)
        scene.after(1500)
        scene.start(scene.owner)
        scene.after(2500)
        scene.rules.append(lambda s, _, m, scene=scene: s == scene.standby and isinstance(m, Data))  # type: ignore[misc]
        scene.start(scene.standby)
        scene.after(1500)
        scene.stop(scene.standby)
        scene.after(1200)
        scene.asks_again(request, scene.other, scene.owner)
        scene.rules.clear()
        scene.start(scene.standby)
        scene.after(4000)
        scene.asks_again(request, scene.other, scene.owner)
        assert request.receipt == scene.world.acked[KEY]
    assert tried


@pytest.mark.parametrize("again", [True, False])
def test_nobody_vouches_for_a_batch_that_its_owner_has_taken_back_without_a_receipt(again: bool) -> None:
    """The adopter had told its standby the keys, not the messages yet; then it dies, and the owner returns."""
    tried = 0
    for seed in range(40):
        scene = Scene(seed)
        if not scene.cast(chain=False):
            continue
        owner, standby, other = scene.owner, scene.standby, scene.other
        scene.rules.append(
            lambda s, t, m, scene=scene: (s, t) == (scene.standby, scene.owner) and isinstance(m, Ack)  # type: ignore[misc]
        )
        scene.world.submit(KEY, 1, later=FAR, to=owner)
        request = scene.world.requests[KEY]
        request.order, request.tries = [owner], 1
        scene.after(40)
        request.token = -1
        if not scene.world.nodes[standby].disk.hearsay:
            continue
        tried += 1
        scene.stop(owner)
        scene.rules[:] = [
            lambda s, _, m, scene=scene: (  # type: ignore[misc]
                s == scene.standby
                and isinstance(m, Data)
                and isinstance(m.entry, Copy)
                and bool(m.entry.spans)
            )
        ]
        scene.after(1500)
        scene.stop(standby)
        scene.after(1200)
        scene.rules[:] = [lambda s, _, m, scene=scene: s == scene.owner and isinstance(m, Claim)]  # type: ignore[misc]
        scene.start(owner)
        scene.after(2500)
        scene.start(standby)
        scene.after(2500)
        node = scene.world.nodes[other]
        assert node.machine is not None
        scene.world.tokens[10**9] = request
        node.do(node.machine.submit(10**9, KEY, 1, node.local(), again=again))
        scene.after(300)
        if KEY not in scene.world.acked:
            continue
        scene.lose_disk(owner)
        scene.after(2000)
        scene.rules.clear()
        scene.start(owner)
        scene.after(5000)
        assert scene.is_there(request)
    assert tried


def test_a_promise_outlives_the_process_that_gave_it() -> None:
    """A first submission that comes late, to a process that is younger than the promise not to take it unasked."""
    world = World(1, regions=3)
    world.run(2500 * MS)
    taker = next(name for name in world.names if world.nodes[name].disk.standby)
    first = next(name for name in world.names if name not in (taker, world.nodes[taker].disk.standby))
    request = world.requests[KEY] = Request(KEY, 1, [taker], tries=1, due=FAR)
    world._try(request)
    while KEY not in world.acked:
        world.run(world.now + MS)
    request.receipt = world.acked[KEY]
    node = world.nodes[first]
    node.stop()
    world.run(world.now + 100 * MS)
    node.start()
    world.run(world.now + 900 * MS)
    assert node.machine is not None
    assert node.machine.counters.returns == 0
    world.tokens[10**9] = request
    node.do(node.machine.submit(10**9, KEY, 1, node.local(), again=False))
    world.run(world.now + 500 * MS)
    assert request.receipt == world.acked[KEY]

"""Failures in an order written down by hand: while a batch's copy is safe and its release is not yet on disk, while a
new standby hears of the keys, and after the disks of a region were lost one after the other."""

import pytest

from engine.failover.messages import Ack, Data, Hello
from engine.failover.region import RegionMachine
from engine.failover.spans import ids_of
from engine.failover.timing import MS
from tests.simulation.mutations import OwesNoKeys
from tests.simulation.scene import FAR, KEY, SEEDS, Scene, no
from tests.simulation.world import Request

OTHER_KEY = b"%016d" % 99
NEXT_KEY = b"%016d" % 500


def lonely(seed: int, machine: type[RegionMachine] = RegionMachine) -> Scene | None:
    """With `accept_local`, the owner does not hear its standby any more, and has given a degraded receipt."""
    scene = Scene(seed, accept_local=True, machine=machine)
    if not scene.cast(chain=True):
        return None
    world, owner = scene.world, scene.owner
    scene.after(2500)
    scene.rules.append(no(Ack, scene.standby, owner))
    first = world.requests[OTHER_KEY] = Request(OTHER_KEY, 1, [owner], due=world.now + FAR)
    scene.asks(first, owner, again=False)
    scene.after(1100)
    return scene


def test_what_is_accepted_alone_is_copied_with_its_key_or_not_at_all() -> None:
    """The owner crashes before its release is on disk: nobody has a receipt, and the standby adopts the copy."""
    tried = 0
    for seed in SEEDS:
        scene = lonely(seed)
        if scene is None:
            continue
        world, owner = scene.world, scene.owner
        node = world.nodes[owner]
        request = world.requests[KEY] = Request(KEY, 1, [owner], tries=1, due=world.now)
        scene.asks(request, owner, again=False)
        node.stall_until = world.now + 450 * MS
        scene.after(60)
        if KEY not in node.disk.unsafe or KEY in world.acked:
            continue
        mine = ids_of(node.disk.unsafe[KEY])
        scene.stop(owner)
        scene.after(1500)
        scene.rules.clear()
        request.order, request.tries = [scene.other], 1
        world._try(request)
        scene.after(3000)
        scene.start(owner)
        scene.after(6000)
        tried += 1
        sent = {id_ for id_ in (*mine, *ids_of(world.acked[KEY])) if id_ in world.at_sink}
        assert len(sent) == 1 or KEY in world.degraded
    assert tried


@pytest.mark.parametrize("machine", [RegionMachine, OwesNoKeys])
def test_keys_that_are_owed_are_told_when_the_standby_has_answered_before_they_were(
    machine: type[RegionMachine],
) -> None:
    """And nothing more happens."""
    tried = 0
    for seed in SEEDS:
        scene = lonely(seed, machine)
        if scene is None:
            continue
        world, owner = scene.world, scene.owner
        node = world.nodes[owner]
        request = world.requests[KEY] = Request(KEY, 1, [owner], tries=1, due=world.now + FAR)
        scene.asks(request, owner, again=False)
        node.stall_until = world.now + 450 * MS
        scene.after(20)
        scene.rules.clear()
        scene.after(20_000)
        if KEY not in world.degraded:
            continue
        tried += 1
        assert (OTHER_KEY in world.nodes[scene.standby].disk.keys) is (machine is RegionMachine)
        assert node.machine is not None
        assert node.machine.link.is_complete()
    assert tried


def test_a_standby_drops_nothing_before_the_next_one_knows_the_keys() -> None:
    """All keys of a week take their time, and nothing is queued."""
    tried = 0
    for seed in SEEDS:
        scene = Scene(seed, 1)
        if not scene.cast(chain=True):
            continue
        world, owner, standby, other = scene.world, scene.owner, scene.standby, scene.other
        for number in range(2_000):
            for name in (owner, standby):
                world.nodes[name].disk.keys[b"!%015d" % number] = ((1 << 40, 1),)
        request = scene.accepted(later=100 * MS)
        scene.stop(standby)
        scene.after(900)
        if world.nodes[owner].disk.standby != other:
            continue
        scene.start(standby)
        for _ in range(3000):
            scene.after(1)
            machine = world.nodes[standby].machine
            assert machine is not None
            if machine.counters.returns:
                break
        scene.lose_disk(owner)
        scene.after(3000)
        tried += 1
        scene.asks_again(request, other, standby)
    assert tried


def test_ids_do_not_come_again_after_two_disks_were_lost_one_after_the_other() -> None:
    """The standby's disk, and when all are back the owner's: the next standby was given no message."""
    tried = 0
    for seed in SEEDS:
        scene = Scene(seed)
        if not scene.cast(chain=True):
            continue
        world, owner, standby = scene.world, scene.owner, scene.standby
        scene.after(2500)
        scene.accepted(later=0)
        scene.after(2000)
        assert not world.nodes[owner].disk.owned
        scene.lose_disk(standby)
        scene.after(2000)
        scene.start(standby)
        scene.after(6000)
        scene.lose_disk(owner)
        scene.after(2500)
        scene.start(owner)
        scene.after(6000)
        assert all(node.disk.clean for node in world.nodes.values())
        tried += 1
        world.submit(NEXT_KEY, 1, to=owner)
        world.requests[NEXT_KEY].order = [owner]
        scene.after(3000)
        assert world.acked[NEXT_KEY] != world.acked[KEY]
    assert tried


def until_unsafe(scene: Scene, region: str) -> None:
    for _ in range(80):
        if KEY not in scene.world.nodes[region].disk.unsafe:
            scene.after(1)


@pytest.mark.parametrize("is_disk_lost", [False, True])
def test_a_standby_vouches_for_nothing_that_its_owner_has_not_released(is_disk_lost: bool) -> None:
    """Of two that have the batch without a release the first by name keeps it, and the other gives way."""
    tried = 0
    for seed in SEEDS:
        scene = Scene(seed, regions=4)
        if not scene.cast(chain=True):
            continue
        world, owner, standby = scene.world, scene.owner, scene.standby
        first, third = sorted(n for n in world.names if n not in (owner, standby))
        if first > owner:
            continue
        scene.after(2500)
        node = world.nodes[owner]
        request = world.requests[KEY] = Request(KEY, 1, [first], due=world.now + FAR)
        scene.rules.append(no(Data, first))
        scene.asks(request, first, again=False)
        until_unsafe(scene, first)
        scene.after(20)
        scene.stop(first)
        scene.after(1500)
        for _ in range(5):
            if KEY not in node.disk.unsafe:
                scene.asks(request, owner, again=True)
                until_unsafe(scene, owner)
        if KEY in world.acked or KEY not in node.disk.unsafe:
            continue
        tried += 1
        node.stall_until = world.now + 900 * MS
        scene.after(60)
        assert node.machine is not None
        node.machine.deferred(list(node.disk.owned)[:1])  # the standby hears what the owner has heard from it
        node.do(node.machine.flush(node.local()))
        scene.after(40)
        for _ in range(8):
            scene.asks(request, third, again=True)
            scene.after(40)
        if KEY not in world.acked:
            continue  # as it should be: it is in the owner's hand
        request.receipt, request.repeat = world.acked[KEY], False
        node.stop()
        node.stall_until = 0
        if is_disk_lost:
            scene.lose_disk(standby)
        else:
            scene.stop(standby)
        scene.rules.clear()
        scene.start(owner)
        scene.start(first)
        scene.after(6000)
        assert scene.is_there(request) or not is_disk_lost
        scene.asks_again(request, first, third)
    assert tried


def test_after_a_return_the_session_is_waited_for() -> None:
    """With `accept_local`: the standby is there, the greeting comes a little late."""
    tried = 0
    for seed in SEEDS:
        scene = Scene(seed, accept_local=True)
        if not scene.cast(chain=True):
            continue
        world, owner = scene.world, scene.owner
        scene.after(3000)
        scene.stop(owner)
        scene.after(2500)
        scene.rules.append(no(Hello, owner))
        scene.start(owner)
        machine = world.nodes[owner].machine
        assert machine is not None
        for _ in range(5000):
            if not machine.counters.returns:
                scene.after(1)
        world.at(200 * MS, scene.rules.clear)
        request = world.requests[NEXT_KEY] = Request(NEXT_KEY, 1, [owner], due=world.now + FAR)
        scene.asks(request, owner, again=False)
        scene.after(3000)
        if NEXT_KEY in world.acked:
            tried += 1
            assert NEXT_KEY not in world.degraded
    assert tried

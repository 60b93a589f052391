"""Two regions that cannot hear each other, while Fleet and the third hear all."""

import pytest

from tests.simulation.scene import KEY, SEEDS, Scene
from tests.simulation.world import Request


def cut_link(scene: Scene, one: str, other: str) -> None:
    scene.rules.append(lambda source, target, _: {source, target} == {one, other})


@pytest.mark.parametrize("first", [0, 1, 2])
def test_a_third_accepts_what_two_cannot_agree_about(first: int) -> None:
    """Whoever is asked first; the enquiry of one of the two never ends, and its client has gone on."""
    for seed in SEEDS:
        scene = Scene(seed)
        world = scene.world
        one, other, third = order = world.names
        cut_link(scene, one, other)
        scene.after(1000)
        order = order[first:] + order[:first]
        request = world.requests[KEY] = Request(KEY, 1, list(order), tries=3, due=world.now)
        world._try(request)
        scene.after(5000)
        assert KEY in world.acked
        assert world.acked[KEY][0][0] >> 48 == world.numbers[third]
        scene.rules.clear()
        scene.after(3000)
        scene.asks_again(request, one, other)
        assert world.done()


@pytest.mark.parametrize("is_asked_again", [False, True])
def test_so_it_does_what_is_new(is_asked_again: bool) -> None:
    """Who has no standby within reach refuses also what has no key; the next that is asked asks it, in vain."""
    tried = 0
    for seed in SEEDS:
        scene = Scene(seed)
        if not scene.cast():
            continue
        tried += 1
        world, owner, standby = scene.world, scene.owner, scene.standby
        third = scene.other
        scene.after(3000)  # as long as every batch is asked for
        cut_link(scene, owner, standby)
        stuck = world.requests[b"stuck"] = Request(b"stuck", 1, [owner], due=world.now)
        scene.asks(stuck, owner, again=False)
        scene.after(1000)
        machine = world.nodes[owner].machine
        assert machine is not None
        assert not machine.own.is_covered(world.nodes[owner].local())
        order = [owner, standby, third]
        request = world.requests[KEY] = Request(KEY, 1, order, tries=3 * is_asked_again, due=world.now)
        world._try(request)
        scene.after(5000)
        assert KEY in world.acked
    assert tried

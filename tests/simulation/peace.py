"""What must hold in the simulation once nothing fails any more."""

from engine.failover.messages import Standing
from engine.failover.standby_choice import preferred
from engine.failover.timing import MS
from tests.simulation.world import Violation, World

SETTLING = 5_000  # ms


def end_faults(world: World) -> None:
    """All faults end: whoever is down comes back."""
    world.log("peace")
    world.network.loss = world.network.slow = world.network.repeat = 0.0
    world.network.cuts.clear()
    if world.fleet is None:
        world.start_fleet()
    for node in world.nodes.values():
        node.stall_until = 0
        node.wall_error = 0
        if node.machine is None:
            node.start()
        elif node.frozen:
            node.thaw()


def copies_come_home(world: World) -> None:
    """In peace, with nothing queued, each shard's copies are at its sibling."""
    world.run(world.now + 5000 * MS)
    for name, node in world.nodes.items():
        siblings = world.siblings(name)
        wanted = preferred(name, siblings, [n for n in world.names if n != name]) if siblings else ""
        if wanted and node.disk.standby != wanted:
            raise Violation(f"the copies of {name} are at {node.disk.standby}, not at {wanted}")
        machine = node.machine
        if machine is None or not machine.link.is_complete():
            raise Violation(f"the copies of {name} at {node.disk.standby} are not complete")


def all_accept(world: World) -> None:
    """Soon in peace every region accepts what is given to it alone, with a copy, and sends it."""
    world.run(world.now + 1000 * MS)  # what beats have to say is known
    asked = {b"%016d" % number: node.name for number, node in enumerate(world.left(), 900)}
    for key, name in asked.items():
        world.submit(key, 1, only=name)
    end = world.now + SETTLING * MS
    while not world.done():
        if world.now > end:
            raise Violation(f"in peace {world.why_not_done()}")
        world.run(world.now + 100 * MS)
    for key, name in asked.items():
        if key in world.degraded:
            raise Violation(f"in peace {name} accepts without a copy")


def a_third_accepts(world: World, one: str, other: str) -> None:
    """While these two cannot hear each other, and everybody else hears all, what has not been given to a region yet is
    accepted, whichever region is asked first."""
    world.run(
        world.now + world.timing.late + 500 * MS
    )  # as long as one that has returned asks for every batch
    world.network.cuts |= {(one, other), (other, one)}
    for number, name in enumerate(
        (one, other), 950
    ):  # with them, each notices that its standby does not hear it
        world.submit(b"%016d" % number, 1, only=name)
    world.run(world.now + 1000 * MS)
    keys = [b"%016d" % number for number in range(960, 966)]
    for number, key in enumerate(keys):
        world.submit(key, 1, to=(one, other)[number % 2])
    end = world.now + SETTLING * MS
    while not world.acked.keys() >= set(keys):
        if world.now > end:
            raise Violation(f"{one} and {other} cannot hear each other, and nobody accepts")
        world.run(world.now + 100 * MS)
    world.network.cuts.clear()
    end = world.now + SETTLING * MS
    while not world.done():
        if world.now > end:
            raise Violation(f"in peace {world.why_not_done()}")
        world.run(world.now + 100 * MS)


def keys_are_on_two_disks(world: World) -> None:
    """Soon in peace all are live, every standby has everything, and a receipt survives the loss of any one disk."""
    end = world.now + SETTLING * MS
    while lacking := _not_on_two_disks(world):
        if world.now > end:
            raise Violation(f"in peace {lacking}")
        world.run(world.now + 100 * MS)


def _not_on_two_disks(world: World) -> str:
    if world.fleet is None:
        return "Fleet is away"  # a plot may go on in peace
    left = world.left()
    for view in world.fleet.view(world.fleet_now()):
        if view.name not in world.gone and view.standing is not Standing.LIVE:
            return f"{view.name} has not returned"
    for node in left:
        if node.machine is None or not node.machine.link.is_complete():
            return f"the copies of {node.name} are not complete"
    for key in world.acked:
        knowing = [n.name for n in left if key in n.disk.keys or any(key == k for k, _ in n.disk.hearsay)]
        if len(knowing) < 2:
            return f"key {key!r} is known in {knowing} alone"
    return ""

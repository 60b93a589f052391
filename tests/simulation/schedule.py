"""One schedule: load and faults drawn from the seed, then a time of peace in which everything must drain.

Half of them have a plot as well (plots.py), and fewer faults at random times.
"""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

from engine.failover.fleet import FleetMachine
from engine.failover.region import RegionMachine
from engine.failover.timing import MS
from tests.simulation.census import ORDERS
from tests.simulation.network import FLEET
from tests.simulation.peace import (
    a_third_accepts,
    all_accept,
    copies_come_home,
    end_faults,
    keys_are_on_two_disks,
)
from tests.simulation.plots import draw_plot, play
from tests.simulation.world import Violation, World

LOAD_FROM = 400
FAULTS_UNTIL = 4000
PEACE = 12_000
PLOTS = 0x94A1
CLOCKS = 0xC10C
LINKS = 0x117C
KINDS = ("crash", "freeze", "fleet", "cut", "loss", "slow", "stall", "clock", "disk")


@dataclass(frozen=True, slots=True)
class Result:
    """What one schedule showed. `violation` is "" if it kept the promises."""

    seed: int
    violation: str
    kinds: tuple[str, ...]
    accepted: int
    sent_twice: int
    events: int
    drained_ms: int
    orders: tuple[str, ...] = ()


def run(
    seed: int,
    *,
    machine: type[RegionMachine] = RegionMachine,
    fleet: type[FleetMachine] = FleetMachine,
    trace: Callable[[str], None] | None = None,
    only: tuple[str, ...] = (),
    shards: bool = False,
    gone: bool = False,
    pages: bool = False,
    clocks: bool = False,
) -> Result:
    """Run the schedule of a seed; `only` these kinds of faults instead of those that it draws. `shards`: some of the
    nodes are shards of one region. `gone`: one of three or four does not come back, and no disk is lost but its.
    `pages`: a new standby hears of all keys in several entries, not in one. `clocks`: they are set back between two
    starts of a region, or of Fleet."""
    plan = random.Random(seed ^ 0x5EED)
    kinds = tuple(kind for kind in KINDS[:-1] if plan.random() < 0.45)
    if plan.random() < 0.1:  # one disk is lost for good; every other survives, whatever befalls its region
        kinds = ("disk", *kinds)
    # drawn apart: the other seeds stay the schedules that they were
    if random.Random(seed ^ 0x5012).random() < 0.2:
        kinds = (*kinds, "repeat")
    kinds = only or kinds
    plotter = random.Random(seed ^ PLOTS)
    plot = draw_plot(plotter) if plotter.random() < 0.5 and not only else None
    if plot is not None:
        kinds = tuple(k for k in kinds if plotter.random() < 0.4 and not (k == "disk" and plot.loses_disk()))
    if gone:
        kinds = tuple(kind for kind in kinds if kind != "disk")
        plot = None if plot is not None and plot.loses_disk() else plot
    may_lose = gone or "disk" in kinds or (plot is not None and plot.loses_disk())
    regions = plan.choice((2, 3, 3, 3, 4))
    if gone:
        regions = max(regions, 3)
    groups: tuple[str, ...] = ()
    if shards:
        groups = random.Random(seed ^ 0x5A4D).choice((("ab",), ("abc",), ("ab", "cd"), ("bcd",)))
        regions = 4 if len("".join(groups)) == 4 or "d" in groups[0] else regions + (regions == 2)
    world = World(
        seed,
        regions=regions,
        groups=groups,
        keys_at_once=random.Random(seed ^ 0x9A6E).choice((1, 2, 5)) if pages else 0,
        clocks=seed ^ CLOCKS if clocks else None,
        accept_local=not may_lose and plan.random() < 0.3,
        machine=machine,
        fleet=fleet,
        trace=trace,
    )
    violation = ""
    drained = -1
    try:
        _load(world, plan)
        _faults(world, plan, kinds)
        if shards:
            _meet_moves(
                world, random.Random(seed ^ 0x30BE), may_lose_disk=not (may_lose or world.accept_local)
            )
        if gone:
            chance = random.Random(seed ^ 0x609E)
            lost = chance.choice(world.names)
            world.at(chance.randrange(1900, FAULTS_UNTIL - 100) * MS, lambda: world.lose(lost))
        if plot is not None:
            play(world, plot, plotter, _fault)
        world.run(FAULTS_UNTIL * MS)
        end_faults(world)
        while world.now < (FAULTS_UNTIL + PEACE) * MS:
            world.run(world.now + 100 * MS)
            if world.done():
                drained = world.now // MS - FAULTS_UNTIL
                break
        else:
            raise Violation(f"not drained: {world.why_not_done()}")
        if shards:
            copies_come_home(world)
        world.is_over = True
        world.run(max(world.now, world.trouble_until))
        keys_are_on_two_disks(world)
        all_accept(world)
        keys_are_on_two_disks(world)
        links = random.Random(seed ^ LINKS)
        if links.random() < 0.25 and len(world.left()) > 2 and not world.accept_local:
            a_third_accepts(world, *links.sample([node.name for node in world.left()], 2))
            keys_are_on_two_disks(world)
    except Violation as error:
        violation = str(error)
    return Result(
        seed,
        violation,
        kinds,
        sum(count for spans in world.acked.values() for _, count in spans),
        sum(1 for count in world.at_sink.values() if count > 1),
        world.events,
        drained,
        tuple(order for order in ORDERS if order in world.census.orders),
    )


def _meet_moves(world: World, rng: random.Random, *, may_lose_disk: bool) -> None:
    """When a shard changes its standby because nothing is queued, something is just then, or one of the three fails."""
    lost: list[str] = []
    keys = itertools.count(60)

    def moving(owner: str, to: str) -> None:
        if world.now > (FAULTS_UNTIL - 300) * MS:
            return
        for _ in range(rng.randrange(3)):
            key = b"%016d" % next(keys)
            count = rng.randrange(1, 3)
            world.at(rng.randrange(12) * MS, lambda k=key, c=count: world.submit(k, c, to=owner))
        if rng.random() < 0.5:
            return
        name = rng.choice((owner, owner, to, world.nodes[owner].disk.standby or to))
        kind = rng.choice(("crash", "crash", "freeze", "cut", "stall", "fleet", "disk"))
        if kind == "disk" and (lost or not may_lose_disk):
            kind = "crash"
        lost.extend([name] if kind == "disk" else [])
        other = rng.choice([n for n in world.names if n != name])
        length = rng.choice((50, 200, 900, 1500, 3000)) * MS
        delay = rng.choice((0, 2, 5, 10, 20, 60, 200)) * MS
        world.at(delay, lambda: _fault(world, kind, name, other, length))

    world.on_move = moving


def _load(world: World, plan: random.Random) -> None:
    for number in range(plan.randrange(4, 16)):
        key = b"%016d" % number
        count = plan.randrange(1, 4)
        repeat = plan.random() < 0.1
        at = plan.randrange(LOAD_FROM, FAULTS_UNTIL - 300) * MS
        later = plan.randrange(9000) * MS if plan.random() < 0.2 else 0
        world.at(at, lambda k=key, c=count, d=later, r=repeat: world.submit(k, c, later=d, repeat=r))


def _faults(world: World, plan: random.Random, kinds: tuple[str, ...]) -> None:
    if "disk" in kinds:
        victim = plan.choice(world.names)
        at = plan.randrange(1500, 3000)
        world.at(at * MS, lambda: _lose_disk(world, victim, 0))
        for number in range(20, 32):  # what is on its way just then is what may be lost
            key = b"%016d" % number
            world.at((at - plan.randrange(1, 30)) * MS, lambda k=key: world.submit(k, 1))
        kinds = tuple(kind for kind in kinds if kind != "disk")
    for kind in kinds:
        for _ in range(plan.randrange(1, 4)):
            at = plan.randrange(300, FAULTS_UNTIL - 100) * MS
            length = plan.choice((50, 200, 500, 900, 1500, 3000)) * MS
            name = plan.choice(world.names)
            other = plan.choice([FLEET, "client", *(n for n in world.names if n != name)])
            world.at(at, lambda k=kind, n=name, o=other, d=length: _fault(world, k, n, o, d))


def _fault(world: World, kind: str, name: str, other: str, length: int) -> None:
    if world.is_over:
        return
    world.trouble_until = max(world.trouble_until, world.now + length)
    node = world.nodes[name]
    network = world.network
    if kind == "disk":
        _lose_disk(world, name, length)
        return
    world.census.fault(kind, name)
    world.log(f"fault {kind} {name} {other} {length // MS} ms")
    match kind:
        case "crash":
            if node.machine is not None:
                node.stop()
                world.at(length, lambda: node.start() if node.machine is None else None)
        case "freeze":
            if node.machine is not None and not node.frozen:
                node.frozen = True
                life = node.life
                world.at(length, lambda: node.thaw() if node.life == life else None)
        case "back":
            if node.machine is None:
                node.start()
            elif node.frozen:
                node.thaw()
        case "fleet":
            if world.fleet is not None:
                sleep_ms = world.draw_sleep()
                if sleep_ms % 2:
                    world.freeze_fleet(sleep_ms)
                    return
                world.stop_fleet(sleep_ms=sleep_ms)
                world.at(length, lambda: world.start_fleet() if world.fleet is None else None)
        case "cut":
            pairs = {(name, other)} if world.rng.random() < 0.5 else {(name, other), (other, name)}
            network.cuts |= pairs
            world.at(length, lambda: network.cuts.difference_update(pairs))
        case "loss":
            network.loss = world.rng.choice((0.02, 0.1, 0.3))
            world.at(length, lambda: setattr(network, "loss", 0.0))
        case "slow":
            network.slow, network.slow_ms = 0.3, world.rng.choice((50, 200, 800))
            world.at(length, lambda: setattr(network, "slow", 0.0))
        case "repeat":
            network.repeat = world.rng.choice((0.05, 0.3))
            world.at(length, lambda: setattr(network, "repeat", 0.0))
        case "stall":
            node.stall_until = world.now + length
        case "clock":
            node.wall_error = world.rng.choice((-1, 1)) * length


def _lose_disk(world: World, name: str, away: int) -> None:
    """A machine is gone for good, and what it had on its disk; another takes its place `away` later (0: drawn)."""
    node = world.nodes[name]
    world.census.fault("disk", name)
    node.stop()
    world.log(f"fault disk {name}")
    node.disk = type(node.disk)(
        name, node.disk.number, world.numbers, world.keys_at_once, born=world.now // MS
    )
    node.on_wire.clear()
    node.handed.clear()
    away = away or world.rng.choice((50, 500, 3000)) * MS
    world.at(away, lambda: node.start() if node.machine is None else None)

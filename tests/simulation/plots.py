"""Plots: a region fails, and what Fleet does about it is answered by the next fault, at the worst moment.

Faults at random times rarely meet the few milliseconds of an adoption, or a region that holds what it has adopted. A
plot waits for them: a step is a fault that follows a change of a region's standing.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from engine.failover.messages import Standing
from engine.failover.timing import MS
from tests.simulation.network import FLEET
from tests.simulation.world import World

FIRST_KEY = 40
Fault = Callable[[World, str, str, str, int], None]  # world, kind, region, the other end of a cut, length


@dataclass(frozen=True, slots=True)
class Step:
    """When a region's standing becomes this, `delay` later: `kind` for a region: "itself", its "standby", "another"."""

    standing: Standing
    kind: str
    whom: str
    delay: int
    length: int


@dataclass(frozen=True, slots=True)
class Plot:
    """The first fault, and the steps that follow, each once."""

    at: int
    opening: str
    length: int
    steps: tuple[Step, ...]

    def loses_disk(self) -> bool:
        return any(step.kind == "disk" for step in self.steps)


def draw_plot(rng: random.Random) -> Plot:
    """At most one disk is lost."""
    steps: list[Step] = []
    for _ in range(rng.randrange(1, 6)):
        standing = rng.choice((Standing.DEAD, Standing.DEAD, Standing.RETURNING, Standing.LIVE))
        kind = rng.choice(
            ("crash", "crash", "freeze", "fleet", "disk", "disk", "back", "cut", "stall", "clock", "slow")
        )
        if kind == "disk" and any(step.kind == "disk" for step in steps):
            kind = "crash"
        whom = "itself" if kind == "back" else rng.choice(("standby", "standby", "another", "itself"))
        delay = rng.choice(
            (0, 4, 8, 12, 60, 200, 600)
        )  # an adoption begins some milliseconds after it is told
        delay += rng.randrange(1 + delay // 2)
        length = rng.choice((50, 200, 900, 1500, 3000)) * MS
        steps.append(Step(standing, kind, whom, delay * MS, length))
    opening = rng.choice(("crash", "freeze", "cut"))
    length = rng.choice((1000, 1400, 2000, 3500)) * MS
    return Plot(rng.randrange(1200, 2400) * MS, opening, length, tuple(steps))


def play(world: World, plot: Plot, rng: random.Random, fault: Fault) -> None:
    """Give the victim some messages, let it fail, and follow the plot from then on."""
    victim = rng.choice(world.names)
    for number in range(FIRST_KEY, FIRST_KEY + rng.randrange(3, 8)):
        key = b"%016d" % number
        before = rng.randrange(10, 120) * MS
        later = rng.choice((0, 500, 1500, 3000)) * MS
        count = rng.randrange(2, 12)
        world.at(plot.at - before, lambda k=key, c=count, d=later: world.submit(k, c, later=d, to=victim))
    left = list(plot.steps)

    def changed(region: str, standing: Standing) -> None:
        if world.now < plot.at:
            return
        for step in [step for step in left if step.standing is standing]:
            left.remove(step)
            world.at(step.delay, lambda step=step: _follow(world, region, step, fault))

    world.at(plot.at, lambda: fault(world, plot.opening, victim, FLEET, plot.length))
    world.on_change = changed


def _follow(world: World, region: str, step: Step, fault: Fault) -> None:
    node = world.nodes[region]
    name = region
    if step.whom == "standby" and node.disk.standby:
        name = node.disk.standby
    elif step.whom != "itself":
        name = world.rng.choice([other for other in world.names if other != region])
    other = region if name != region else FLEET
    fault(world, step.kind, name, other, step.length)

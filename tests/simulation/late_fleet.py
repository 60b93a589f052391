"""A Fleet in the simulation that is not the only one."""

from typing import TYPE_CHECKING

from engine.failover.fleet import FleetMachine
from engine.failover.messages import BeatReply, Behind, Message
from tests.simulation.network import FLEET
from tests.simulation.node import TICK

if TYPE_CHECKING:
    from tests.simulation.world import World


class LateFleet:
    """One that was frozen when another took its place, and goes on now, until it hears of that one."""

    def __init__(self, world: "World", machine: FleetMachine, clock: int) -> None:
        self._world = world
        self._machine = machine
        self._clock = clock

    def wake(self) -> None:
        self._world.late_fleets.append(self)
        self._world.log("a late fleet goes on")
        self._tick()

    def receive(self, region: str, message: Message) -> None:
        assert isinstance(message, BeatReply | Behind)
        self._machine.receive(region, message, self._clock + self._world.now)

    def _tick(self) -> None:
        for region, beat in self._machine.tick(self._clock + self._world.now):
            self._world.send(FLEET, region, beat)
        if self._machine.is_superseded:
            self._world.log("the late fleet ends")
            self._world.late_fleets.remove(self)
        else:
            self._world.at(TICK, self._tick)

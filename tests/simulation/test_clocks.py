"""A process starts with its machine's clock set back a long time: the fleet is what it was before."""

import pytest

from engine.failover.messages import Standing
from engine.failover.region import RegionMachine
from engine.failover.timing import MS
from tests.simulation.mutations import CountsByItsClock
from tests.simulation.world import World
from tests.support.failover_store import Disk


class Backward(World):
    """Whoever starts reads the time; `behind`: by how much its clock has been set back."""

    behind = 0

    def _started_at(self, life: int) -> int:
        return 10**6 + life - self.behind

    def after(self, ms: int) -> None:
        self.run(self.now + ms * MS)

    def standings(self) -> set[Standing]:
        assert self.fleet is not None
        return {view.standing for view in self.fleet.view(self.fleet_now())}

    def is_sound(self) -> bool:
        """Whether all are live, with complete copies."""
        machines = [node.machine for node in self.nodes.values()]
        return self.standings() == {Standing.LIVE} and all(m and m.link.is_complete() for m in machines)

    def delivers(self, number: int) -> bool:
        key = b"%016d" % number
        self.submit(key, 2)
        self.after(3000)
        return self.requests[key].receipt is not None and self.done()


def world(seed: int = 1, regions: int = 3, machine: type[RegionMachine] = RegionMachine) -> Backward:
    made = Backward(seed, regions=regions, clocks=seed, machine=machine)
    made.after(3000)
    assert made.is_sound()
    return made


@pytest.mark.parametrize("regions", [2, 3])
@pytest.mark.parametrize("pause_ms", [100, 2000])
def test_a_region_on_its_disk(regions: int, pause_ms: int) -> None:
    fleet = world(regions=regions)
    node = fleet.nodes["a"]
    node.stop()
    fleet.after(pause_ms)
    fleet.behind = 10**6
    node.start()
    fleet.after(5000)
    assert fleet.is_sound()
    assert fleet.delivers(1)


@pytest.mark.parametrize("machine", [RegionMachine, CountsByItsClock])
def test_a_region_on_a_new_disk(machine: type[RegionMachine]) -> None:
    fleet = world(machine=machine)
    node = fleet.nodes["a"]
    node.stop()
    node.disk = Disk("a", node.disk.number, fleet.numbers, born=fleet.now // MS)
    fleet.after(2000)
    fleet.behind = 10**6
    node.start()
    fleet.after(5000)
    assert fleet.is_sound() is (machine is RegionMachine)
    if machine is RegionMachine:
        assert fleet.delivers(1)
        assert node.disk.life > 10**6


def test_fleet_and_after_it_a_region_dies() -> None:
    fleet = world()
    fleet.stop_fleet()
    fleet.after(500)
    fleet.behind = 10**6
    fleet.start_fleet()
    fleet.after(2000)
    assert fleet.is_sound()
    fleet.nodes["c"].stop()
    fleet.after(3000)
    live = [node for node in fleet.nodes.values() if node.machine is not None]
    assert all(node.machine and node.machine.may_dispatch(node.local()) for node in live)
    fleet.nodes["c"].start()
    fleet.after(3000)
    assert fleet.is_sound()
    assert fleet.delivers(1)


def test_fleet_and_every_region_at_once() -> None:
    fleet = world()
    fleet.stop_fleet()
    for node in fleet.nodes.values():
        node.stop()
    fleet.behind = 10**6
    fleet.after(500)
    for node in fleet.nodes.values():
        node.start()
    fleet.start_fleet()
    fleet.after(6000)
    assert fleet.is_sound()
    assert fleet.delivers(1)


def test_fleet_while_the_one_region_that_knows_of_the_former_is_out_of_its_reach() -> None:
    """It is heard when the new one is ready already, which ends itself; the next is told in time."""
    fleet = world()
    for name in "ab":
        fleet.nodes[name].stop()
    fleet.stop_fleet()
    fleet.after(500)
    fleet.behind = 10**6
    fleet.network.cuts |= {("", "c"), ("c", "")}
    for name in "ab":
        fleet.nodes[name].start()
    fleet.start_fleet()
    fleet.after(6000)
    assert fleet.standings() == {Standing.LIVE, Standing.DEAD}
    number = fleet.fleet_life
    fleet.network.cuts.clear()
    fleet.after(6000)
    assert fleet.fleet_life > number
    assert fleet.is_sound()
    assert fleet.delivers(1)


def test_fleet_and_the_former_one_which_was_frozen_goes_on_with_a_greater_number() -> None:
    """Nobody knew it any more; it finds out how things stand, and is outbid when Fleet is made again."""
    fleet = world()
    for node in fleet.nodes.values():
        node.stop()
    fleet.stop_fleet(sleep_ms=4000)
    fleet.behind = 10**6
    for node in fleet.nodes.values():
        node.start()
    fleet.start_fleet()
    fleet.after(3500)
    assert fleet.is_sound()
    epochs = {name: node.disk.epoch for name, node in fleet.nodes.items()}
    number = fleet.fleet_life
    fleet.after(3000)
    assert fleet.fleet_life > number
    assert fleet.late_fleets == []
    assert fleet.is_sound()
    assert {name: node.disk.epoch for name, node in fleet.nodes.items()} == epochs
    assert fleet.delivers(1)

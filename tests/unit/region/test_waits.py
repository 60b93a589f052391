"""How long what goes next has been ready: in memory or on disk, by path and for all that goes before."""

from engine.region.sites import Counts
from engine.region.waits import Waits
from engine.routing.route import Route
from tests.unit.region.test_windows import DOMAIN, World, key

PATH = ("mx", 1, "tenant")


def waits_of(world: World) -> Waits:
    return Waits(flows=world.flows, windows=world.windows, sites=world.sites)


def test_what_goes_next_counts_and_what_a_pool_has_or_is_not_due_does_not() -> None:
    world = World()
    waits = waits_of(world)
    began = world.clock.wall_ms()
    assert waits.waited_ms(PATH, began) == 0
    world.put(1, began - 5_000)
    world.put(2, began)
    world.put(3, began + 60_000)
    assert waits.waited_ms(PATH, began) == 5_000
    assert world.taken(1) == [1]
    assert waits.waited_ms(PATH, began + 7_000) == 7_000
    assert world.taken() == [2]
    assert waits.waited_ms(PATH, began + 7_000) == 0
    assert waits.take_cost() == 4
    assert waits.take_cost() == 0


def test_what_is_on_disk_alone_counts_as_well() -> None:
    world = World(ready_window=4)
    began = world.clock.wall_ms()
    keys = [key(id_, began - id_ * 1000) for id_ in range(9, 0, -1)]
    world.disk.rows.update(dict.fromkeys(keys, 1 << 47))
    world.windows.offer(keys, began)
    waits = waits_of(world)
    assert world.scheduler.held() == 0  # more than there is room for: all of it is read from the disk
    assert waits.waited_ms(PATH, began) == 9_000
    world.windows.refill(0)
    world.taken(3)
    assert waits.waited_ms(PATH, began) == 6_000


def test_what_has_no_route_yet_counts_apart() -> None:
    world = World(routed=False)
    waits = waits_of(world)
    now = world.clock.wall_ms()
    assert waits.unrouted_ms(now) == 0
    world.put(1, now - 3_000)
    world.put(2, now)
    assert waits.unrouted_ms(now) == 3_000
    assert waits.waited_ms(PATH, now) == 0
    world.route()
    assert (waits.unrouted_ms(now), waits.waited_ms(PATH, now)) == (0, 3_000)


def test_other_paths_do_not_count_but_all_that_is_served_before_does_at_the_site() -> None:
    world = World()
    waits = waits_of(world)
    now = world.clock.wall_ms()
    world.put(1, now - 1_000)
    for number, stream, tenant in ((6, 0, "tenant"), (7, 1, "other"), (8, 2, "tenant")):
        world.windows.learn(number, DOMAIN, stream, tenant, "")
        stored = key(number, now - number * 1_000, queue=number)
        world.disk.rows[stored] = 1 << 47
        world.windows.offer([stored], now)
    site = world.sites.open("mx", "default", now_ns=world.clock.monotonic_ns(), counts=Counts(0), terms={})
    world.windows.routed(DOMAIN, Route("mx", "default", (), "disabled"), site)
    assert waits.waited_ms(PATH, now) == 1_000
    assert waits.waited_ms(("mx", 1, "nobody"), now) == waits.waited_ms(("nowhere", 1, "tenant"), now) == 0
    assert [waits.before_ms("mx", stream, now) for stream in range(3)] == [6_000, 7_000, 8_000]
    assert waits.before_ms("nowhere", 1, now) == 0


def test_a_flow_that_is_forgotten_is_not_asked_any_more() -> None:
    world = World()
    waits = waits_of(world)
    world.put(1, world.clock.wall_ms())
    world.settled()
    for _ in range(3):
        world.clock.advance(3600)
        world.sweep()
    assert len(world.flows) == 0
    assert waits.waited_ms(PATH, world.clock.wall_ms()) == waits.take_cost() == 0

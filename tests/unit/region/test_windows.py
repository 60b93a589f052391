"""The window in memory over the queues on disk: what is loaded when, and that nothing due is forgotten."""

from collections.abc import Callable
from typing import Any

from engine.config.load import parse_fleet
from engine.config.schema import LimitsConfig
from engine.providers.profiles import load_profiles
from engine.region.flows import Flows
from engine.region.sites import Counts, Sites
from engine.region.windows import IDLE_S, MAX_RESTING, Windows
from engine.routing.route import Failure, Route
from engine.values.reply import Reply
from native.scheduler import Scheduler
from tests.support.clock import ManualClock
from tests.support.decisions import decisions, packed
from tests.support.due_index import NEVER_MS, DueIndex
from tests.support.fleets import fleet_data

QUEUE = 5
DOMAIN = "example.net"


def key(id_: int, due_ms: int, queue: int = QUEUE) -> bytes:
    return queue.to_bytes(4, "big") + due_ms.to_bytes(6, "big") + id_.to_bytes(8, "big")


class World:
    """Windows over a disk and a real scheduler with one source that may carry everything."""

    def __init__(self, *, routed: bool = True, **limits: int) -> None:
        self.clock = ManualClock()
        self.disk = DueIndex()
        self.disk.names = {
            number: ((DOMAIN if number == QUEUE else f"d{number}.example"), 1, "tenant", "spring")
            for number in range(1, 10)
        }
        self.scheduler = Scheduler(seed=1)
        providers = {"default": {"rate": "unlimited", "max_connections": 100}}
        config = parse_fleet(fleet_data(providers=providers, limits={"window_per_connection": 1000}))
        self.sites = Sites(
            config=config, region="eu", profiles=load_profiles(config.providers), scheduler=self.scheduler
        )
        self.flows = Flows(scheduler=self.scheduler, sites=self.sites)
        self.wanted: list[str] = []
        self.expired: list[bytes] = []
        self.woken = 0
        self.windows = Windows(
            index=self.disk,
            scheduler=self.scheduler,
            clock=self.clock,
            limits=LimitsConfig(**{"ready_window": 10, "ready_total": 100, **limits}),
            flows=self.flows,
            want_route=self.wanted.append,
            expire=self.expired.extend,
            wake_pool=self._wake,
        )
        self.queue = self.windows.learn(QUEUE, DOMAIN, 1, "tenant", "spring")
        if routed:
            self.put(1 << 40, self.clock.wall_ms())
            self.route()
            self.taken()
            del self.disk.rows[key(1 << 40, self.clock.wall_ms())]

    def _wake(self, pool: int) -> None:
        self.woken += 1

    def route(self, domain: str = DOMAIN) -> None:
        site = self.sites.open("mx", "default", now_ns=self.clock.monotonic_ns(), counts=Counts(0), terms={})
        self.windows.routed(domain, Route("mx", "default", (), "disabled"), site)
        self.windows.refill(0)

    def put(self, id_: int, due_ms: int, expires_ms: int = NEVER_MS) -> bytes:
        """On disk, and offered as an acceptance does."""
        stored = key(id_, due_ms)
        self.disk.rows[stored] = expires_ms
        self.windows.offer([stored], self.clock.wall_ms())
        return stored

    def taken(self, limit: int = 1000) -> list[int]:
        """What the scheduler hands out now; it is settled at once."""
        found = [d.id for d in decisions(self.scheduler.take(0, self.clock.monotonic_ns(), limit))]
        self.scheduler.settle(packed(found))
        return found

    def all_taken(self) -> list[int]:
        """What goes out in time, in its order, with the disk read as room is made."""
        found: list[int] = []
        for _ in range(100):
            self.windows.tick()
            self.windows.refill(0)
            now = self.taken(3)
            if not now and not self.windows.backlogged():
                return found
            found += now
        raise AssertionError("it does not come to an end")

    def settled(self, limit: int = 1000) -> list[int]:
        """As `taken`, and gone from the disk."""
        found = self.taken(limit)
        self.disk.rows = {row: value for row, value in self.disk.rows.items() if _id(row) not in found}
        return found

    def sweep(self) -> None:
        """As a region does in each tick."""
        now_ns = self.clock.monotonic_ns()
        self.windows.sweep(100)
        self.flows.sweep(now_ns, 100)
        self.sites.sweep(now_ns, 100)


def _id(stored: bytes) -> int:
    return int.from_bytes(stored[10:], "big")


def test_what_has_no_route_yet_waits_on_disk_and_goes_when_there_is_one() -> None:
    world = World(routed=False)
    for id_ in (1, 2, 3):
        world.put(id_, world.clock.wall_ms())
    assert world.wanted == [DOMAIN]  # asked for once
    assert world.taken() == []
    assert world.windows.unrouted_domains() == 1
    world.route()
    assert world.taken() == [1, 2, 3]
    assert world.windows.unrouted_domains() == 0


def test_memory_holds_a_window_and_the_rest_comes_from_disk_in_order() -> None:
    world = World()
    now_ms = world.clock.wall_ms()
    for id_ in range(1, 51):
        world.put(id_, now_ms)
    assert world.scheduler.held() <= 10
    assert world.windows.backlogged() == 1
    assert world.all_taken() == list(range(1, 51))


def test_the_total_of_all_flows_is_bounded_too() -> None:
    world = World(ready_window=10, ready_total=12)
    world.windows.learn(6, "example.org", 1, "tenant", "autumn")
    now_ms = world.clock.wall_ms()
    for id_ in range(1, 41):
        queue = QUEUE if id_ % 2 else 6
        world.disk.rows[key(id_, now_ms, queue)] = NEVER_MS
        world.windows.offer([key(id_, now_ms, queue)], now_ms)
    world.route("example.org")
    assert world.scheduler.held() <= 12
    assert sorted(world.all_taken()) == list(range(1, 41))


def test_a_flow_is_filled_up_again_when_it_runs_low_and_not_before() -> None:
    world = World()
    reads: list[int] = []
    scan: Callable[..., Any] = world.disk.scan_due

    def counted(queue: int, after: bytes | None, until_due_ms: int, limit: int) -> list[tuple[bytes, int]]:
        reads.append(limit)
        found: list[tuple[bytes, int]] = scan(queue, after, until_due_ms, limit)
        return found

    world.disk.scan_due = counted  # type: ignore[method-assign]
    for id_ in range(1, 41):
        world.put(id_, world.clock.wall_ms())
    world.windows.refill(0)
    reads.clear()
    assert len(world.taken(4)) == 4
    world.windows.refill(0)
    assert reads == []  # more than half is left
    assert len(world.taken(2)) == 2
    world.windows.refill(0)
    assert reads == [6]


def test_a_queue_whose_name_is_damaged_holds_up_no_other() -> None:
    world = World()
    del world.disk.names[7]
    now_ms = world.clock.wall_ms()
    world.windows.offer([key(1, now_ms, 7), key(2, now_ms)], now_ms)
    world.windows.redue(key(3, now_ms + 1000, 7))
    assert world.all_taken() == [2]
    assert world.windows.get(7) is None


def test_what_is_due_later_comes_at_its_time() -> None:
    world = World()
    now_ms = world.clock.wall_ms()
    world.put(1, now_ms + 60_000)
    world.put(2, now_ms + 30_000)
    assert world.all_taken() == []
    world.clock.advance(29)
    assert world.all_taken() == []
    world.clock.advance(2)
    assert world.all_taken() == [2]
    world.clock.advance(30)
    assert world.all_taken() == [1]


def test_a_deferral_to_before_what_was_read_is_not_passed_over() -> None:
    """The cursor has gone past a later due time; a message deferred to an earlier one still comes."""
    world = World()
    now_ms = world.clock.wall_ms()
    early = world.put(9, now_ms - 1)
    assert world.all_taken() == [9]
    world.clock.advance(100)
    world.put(1, now_ms + 100_000)
    assert world.all_taken() == [1]
    del world.disk.rows[early]
    again = key(9, now_ms + 99_000)
    world.disk.rows[again] = NEVER_MS
    world.windows.redue(again)
    world.clock.advance(0.01)
    del world.disk.rows[key(1, now_ms + 100_000)]
    assert world.all_taken() == [9]


def test_what_falls_due_is_not_passed_over_by_what_comes_before_its_timer_is_looked_at() -> None:
    world = World()
    now = world.clock.wall_ms()
    first = world.put(1, now)
    assert world.taken() == [1]
    del world.disk.rows[first]
    world.disk.rows[key(1, now + 500)] = NEVER_MS
    world.scheduler.settle(packed([1]))
    world.windows.redue(key(1, now + 500))
    world.clock.advance(0.501)
    world.put(2, world.clock.wall_ms())
    world.windows.tick()
    world.windows.refill(0)
    assert sorted(world.taken()) == [1, 2]


def test_what_is_being_settled_is_not_read_again_before_that_is_on_disk() -> None:
    """A key from before the cursor makes the window read again from there on."""
    world = World()
    now_ms = world.clock.wall_ms()
    keys = [world.put(id_, now_ms) for id_ in range(1, 31)]
    assert world.taken(2) == [1, 2]
    world.windows.settling([1, 2])
    world.put(99, now_ms - 3)
    found: list[int] = []
    while world.windows.backlogged():
        world.windows.refill(0)
        found += world.settled(3)
    found += world.settled()
    assert sorted(found) == [*range(3, 31), 99]
    del world.disk.rows[keys[0]], world.disk.rows[keys[1]]
    world.disk.rows[key(2, now_ms + 60_000)] = NEVER_MS
    world.windows.settled([1, 2])
    world.windows.redue(key(2, now_ms + 60_000))
    world.clock.advance(61)
    assert world.all_taken() == [2]


def test_what_is_heard_of_while_it_is_being_settled_is_not_sent() -> None:
    """It stood on disk before its acceptance was answered, was read from there, and had expired, say."""
    world = World()
    now_ms = world.clock.wall_ms()
    world.windows.settling([1])
    first = world.put(1, now_ms)
    world.put(2, now_ms)
    assert world.taken() == [2]
    del world.disk.rows[first]
    world.windows.settled([1])
    assert world.all_taken() == []


def test_what_was_to_be_settled_and_is_on_disk_as_before_is_sent() -> None:
    """The disk was full, or another write was faster."""
    world = World()
    now_ms = world.clock.wall_ms()
    world.windows.settling([1])
    world.windows.settling([1])
    world.put(1, now_ms)
    world.put(2, now_ms)
    assert world.all_taken() == [2]
    world.windows.settled([1])
    assert world.all_taken() == []
    world.windows.settled([1])
    assert world.all_taken() == [1]


def test_what_is_taken_in_again_and_is_due_no_more_is_passed_by() -> None:
    world = World()
    now_ms = world.clock.wall_ms()
    later = key(2, now_ms + 500)
    world.disk.rows[later] = NEVER_MS
    world.windows.restore([key(1, now_ms), later])
    assert world.all_taken() == []
    world.clock.advance(0.501)
    assert world.all_taken() == [2]


def test_after_the_clock_was_set_back_what_is_due_before_the_last_is_sent_too() -> None:
    world = World()
    world.put(1, world.clock.wall_ms())
    assert world.settled() == [1]
    world.clock.step_wall(-60)
    world.put(2, world.clock.wall_ms() + 1000)
    world.clock.advance(61)
    assert world.all_taken() == [2]


def test_what_expired_while_it_waited_on_disk_is_settled_and_not_sent() -> None:
    world = World(routed=False)
    now_ms = world.clock.wall_ms()
    old = world.put(1, now_ms, now_ms + 1000)
    world.put(2, now_ms)
    last_try = world.put(3, now_ms + 5000, now_ms + 5000)  # falls on the expiry itself: it gets its try
    world.clock.advance(6)
    world.windows.tick()
    world.route()
    assert world.expired == [old]
    assert world.taken() == [2, 3]
    assert last_try not in world.expired


def test_what_a_survivor_has_on_the_wire_is_not_loaded_nor_expired() -> None:
    world = World(routed=False)
    now_ms = world.clock.wall_ms()
    world.windows.hold("default.0", [1, 2, 3])
    keys = [world.put(id_, now_ms, now_ms + 1000) for id_ in (1, 2, 3)]
    world.put(4, now_ms)
    world.clock.advance(6)
    world.route()
    assert world.taken() == [4]
    assert world.expired == []
    assert world.windows.release(2) == keys[1]  # it has spoken about this one
    assert world.windows.release(2) is None
    world.windows.release_all("default.0")  # and died with the others
    assert world.taken() == [1, 3]
    assert not any(world.windows.is_held(id_) for id_ in (1, 2, 3))


def test_one_survivor_that_dies_releases_its_own_only() -> None:
    world = World(routed=False)
    now_ms = world.clock.wall_ms()
    world.windows.hold("default.0", [1])
    world.windows.hold("default.1", [2])
    world.put(1, now_ms)
    world.put(2, now_ms)
    world.route()
    world.windows.release_all("default.1")
    assert world.taken() == [2]
    assert world.windows.is_held(1)


def test_what_a_survivor_has_is_not_settled_for_want_of_a_route() -> None:
    world = World(routed=False)
    now_ms = world.clock.wall_ms()
    world.windows.hold("default.0", [1, 2, 4])
    keys = [world.put(id_, now_ms) for id_ in range(1, 6)]
    failure = Failure("deferred", Reply(0, "4.4.4", "no route"))
    assert world.windows.take_unroutable(DOMAIN, failure, 2) == [keys[2], keys[4]]
    del world.disk.rows[keys[2]], world.disk.rows[keys[4]]
    assert world.windows.take_unroutable(DOMAIN, failure, 2) == []
    world.windows.release_all("default.0")
    world.route()
    assert world.taken() == [1, 2, 4]


def test_what_a_survivor_had_and_is_settled_by_another_way_does_not_come_back_with_its_death() -> None:
    world = World()
    now_ms = world.clock.wall_ms()
    world.windows.hold("default.0", [1, 2])
    first = world.put(1, now_ms)
    world.put(2, now_ms)
    del world.disk.rows[first]
    world.windows.release_all("default.0")
    assert world.all_taken() == [2]


def test_unroutable_mail_is_handed_over_in_portions_and_later_mail_waits_for_its_time() -> None:
    world = World(routed=False)
    now_ms = world.clock.wall_ms()
    keys = [world.put(id_, now_ms) for id_ in range(1, 8)]
    world.put(8, now_ms + 10_000)
    failure = Failure("deferred", Reply(0, "4.4.4", "no route"))
    found = [world.windows.take_unroutable(DOMAIN, failure, 3) for _ in range(4)]
    assert found == [keys[:3], keys[3:6], keys[6:], []]
    for gone in keys:
        del world.disk.rows[gone]
    assert world.windows.unrouted_domains() == 0
    world.clock.advance(11)
    world.windows.tick()
    assert world.wanted == [DOMAIN, DOMAIN]
    world.route()
    assert world.taken() == [8]


def test_after_a_restart_what_is_on_disk_is_loaded_from_its_first_due_time_on() -> None:
    world = World(routed=False)
    now_ms = world.clock.wall_ms()
    for id_ in (1, 2):
        world.disk.rows[key(id_, now_ms - 5)] = NEVER_MS
    world.disk.rows[key(3, now_ms + 9_000)] = NEVER_MS
    world.windows.learn(QUEUE, DOMAIN, 1, "tenant", "spring", now_ms - 5)
    world.clock.advance(0.01)
    world.windows.tick()
    world.route()
    assert world.taken() == [1, 2]
    world.clock.advance(10)
    assert world.all_taken() == [3]


def test_a_due_time_beyond_every_clock_does_not_stop_the_others() -> None:
    """Older releases have accepted such times, so they may stand on disk: a restart must get over them."""
    world = World()
    now_ms = world.clock.wall_ms()
    world.windows.learn(7, DOMAIN, 1, "tenant", "far", NEVER_MS - 1)
    world.put(2, NEVER_MS - 1)
    world.put(1, now_ms)
    world.windows.offer(sorted(world.disk.rows), now_ms)
    assert world.taken() == [1]
    world.clock.advance(5 * 365 * 86_400)
    assert world.taken() == []


def test_who_has_something_to_take_is_woken() -> None:
    world = World()
    world.woken = 0
    world.put(1, world.clock.wall_ms())
    assert world.woken > 0


# -- forgetting


def test_a_queue_that_has_long_been_empty_is_forgotten_and_learnt_again_when_something_comes() -> None:
    world = World()
    world.put(1, world.clock.wall_ms())
    assert world.settled() == [1]
    world.clock.advance(IDLE_S - 1)
    world.sweep()
    assert (len(world.windows), len(world.flows)) == (1, 1)
    world.clock.advance(2)
    world.sweep()
    assert (len(world.windows), len(world.flows), len(world.sites.campaigns)) == (0, 0, 0)
    assert world.scheduler.stats()["flows"] == 0
    world.put(2, world.clock.wall_ms())
    assert world.wanted == [DOMAIN, DOMAIN]
    world.route()
    assert world.settled() == [2]


def test_what_waits_or_is_on_the_wire_keeps_its_queue() -> None:
    world = World()
    stored = world.put(1, world.clock.wall_ms())
    taken = decisions(world.scheduler.take(0, world.clock.monotonic_ns(), 10))
    assert [decision.id for decision in taken] == [1]
    for _ in range(3):
        world.clock.advance(IDLE_S + 1)
        world.sweep()
    assert len(world.windows) == 1
    world.scheduler.settle(packed([1]))
    del world.disk.rows[stored]
    later = world.clock.wall_ms() + 86_400_000
    world.disk.rows[key(1, later)] = NEVER_MS
    world.windows.redue(key(1, later))  # deferred: a day later
    for _ in range(3):
        world.clock.advance(IDLE_S + 1)
        world.sweep()
    assert len(world.windows) == 1
    world.clock.advance(86_400)
    assert world.all_taken() == [1]


def test_a_deferral_that_comes_back_to_a_forgotten_queue_is_not_lost() -> None:
    world = World()
    world.clock.advance(IDLE_S + 1)
    world.sweep()
    assert len(world.windows) == 0
    again = key(1, world.clock.wall_ms() + 5_000)
    world.disk.rows[again] = NEVER_MS
    world.windows.redue(again)
    world.clock.advance(6)
    world.windows.tick()
    world.route()
    assert world.all_taken() == [1]


def test_many_idle_queues_are_forgotten_before_their_time() -> None:
    world = World()
    for number in range(10, MAX_RESTING + 60):
        world.windows.learn(number, f"d{number}.example", 1, "tenant", "spring")
    while len(world.windows) > MAX_RESTING:
        world.sweep()
    world.sweep()
    assert len(world.windows) == MAX_RESTING


def test_queues_of_many_domains_share_a_flow_that_goes_with_the_last() -> None:
    world = World()
    world.windows.learn(6, "example.org", 1, "tenant", "spring")
    world.disk.rows[key(7, world.clock.wall_ms(), 6)] = NEVER_MS
    world.windows.offer([key(7, world.clock.wall_ms(), 6)], world.clock.wall_ms())
    world.route("example.org")
    assert len(world.flows) == 1
    world.clock.advance(IDLE_S + 1)
    world.sweep()
    assert (len(world.windows), len(world.flows)) == (1, 1)
    assert world.settled() == [7]
    world.clock.advance(IDLE_S + 1)
    world.sweep()
    assert (len(world.windows), len(world.flows)) == (0, 0)


# -- several domains of a provider


def two_domains(campaign: str) -> tuple[World, list[bytes]]:
    """Queue 5 has thirty messages on disk, and queue 6, of another domain, has ten that are accepted between them."""
    world = World()
    world.disk.names[6] = ("example.org", 1, "tenant", campaign)
    world.windows.learn(6, "example.org", 1, "tenant", campaign)
    now_ms = world.clock.wall_ms()
    rows = [key(n, now_ms - 100_000 + n * 3_000) for n in range(1, 31)]
    rows[10:20] = [key(n, now_ms - 100_000 + n * 3_000, 6) for n in range(11, 21)]
    for row in rows:
        world.disk.rows[row] = NEVER_MS
    world.windows.offer(rows, now_ms)
    site = world.sites.open("mx", "default", now_ns=0, counts=Counts(0), terms={})
    world.windows.routed("example.org", Route("mx", "default", (), "disabled"), site)
    return world, rows


def test_the_mail_of_a_campaign_leaves_in_the_order_in_which_it_was_accepted() -> None:
    world, rows = two_domains("spring")
    assert world.scheduler.held() <= 10
    assert world.all_taken() == [_id(row) for row in rows]


def test_what_comes_while_a_campaign_waits_goes_behind_it() -> None:
    world, _ = two_domains("spring")
    world.taken()  # now there is room
    late = key(99, world.clock.wall_ms(), 6)
    world.disk.rows[late] = NEVER_MS
    world.windows.offer([late], world.clock.wall_ms())
    assert world.all_taken()[-1] == 99


def test_mail_of_no_campaign_does_not_wait_for_that_of_another_domain() -> None:
    world = World()
    now_ms = world.clock.wall_ms()
    for number, domain in ((7, "example.org"), (8, "example.com")):
        world.disk.names[number] = (domain, 1, "tenant", "")
        world.windows.learn(number, domain, 1, "tenant", "")
    rows = [key(n, now_ms - 90_000 + n * 3_000, 7) for n in range(1, 31)]
    rows += [key(n, now_ms, 8) for n in range(31, 34)]
    for row in rows:
        world.disk.rows[row] = NEVER_MS
    world.windows.offer(rows, now_ms)
    world.route("example.org")
    world.route("example.com")
    order = world.all_taken()
    assert sorted(order) == [_id(row) for row in rows]
    assert order.index(33) < 25

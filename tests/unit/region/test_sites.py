"""The limits of each source at a site, and that a site which is out of use goes and comes back with what matters."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from engine.config.load import parse_fleet
from engine.providers.profiles import load_profiles
from engine.region.daily import counts_of, counts_on_disk
from engine.region.enforcement import Enforcement
from engine.region.flows import Flows
from engine.region.sites import ALL, DAY_MS, FREE, IDLE_S, MAX_IDLE, Counts, Site, Sites, Terms
from engine.reputation.allowance import Allowance
from engine.values.quality import Quality
from native.scheduler import Scheduler
from tests.support.clock import ManualClock
from tests.support.decisions import decisions, due_keys, packed
from tests.support.fleets import fleet_data

S = 1_000_000_000


class Memory:
    """The state of a spool."""

    def __init__(self) -> None:
        self.state: dict[str, bytes] = {}

    def get_state(self, key: str) -> bytes | None:
        return self.state.get(key)

    def put_state(self, key: str, value: bytes) -> None:
        self.state[key] = value

    def note_events(self, events: object) -> None:
        pass


class World:
    """What a region enforces with two sources, `eu-0` and `eu-1`; `profile` is that of the default provider."""

    def __init__(self, sources: Mapping[str, Any] | None = None, **profile: Any) -> None:
        base = fleet_data()["sources"][0]
        rows = [base | {"name": f"eu-{n}", "ip": f"127.0.0.{20 + n}"} | (sources or {}) for n in range(2)]
        self.config = parse_fleet(
            fleet_data(
                sources=rows,
                providers={"default": {"rate": "unlimited", **profile}},
                reputation={"floor": "trickle"},
            )
        )
        self.clock = ManualClock()
        self.store = Memory()
        self.start()

    def start(self) -> None:
        self.scheduler = Scheduler(seed=1)
        self.enforcement = Enforcement(
            config=self.config,
            region="eu",
            profiles=load_profiles(self.config.providers),
            scheduler=self.scheduler,
            store=self.store,
            clock=self.clock,
            sources=None,  # type: ignore[arg-type]
            wake=lambda: None,
        )
        self.sites: Sites = self.enforcement.sites
        self.flows = Flows(scheduler=self.scheduler, sites=self.sites)
        self.next_id = 1

    def open(self, name: str = "mx:a") -> Site:
        return self.enforcement.open(name, "default")

    def send(self, site: Site, count: int) -> list[int]:
        """Offer so many for a site; returns the times of those that go now, in ns from now."""
        flow = self.flows.join(site, 1, "t", "c")
        self.scheduler.add(flow, due_keys(range(self.next_id, self.next_id + count)))
        self.next_id += count
        now_ns = self.clock.monotonic_ns()
        found = decisions(self.scheduler.take(site.pool, now_ns, 1000))
        for key, value in counts_of(self.sites, [(site, 0), (site, 1)], self.clock.wall_ms()).items():
            self.store.put_state(key, value.to_bytes(8, "big"))
        self.scheduler.settle(packed([d.id for d in found]))
        self.scheduler.remove(packed(range(1, self.next_id)))
        self.scheduler.take(site.pool, now_ns, 1000)
        self.flows.leave(flow)
        return [d.send_at - now_ns for d in found]

    def rest(self, seconds: float = IDLE_S + 1) -> None:
        """Time passes, and the region sweeps."""
        self.flows.sweep(self.clock.monotonic_ns(), 1000)
        self.clock.advance(seconds)
        self.enforcement.sweep(1000)


def test_a_site_in_use_stays_and_one_out_of_use_goes() -> None:
    world = World()
    site, other = world.open("mx:a"), world.open("mx:b")
    flow = world.flows.join(site, 1, "t", "c")
    world.rest()
    assert [one.name for one in world.sites.opened()] == ["mx:a"]
    assert not world.sites.known("mx:b")
    world.flows.leave(flow)
    world.rest()
    assert len(world.sites) == 0
    assert world.scheduler.stats()["sites"] == 0
    assert (len(world.sites.tenants), len(world.sites.campaigns)) == (0, 0)
    again = world.open("mx:c")
    assert again.number in (site.number, other.number)  # a number is given to the next


def test_a_site_that_is_opened_and_never_used_goes_too() -> None:
    world = World()
    world.open()
    world.rest()
    assert len(world.sites) == 0


def test_the_longest_idle_go_early_when_there_are_too_many() -> None:
    world = World()
    for n in range(MAX_IDLE + 7):
        world.open(f"mx:{n}")
    world.enforcement.sweep(1000)
    assert len(world.sites) == MAX_IDLE
    assert not world.sites.known("mx:6")
    assert world.sites.known("mx:7")


def test_a_daily_cap_is_not_granted_again_to_a_site_that_was_forgotten() -> None:
    world = World(daily_cap=5)
    site = world.open()
    assert len(world.send(site, 20)) == 10  # of two sources
    world.rest()
    assert len(world.sites) == 0
    assert world.send(world.open(), 20) == []
    world.rest(DAY_MS / 1000)
    assert len(world.send(world.open(), 20)) == 10
    counts = counts_on_disk(world.sites, "mx:a", "default", world.store.get_state, world.clock.wall_ms())
    assert counts.used == {0: 5, 1: 5}


def test_a_clock_that_is_set_back_by_a_year_grants_nothing_twice_and_not_nothing_for_a_year() -> None:
    world = World(daily_cap=5, daily_cap_total=8)
    world.clock.step_wall(365 * 86_400)
    assert len(world.send(world.open(), 20)) == 8
    world.clock.step_wall(-365 * 86_400)
    for days, sent in ((0, 0), (1, 0), (1, 8), (0, 0), (1, 8)):
        world.clock.advance(days * 86_400)
        world.start()
        world.enforcement.restore()
        site = world.open()
        world.clock.advance(1)
        world.sites.new_day(world.clock.wall_ms())
        assert len(world.send(site, 20)) == sent, days


@pytest.mark.parametrize(("days", "sent"), [(0, 20), (1, 50)])
def test_what_an_owner_said_of_a_day_counts_on_that_day_only(days: int, sent: int) -> None:
    world = World(sources={"warmup": "standard"})
    today = world.clock.wall_ms() // DAY_MS
    word = Allowance("mx:a", daily_cap=50, daily_used=30, used_day=today)
    for source in (0, 1):
        world.enforcement.allowances.take(source, [word], full=True, reported=["mx:a"])
    world.enforcement.allowances.save()
    world.clock.advance(days * DAY_MS / 1000)
    world.start()  # it has no count of its own: there was no cap that it kept
    world.enforcement.restore()
    world.clock.advance(1)
    assert len(world.send(world.open(), 500)) == 2 * sent


def test_a_rate_begins_full_when_its_site_comes_back() -> None:
    world = World(rate="1/10s")
    site = world.open()
    world.clock.advance(11)
    assert world.send(site, 4) == [0, 0]
    world.rest()
    times = world.send(world.open(), 4)
    assert times == []
    world.clock.advance(10.1)
    assert len(world.send(world.open(), 4)) == 2


def test_a_suspension_outlives_its_site() -> None:
    world = World()
    world.open()
    until_ms = world.clock.wall_ms() + 7_200_000
    for source in ("eu-0", "eu-1"):
        world.enforcement.suspensions.order(source, "mx:a", until_ms, "blocked")
    world.rest()
    assert len(world.sites) == 0
    assert world.send(world.open(), 3) == []
    world.clock.advance(7_200)
    assert len(world.send(world.open(), 3)) == 3


def test_what_the_owners_said_outlives_the_site() -> None:
    world = World(sources={"warmup": "standard"})
    site = world.open()
    world.enforcement.allowances.take(0, [Allowance("mx:a", daily_cap=2)], full=True, reported=["mx:a"])
    assert (site.caps, world.enforcement.allowances.waiting(1)) == ({0: 2}, ["mx:a"])
    world.rest()
    assert world.enforcement.allowances.waiting(1) == []  # nobody asks about a site that nothing goes to
    assert world.open().caps == {0: 2}
    assert world.enforcement.allowances.waiting(1) == ["mx:a"]


def test_a_site_that_an_owner_in_warm_up_has_forgotten_is_closed_until_it_is_asked() -> None:
    """It has not said that the source is free there."""
    world = World(sources={"warmup": "standard"})
    site = world.open()
    allowances = world.enforcement.allowances
    for source in (0, 1):
        allowances.take(source, [Allowance("mx:a", daily_cap=2)], full=True, reported=["mx:a"])
    allowances.take(0, [], full=True, reported=[])
    assert allowances.waiting(0) == ["mx:a"]
    allowances.take(1, [], full=True, reported=["mx:a"])  # asked, it says that the warm-up is over
    assert allowances.waiting(1) == []
    assert len(world.send(site, 5)) == 5
    assert world.scheduler.granted(site.pool, 0) == 0
    allowances.take(0, [Allowance("mx:a", daily_cap=3)], full=False, reported=["mx:a"])
    assert allowances.waiting(0) == []


@pytest.mark.parametrize("restarts", [False, True])
def test_the_last_source_of_a_stream_trickles_on_when_its_site_comes_back(restarts: bool) -> None:
    world = World()
    site = world.open()
    allowances = world.enforcement.allowances
    removed = [Allowance("mx:a", weight=0, score=n) for n in (10, 20)]
    assert not allowances.take(0, [removed[0]], full=True, reported=["mx:a"])
    news = allowances.take(1, [removed[1]], full=True, reported=["mx:a"])
    assert {(name, breach.kept) for name, breach in news} == {("mx:a", 1)}
    assert allowances.is_kept(1, site.name)
    if restarts:
        allowances.save()
        world.start()
        world.enforcement.restore()
    else:
        world.rest()
    assert len(world.sites) == 0
    site = world.open()
    assert world.enforcement.allowances.is_kept(1, "mx:a")
    world.clock.advance(3600)
    assert len(world.send(site, 3)) == 1
    # whoever looks at the events hears of it again
    assert world.enforcement.allowances.take(0, [removed[0]], full=True, reported=["mx:a"])


def test_a_tenant_of_a_class_of_its_own_keeps_its_number() -> None:
    world = World()
    world.sites.set_quality("bad", Quality.POOR)
    number = world.sites.tenants.number("bad")
    site = world.open()
    for tenant in ("bad", "good"):
        flow = world.flows.join(site, 1, tenant, "")
        world.flows.leave(flow)
    world.rest()
    assert len(world.flows) == 0
    assert world.sites.tenants.number("bad") == number
    assert "good" not in world.sites.tenants
    world.sites.set_quality("bad", Quality.GOOD)
    world.sites.set_quality("bad", Quality.NEW)
    assert len(world.sites.tenants) == 0


# -- limits


@pytest.mark.parametrize(
    ("profile", "terms", "pace"),
    [
        ({"rate": "10/1s", "max_connections": 20}, FREE, (S // 10, 20)),
        ({"rate": "10/1s", "max_connections": 20}, Terms(rate=100), (S, 20)),
        ({"rate": "10/1s", "max_connections": 20}, Terms(connections=3), (S // 10, 3)),
        ({"rate": "10/1s", "max_connections": 20}, Terms(connections=30), (S // 10, 20)),
        ({"rate": "10/1s", "max_connections": 20}, Terms(interval_us=2_000_000), (2 * S, 20)),
        ({"rate": "10/1s", "max_connections": 20}, Terms(interval_us=10), (S // 10, 20)),
        ({"max_connections": 20}, Terms(rate=500), (0, 10)),
        ({"max_connections": 20}, Terms(rate=1), (0, 1)),
    ],
)
def test_a_limit_is_the_smaller_of_the_profiles_and_the_owners(
    profile: dict[str, Any], terms: Terms, pace: tuple[int, int]
) -> None:
    world = World(**profile)
    site = world.open()
    world.sites.change(site, 0, terms)
    assert world.sites.pace(site, 0) == pace
    assert (0 in site.paces) == (terms.rate != 1000 or pace != world.sites.pace(site, 1))
    world.sites.change(site, 0, FREE)
    assert site.paces == {}


@pytest.mark.parametrize(
    "profile",
    [
        {"rate": "1/3650d"},
        {"rate": "999999999999/s"},
        {"rate_total": "1/3650d"},
        {"max_connections": 1_000_000_000},
        {"daily_cap": 1_000_000_000, "daily_cap_total": 1_000_000_000},
    ],
)
def test_the_largest_and_smallest_numbers_that_are_allowed_can_be_enforced(profile: dict[str, Any]) -> None:
    world = World(**profile)
    site = world.open()
    world.clock.advance(1)
    for rate in (1000, 1):
        for source in (0, 1):
            world.sites.change(site, source, Terms(rate=rate, interval_us=0, daily_cap=1_000_000_000))
        assert bool(world.send(site, 10)) == ("3650d" not in str(profile))
        world.clock.advance(1)
    assert world.sites.window(site, 0) >= 1


def test_a_cap_that_comes_goes_and_changes_keeps_what_was_used() -> None:
    world = World(daily_cap=5)
    site = world.open()
    world.sites.change(site, 1, Terms(weight=0))
    assert len(world.send(site, 3)) == 3
    world.sites.change(site, 0, Terms(daily_cap=4))
    assert (site.caps[0], world.sites.used_today(site, 0)) == (4, 3)
    assert len(world.send(site, 3)) == 1
    world.sites.change(site, 0, Terms(daily_cap=100))  # the profile's cap is smaller
    assert (site.caps[0], world.sites.used_today(site, 0)) == (5, 4)
    world.sites.new_day(world.clock.wall_ms() + DAY_MS)
    assert world.sites.used_today(site, 0) == 0
    world.sites.new_day(world.clock.wall_ms())  # a clock that is set back grants nothing
    assert len(world.send(site, 9)) == 5
    assert world.sites.granted() == {"eu-0": {"mx:a": 5}, "eu-1": {"mx:a": 0}}


def test_what_was_used_beyond_a_cap_that_was_lowered_is_remembered_over_a_restart() -> None:
    """A step back takes the cap below what was sent; the region starts again; an operator skips up again."""
    world = World()
    site = world.open()
    world.sites.change(site, 0, Terms(daily_cap=500))
    world.sites.change(site, 1, Terms(weight=0))
    assert len(world.send(site, 400)) == 400
    world.sites.change(site, 0, Terms(daily_cap=200))
    counts = counts_on_disk(world.sites, "mx:a", "default", world.store.get_state, world.clock.wall_ms())
    counts = replace(counts, used=counts.used | {0: world.sites.used_today(site, 0)})
    world.start()
    terms = {0: Terms(daily_cap=200), 1: Terms(weight=0)}
    site = world.sites.open("mx:a", "default", now_ns=world.clock.monotonic_ns(), counts=counts, terms=terms)
    world.clock.advance(1)
    assert world.send(site, 10) == []
    assert world.sites.used_today(site, 0) == 400
    world.sites.change(site, 0, Terms(daily_cap=500))
    assert len(world.send(site, 400)) == 100


def test_a_cap_that_begins_counts_what_is_outstanding() -> None:
    """A source that goes back into its warm-up has messages under way: they are of the day, too."""
    config = parse_fleet(fleet_data(providers={"default": {"rate": "unlimited"}}))
    scheduler = Scheduler(seed=1)
    sites = Sites(config=config, region="eu", profiles=load_profiles(config.providers), scheduler=scheduler)
    site = sites.open("mx", "default", now_ns=0, counts=Counts(1), terms={})
    scheduler.add(scheduler.flow(site.number, 0, 0, 0), due_keys(range(1, 100)))
    under_way = [d.id for d in decisions(scheduler.take(site.pool, 10**9, 6))]
    assert len(under_way) == 6
    sites.change(site, 0, Terms(daily_cap=10, daily_used=2, used_day=site.day))
    assert scheduler.daily_left(0, site.number) == 2
    scheduler.give_back(packed(under_way[:1]))
    assert scheduler.daily_left(0, site.number) == 3
    assert len(decisions(scheduler.take(site.pool, 2 * 10**9, 50))) == 3


# -- midnight

CAPPED = {"rate": "unlimited", "daily_cap": 5, "daily_cap_total": 8}


def under_way(world: World, site: Site, count: int) -> list[int]:
    """Take so many messages of eu-0, write what a hand-over writes, and leave them under way."""
    flow = world.flows.join(site, 1, "t", "c")
    world.scheduler.add(flow, due_keys(range(world.next_id, world.next_id + count)))
    world.next_id += count
    found = decisions(world.scheduler.take(site.pool, world.clock.monotonic_ns(), count))
    assert {decision.source for decision in found} == {0}
    for key, value in counts_of(world.sites, [(site, 0)], world.clock.wall_ms()).items():
        world.store.put_state(key, value.to_bytes(8, "big"))
    return [decision.id for decision in found]


def before_midnight(seconds: float, **profile: Any) -> tuple[World, Site]:
    """A world so long before midnight; the source eu-1 sends nothing."""
    world = World(**CAPPED | profile)
    world.clock.advance((DAY_MS - world.clock.wall_ms() % DAY_MS) / 1000 - seconds)
    site = world.open()
    world.sites.change(site, 1, Terms(weight=0))
    return world, site


def test_what_midnight_meets_under_way_counts_for_both_days() -> None:
    world, site = before_midnight(1)
    ids = under_way(world, site, 3)
    world.clock.advance(2)
    world.sites.new_day(world.clock.wall_ms())
    assert (world.sites.used_today(site, 0), world.sites.used_today(site, ALL)) == (3, 3)
    world.scheduler.give_back(packed(ids[:1]))  # it was not sent
    assert (world.sites.used_today(site, 0), world.sites.used_today(site, ALL)) == (2, 2)


def test_what_was_answered_before_midnight_does_not_count_for_the_new_day() -> None:
    world, site = before_midnight(1)
    under_way(world, site, 3)
    world.clock.advance(2)
    now_ms = world.clock.wall_ms()
    world.sites.new_day(now_ms)
    world.sites.answered_before(now_ms - now_ms % DAY_MS, site, 0)
    assert (world.sites.used_today(site, 0), world.sites.used_today(site, ALL)) == (2, 3)
    # the clock is set back: the day that it was set back from goes on, and gets nothing
    world.sites.answered_before(now_ms - now_ms % DAY_MS - DAY_MS, site, 0)
    assert world.sites.used_today(site, 0) == 2


def test_a_region_that_starts_after_midnight_knows_what_was_under_way_at_it() -> None:
    world, site = before_midnight(1)
    under_way(world, site, 3)
    world.clock.advance(2)
    world.start()  # the former incarnation's pool may send them now
    site = world.open()
    assert (world.sites.used_today(site, 0), world.sites.used_today(site, ALL)) == (3, 3)
    world.sites.change(site, 1, Terms(weight=0))
    assert len(under_way(world, site, 9)) == 2
    world.start()
    site = world.open()
    assert (world.sites.used_today(site, 0), world.sites.used_today(site, ALL)) == (5, 5)


def test_a_region_that_starts_just_before_midnight_knows_it_too() -> None:
    world, site = before_midnight(10)
    under_way(world, site, 3)
    world.start()
    site = world.open()
    assert (world.sites.used_today(site, 0), world.sites.used_today(site, ALL)) == (3, 3)
    world.clock.advance(11)
    world.sites.new_day(world.clock.wall_ms())
    assert (world.sites.used_today(site, 0), world.sites.used_today(site, ALL)) == (3, 3)
    world.clock.advance(DAY_MS / 1000)
    world.sites.new_day(world.clock.wall_ms())
    assert (world.sites.used_today(site, 0), world.sites.used_today(site, ALL)) == (0, 0)


def test_what_was_under_way_hours_before_midnight_does_not_matter() -> None:
    world, site = before_midnight(7200)
    under_way(world, site, 3)
    world.clock.advance(7300)
    world.start()
    site = world.open()
    assert (world.sites.used_today(site, 0), world.sites.used_today(site, ALL)) == (0, 0)


def test_a_site_that_goes_has_nothing_under_way() -> None:
    world, site = before_midnight(600)
    assert len(world.send(site, 3)) == 3
    assert set(world.store.state) >= {"carried/eu-0/mx:a", "carried//mx:a"}
    world.rest(700)
    assert len(world.sites) == 0
    site = world.open()
    assert (world.sites.used_today(site, 0), world.sites.used_today(site, ALL)) == (0, 0)


def test_what_mail_waits_for_is_told_by_the_sources_that_can_send_it() -> None:
    world = World(max_connections=2)
    paths, now = world.enforcement.paths, world.clock.wall_ms()
    assert paths.held_by("mx:nowhere", (0, 1), now) == ""
    site = world.open()
    window = world.sites.window(site, 0)
    world.scheduler.add(world.flows.join(site, 1, "t", "c"), due_keys(range(1, 2 * window + 2)))
    world.scheduler.take(
        0, S, window - 1
    )  # one source or the other has less than half of its window under way
    assert paths.held_by("mx:a", (0, 1), now) == ""
    world.scheduler.take(0, S, window + 1)
    assert paths.held_by("mx:a", (0, 1), now) == "connections"
    world.sites.change(site, 0, Terms(interval_us=1_000_000))
    assert paths.held_by("mx:a", (0, 1), now) == "connections"
    slow = World(rate="1/min")
    slow.open()
    assert slow.enforcement.paths.held_by("mx:a", (0, 1), now) == "rate"
    together = World(rate_total="1/min")
    together.open()
    assert together.enforcement.paths.held_by("mx:a", (0, 1), now) == "rate"

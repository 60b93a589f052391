"""What is suspended, for how long, by whose word, and that a restart does not forget it."""

import pytest

from engine.config.load import parse_fleet
from engine.providers.profiles import load_profiles
from engine.region.sites import Counts, Sites
from engine.region.suspensions import PROVISIONAL_MS, STATE_KEY, Suspensions
from native.scheduler import Scheduler
from tests.support.clock import ManualClock
from tests.support.decisions import decisions, due_keys
from tests.support.fleets import fleet_data

SITE = "mx.example.net"


class Store:
    def __init__(self) -> None:
        self.states: dict[str, bytes] = {}
        self.writes = 0

    def get_state(self, key: str) -> bytes | None:
        return self.states.get(key)

    def put_state(self, key: str, value: bytes) -> None:
        self.states[key] = value
        self.writes += 1


class World:
    """Two sources at one site, in a real scheduler."""

    def __init__(
        self,
        store: Store | None = None,
        clock: ManualClock | None = None,
        *,
        longest_ms: int = 1000 * PROVISIONAL_MS,
    ) -> None:
        base = fleet_data()["sources"][0]
        sources = [base | {"name": f"eu-{n}", "ip": f"127.0.0.{20 + n}"} for n in range(2)]
        config = parse_fleet(fleet_data(sources=sources, providers={"default": {"rate": "unlimited"}}))
        self.clock = clock or ManualClock()
        self.store = store or Store()
        self.scheduler = Scheduler(seed=1)
        self.sites = Sites(
            config=config, region="eu", profiles=load_profiles(config.providers), scheduler=self.scheduler
        )
        self.subject = Suspensions(
            scheduler=self.scheduler,
            sites=self.sites,
            spool=self.store,
            clock=self.clock,
            longest_ms=longest_ms,
        )
        self.next_id = 1

    def open_site(self) -> None:
        site = self.sites.open(SITE, "default", now_ns=self.clock.monotonic_ns(), counts=Counts(1), terms={})
        self.subject.apply_to(site)
        self.clock.advance(1)

    def senders(self) -> set[int]:
        """The sources that carry something now."""
        flow = self.scheduler.flow(0, 1, 0, 0)
        self.scheduler.add(flow, due_keys(range(self.next_id, self.next_id + 40)))
        self.next_id += 40
        found = decisions(self.scheduler.take(0, self.clock.monotonic_ns(), 1000))
        self.scheduler.settle(b"".join(d.id.to_bytes(8, "little") for d in found))
        return {d.source for d in found}


@pytest.fixture
def world() -> World:
    made = World()
    made.open_site()
    return made


def test_a_reply_suspends_at_once_and_for_a_minute_at_most(world: World) -> None:
    world.subject.suspend_provisionally(["eu-0"], SITE, "550 blocked")
    assert world.senders() == {1}
    world.clock.advance(PROVISIONAL_MS / 1000 + 0.01)
    assert world.senders() == {0, 1}


def test_the_owner_makes_it_longer_or_ends_it(world: World) -> None:
    for source in ("eu-0", "eu-1"):
        world.subject.suspend_provisionally([source], SITE, "550 blocked")
    now_ms = world.clock.wall_ms()
    world.subject.judged("eu-0", SITE, reported_ms=now_ms, until_ms=now_ms + 600_000, reason="blocked")
    world.subject.judged("eu-1", SITE, reported_ms=now_ms, until_ms=0, reason="")
    assert world.senders() == {1}
    world.clock.advance(590)
    assert world.senders() == {1}
    world.clock.advance(20)
    assert world.senders() == {0, 1}


def test_an_answer_to_an_earlier_report_does_not_end_a_later_suspension(world: World) -> None:
    reported_ms = world.clock.wall_ms()
    world.clock.advance(5)
    world.subject.suspend_provisionally(["eu-0"], SITE, "550 blocked again")
    world.subject.judged("eu-0", SITE, reported_ms=reported_ms, until_ms=0, reason="")
    assert world.senders() == {1}


def test_an_order_never_shortens_what_is_in_force(world: World) -> None:
    now_ms = world.clock.wall_ms()
    world.subject.order("eu-0", SITE, now_ms + 100_000, "long")
    world.subject.order("eu-0", SITE, now_ms + 1_000, "short")
    world.subject.order("eu-1", SITE, now_ms - 1, "over already")
    world.clock.advance(50)
    assert world.senders() == {1}
    assert [row["reason"] for row in world.subject.listing()] == ["long"]


def test_all_sources_of_a_site_at_once(world: World) -> None:
    world.subject.order("", SITE, world.clock.wall_ms() + 600_000, "the provider is down")
    assert world.senders() == set()
    world.clock.advance(601)
    assert world.senders() == {0, 1}


def test_a_restart_forgets_nothing_and_revives_nothing(world: World) -> None:
    now_ms = world.clock.wall_ms()
    world.subject.order("eu-0", SITE, now_ms + 600_000, "long")
    world.subject.order("eu-1", SITE, now_ms + 10_000, "short")
    world.subject.save()
    world.clock.advance(20)
    again = World(world.store, world.clock)
    again.subject.restore()
    again.open_site()
    assert again.senders() == {1}
    assert [(row["source"], row["until_ms"]) for row in again.subject.listing()] == [
        ("eu-0", now_ms + 600_000)
    ]


def test_a_clock_that_is_set_back_suspends_for_no_longer_than_a_rule_says(world: World) -> None:
    world.clock.step_wall(365 * 86_400)
    world.subject.order("eu-0", SITE, world.clock.wall_ms() + 1000 * PROVISIONAL_MS, "long")
    world.subject.save()
    world.clock.step_wall(-365 * 86_400)
    again = World(world.store, world.clock, longest_ms=2000 * PROVISIONAL_MS)
    again.subject.restore()
    again.open_site()
    assert again.senders() == {1}
    world.clock.advance(2000 * PROVISIONAL_MS / 1000)
    assert again.senders() == {0, 1}


def test_only_what_changed_is_written_and_what_ran_out_is_forgotten(world: World) -> None:
    world.subject.save()
    assert world.store.writes == 0
    world.subject.order("eu-0", SITE, world.clock.wall_ms() + 1000, "short")
    world.subject.save()
    world.subject.save()
    assert world.store.writes == 1
    world.clock.advance(2)
    world.subject.save()
    assert world.store.writes == 2
    assert world.store.states[STATE_KEY] == b"\x90"
    assert world.subject.listing() == []


def test_a_source_that_is_no_more_is_restored_without_harm(world: World) -> None:
    world.subject.order("gone", SITE, world.clock.wall_ms() + 600_000, "was in the former configuration")
    world.subject.save()
    again = World(world.store, world.clock)
    again.subject.restore()
    again.open_site()
    assert again.senders() == {0, 1}

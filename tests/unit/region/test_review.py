"""An operator's order reaches what the region enforces; and which paths a message has now."""

import asyncio
from typing import Any

import pytest

from engine.config.schema import FleetConfig
from engine.providers.profiles import load_profiles
from engine.region import observer
from engine.region.daily import counts_of, counts_on_disk
from engine.region.enforcement import Enforcement
from engine.region.paths import NEVER
from engine.region.sites import DAY_MS, Counts, Site
from engine.reputation.allowance import Allowance, Summary, decode_summary, encode_answer
from engine.reputation.source import SourceOwner
from engine.values.outcome import Outcome, OutcomeKind, Scope
from engine.values.reply import Reply
from engine.values.stream import Stream
from native.scheduler import Scheduler
from tests.support.clock import ManualClock
from tests.support.fleets import fleet, fleet_data

TSS04 = Reply(421, "4.7.0", "[TSS04] Messages from 192.0.2.1 temporarily deferred")
BUSY = Reply(451, "4.7.500", "Server busy. Please try again later from [192.0.2.1]. (AS761)")
NETBLOCK = Reply(421, "4.7.28", "unusual rate of unsolicited email originating from your IP Netblock.")


class Store:
    """State and events in memory."""

    def __init__(self) -> None:
        self.state: dict[str, bytes] = {}
        self.events: list[tuple[int, str, dict[str, Any]]] = []

    def get_state(self, key: str) -> bytes | None:
        return self.state.get(key)

    def put_state(self, key: str, value: bytes) -> None:
        self.state[key] = value

    def note_events(self, events: list[tuple[int, str, dict[str, Any]]]) -> None:
        self.events += events


class Node:
    """The parts of a region that enforce what its sources' owners say, and the owners."""

    def __init__(self, **changes: Any) -> None:
        data = fleet_data()
        first = data["sources"][0]
        data["sources"] = [
            {**first, "name": f"eu-{n}", "ip": f"127.0.0.{10 + n}", "netblock": "127.0.0.8/29"}
            for n in (1, 2)
        ]
        data["sources"][1] |= changes
        self.config: FleetConfig = fleet(**data)
        self.clock = ManualClock()
        self.store = Store()
        self.scheduler = Scheduler(seed=1)
        self.owners = {s.name: SourceOwner(self.config, s.name) for s in self.config.sources}
        self.enforcement = Enforcement(
            config=self.config,
            region="eu",
            profiles=load_profiles(self.config.providers),
            scheduler=self.scheduler,
            store=self.store,
            clock=self.clock,
            sources=self,
            wake=lambda: None,
        )
        self.sites = self.enforcement.sites
        self.suspensions = self.enforcement.suspensions
        self.allowances = self.enforcement.allowances
        self.tenants = self.enforcement.tenants
        self.observer = self.enforcement.observer
        self.paths = self.enforcement.paths

    async def observe(self, source: str, summary: bytes) -> bytes:
        return encode_answer(self.owners[source].observe(decode_summary(summary)))

    def exchange(self) -> None:
        asyncio.run(self.observer.exchange())

    def open(self, name: str) -> Site:
        return self.enforcement.open(name, name)

    def reply(self, site: Site, reply: Reply, scope: Scope = Scope.SOURCE) -> None:
        outcome = Outcome(1, OutcomeKind.DEFERRED, scope, reply, 0, "mx", self.clock.wall_ms())
        self.observer.note(outcome, site.number)

    def cancel(self, site: str, rule: str) -> None:
        assert self.owners["eu-1"].order(self.clock.wall_ms(), "cancel", site, rule)
        self.observer.review("eu-1", site)
        self.exchange()

    def why(self, site: str, stream: int = 2, tenant: str = "t") -> dict[str, list[str]]:
        rows: list[Any] = self.paths.explain(site, stream, tenant, self.clock.wall_ms())
        assert all(row["eligible"] == (not row["reasons"]) for row in rows)
        return {row["source"]: row["reasons"] for row in rows}


def test_a_cancelled_suspension_ends_in_the_region_too() -> None:
    node = Node()
    site = node.open("yahoo")
    node.reply(site, TSS04)
    node.exchange()
    assert [s["source"] for s in node.suspensions.listing()] == ["eu-1"]
    assert "TSS04" in node.why("yahoo")["eu-1"][0]
    node.clock.advance(60)
    node.cancel("yahoo", "yahoo-deferred")
    assert node.suspensions.listing() == []
    assert node.why("yahoo") == {"eu-1": [], "eu-2": []}


@pytest.mark.parametrize(
    ("site", "reply", "scope", "count", "held", "seconds"),
    [
        ("yahoo", TSS04, Scope.SOURCE, 1, ["eu-1"], 7200),
        ("google", NETBLOCK, Scope.NETBLOCK, 1, ["eu-1", "eu-2"], 600),
        ("outlook", BUSY, Scope.PROVIDER, 5, [""], 120),
    ],
)
def test_an_order_lasts_as_long_as_its_rule_says_and_for_all_that_its_scope_says(
    site: str, reply: Reply, scope: Scope, count: int, held: list[str], seconds: int
) -> None:
    node = Node()
    place = node.open(site)
    for _ in range(count):
        assert node.suspensions.listing() == []
        node.reply(place, reply, scope)
    node.exchange()
    node.clock.advance(seconds - 1)
    node.suspensions.save()
    assert [s["source"] for s in node.suspensions.listing()] == held
    assert all(node.why(site).values()) == (held != ["eu-1"])
    node.clock.advance(1)
    node.suspensions.save()
    assert node.suspensions.listing() == []


def test_a_region_that_has_lost_what_was_suspended_hears_of_it_again() -> None:
    node = Node()
    node.reply(node.open("yahoo"), TSS04)
    node.exchange()
    again = Node()
    again.owners = node.owners
    again.open("yahoo")
    again.exchange()
    assert [s["source"] for s in again.suspensions.listing()] == ["eu-1"]
    assert "TSS04" in again.why("yahoo")["eu-1"][0]


def test_a_cancelled_netblock_order_frees_the_neighbours() -> None:
    node = Node()
    site = node.open("google")
    node.reply(site, NETBLOCK, Scope.NETBLOCK)
    node.exchange()
    node.exchange()
    assert [s["source"] for s in node.suspensions.listing()] == ["eu-1", "eu-2"]
    node.clock.advance(61)  # what the reply had put on the neighbour provisionally would be over
    node.suspensions.save()
    assert [s["source"] for s in node.suspensions.listing()] == ["eu-1", "eu-2"], "as long as the rule says"
    node.cancel("google", "google-netblock-rate")
    assert node.suspensions.listing() == []


@pytest.mark.parametrize(
    ("netblock", "reply", "scope", "stopped"),
    [
        ("127.0.0.8/29", TSS04, Scope.SOURCE, ["eu-1"]),
        ("127.0.0.8/29", NETBLOCK, Scope.NETBLOCK, ["eu-1", "eu-2"]),
        ("127.0.0.12/32", NETBLOCK, Scope.NETBLOCK, ["eu-1"]),
        ("127.0.0.8/29", Reply(421, "4.3.2", "busy"), Scope.HOST, []),
    ],
)
def test_a_reply_about_the_source_stops_it_before_its_owner_has_heard_of_it(
    netblock: str, reply: Reply, scope: Scope, stopped: list[str]
) -> None:
    node = Node(netblock=netblock, ip="127.0.0.12")
    site = node.open("google")
    node.reply(site, reply, scope)
    assert [s["source"] for s in node.suspensions.listing()] == stopped
    assert [name for name, reasons in node.why("google").items() if reasons] == stopped


def test_what_another_source_has_ordered_stays() -> None:
    node = Node()
    site = node.open("google")
    node.reply(site, NETBLOCK, Scope.NETBLOCK)
    other = Outcome(2, OutcomeKind.DEFERRED, Scope.NETBLOCK, NETBLOCK, 1, "mx", node.clock.wall_ms())
    node.observer.note(other, site.number)
    node.exchange()
    node.clock.advance(1)
    node.cancel("google", "google-netblock-rate")
    assert {s["source"] for s in node.suspensions.listing()} == {"eu-1", "eu-2"}


def test_only_sources_of_the_region_are_reviewed() -> None:
    with pytest.raises(ValueError, match="eu-9"):
        Node().observer.review("eu-9", "google")


def test_changes_are_events_and_a_storm_is_one() -> None:
    node = Node()
    site = node.open("yahoo")
    for _ in range(5):
        node.reply(site, TSS04)
        node.clock.advance(0.01)
    node.exchange()
    kinds = [kind for _, kind, _ in node.store.events]
    assert kinds.count("suspension") == 1
    assert kinds.count("allowance") == 1
    (fields,) = [f for _, kind, f in node.store.events if kind == "suspension"]
    assert (fields["source"], fields["site"]) == ("eu-1", "yahoo")
    assert fields["until_ms"] > node.clock.wall_ms() + 7_000_000
    node.exchange()
    assert len(node.store.events) == len(kinds)


def test_static_reasons() -> None:
    node = Node(streams=["transactional"], tenancy={"dedicated": "acme"})
    assert node.why("yahoo")["eu-2"] == [
        "does not serve the stream marketing",
        "dedicated to the tenant acme",
    ]
    assert node.why("yahoo", stream=0, tenant="acme") == {"eu-1": [], "eu-2": []}


def test_a_source_in_warm_up_waits_for_its_owner_and_for_its_cap() -> None:
    node = Node(warmup="standard")
    site = node.open("yahoo")
    assert node.why("yahoo")["eu-2"] == ["waits for its owner's first word about this site (warm-up)"]
    node.exchange()
    assert node.why("yahoo")["eu-2"] == []
    node.scheduler.set_daily_left(1, site.number, 0)
    assert node.why("yahoo")["eu-2"] == ["today's cap of 200 is used up"]
    assert node.sites.granted() == {"eu-2": {"yahoo": 200}}


def test_the_daily_count_belongs_to_the_source_not_to_its_place_in_the_file() -> None:
    node = Node(warmup="standard")
    site = node.open("yahoo")
    node.exchange()
    node.scheduler.set_daily_left(1, site.number, 150)
    written = counts_of(node.sites, [(site, 0), (site, 1)], site.day * DAY_MS)
    assert list(written) == ["daily/eu-2/yahoo"]
    state = {key: value.to_bytes(8, "big") for key, value in written.items()}
    moved = Node(warmup="standard")
    moved.sites.sources = {0: moved.sites.sources[1]}  # eu-1 is gone from the file: eu-2 is the first now
    today = site.day
    assert counts_on_disk(moved.sites, "yahoo", "yahoo", state.get, today * DAY_MS) == Counts(today, {0: 50})
    later = (today + 1) * DAY_MS
    assert counts_on_disk(moved.sites, "yahoo", "yahoo", state.get, later) == Counts(today + 1)


def test_outcomes_that_are_alike_count_together() -> None:
    node = Node()
    site = node.open("yahoo")
    good = Outcome(1, OutcomeKind.DELIVERED, Scope.MESSAGE, Reply(250, "", "ok"), 0, "mx", 0)
    assert not node.observer.note(good, site.number, 30)
    bad = Outcome(1, OutcomeKind.DEFERRED, Scope.SOURCE, TSS04, 0, "mx", 0)
    assert node.observer.note(bad, site.number, 5)
    assert node.observer.has_news
    node.exchange()
    (row,) = node.owners["eu-1"].shaping.listing()
    assert row["rule"] == "yahoo-deferred"
    assert node.owners["eu-1"].reputation.whole.counts.to_state()[1][0][:2] == [30.0, 5.0]  # type: ignore[index]


def test_of_an_owner_that_is_away_for_long_the_worst_sites_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(observer, "KEPT_SITES", 10)
    node = Node()
    hear = node.observe
    told: list[Summary] = []

    async def away(source: str, summary: bytes) -> bytes:
        raise ConnectionError("no such actor")

    async def back(source: str, summary: bytes) -> bytes:
        told.append(decode_summary(summary))
        return await hear(source, summary)

    node.observe = away  # type: ignore[method-assign]
    bounced = Outcome(1, OutcomeKind.BOUNCED, Scope.RECIPIENT, Reply(550, "5.1.1", "no"), 0, "mx", 0)
    good = Outcome(1, OutcomeKind.DELIVERED, Scope.RECIPIENT, Reply(250, "", "ok"), 0, "mx", 0)
    for n in range(100):
        site = node.open(f"mx:{n}")
        node.observer.note(bounced if n % 20 == 0 else good, site.number)
        node.exchange()
        assert len(node.observer._tallies[0]) <= 20
    node.observe = back  # type: ignore[method-assign]
    node.exchange()
    (summary,) = [found for found in told if found.rows]
    assert {row.site for row in summary.rows if row.bounced} == {f"mx:{n}" for n in range(0, 100, 20)}
    assert len(summary.rows) <= 20


def test_what_holds_everywhere_holds_at_sites_that_the_owner_has_forgotten() -> None:
    node = Node()
    node.open("yahoo")
    here = Allowance("yahoo", state="warming", daily_cap=50)
    everywhere = Allowance("", state="removed", weight=0, score=0, reason="listed")
    node.allowances.take(1, [here], full=False, reported=[])
    assert node.allowances.of(1, "yahoo").weight == 1000
    node.allowances.take(1, [everywhere], full=False, reported=[])
    found = node.allowances.of(1, "yahoo")
    assert (found.state, found.weight, found.daily_cap, found.reason) == ("removed", 0, 50, "listed")
    assert node.why("yahoo")["eu-2"] == ["out of the rotation (removed): listed"]
    trickle = Allowance("", state="probation", connections=1, interval_us=30_000_000)
    node.allowances.take(1, [trickle], full=False, reported=[])
    found = node.allowances.of(1, "yahoo")
    assert (found.connections, found.interval_us, found.daily_cap) == (1, 30_000_000, 50)
    node.allowances.take(1, [Allowance("")], full=False, reported=[])
    assert node.allowances.of(1, "yahoo") == here


def test_until_when_a_path_is_blocked() -> None:
    node = Node(streams=["transactional"])
    site = node.open("yahoo")
    now_ms = node.clock.wall_ms()

    def until(stream: int, tenant: str = "t") -> int:
        return node.paths.blocked_until("yahoo", node.paths.may_carry(stream, tenant), node.clock.wall_ms())

    marketing, transactional = int(Stream.MARKETING), int(Stream.TRANSACTIONAL)
    assert (until(marketing), until(transactional)) == (0, 0)
    node.suspensions.order("eu-1", "yahoo", now_ms + 5000, "blocked")
    assert (until(marketing), until(transactional)) == (now_ms + 5000, 0)  # the other one serves this only
    node.suspensions.order("", "yahoo", now_ms + 9000, "blocked")
    assert (until(marketing), until(transactional)) == (now_ms + 9000, now_ms + 9000)
    node.clock.advance(9)
    assert (until(marketing), until(transactional)) == (0, 0)
    site.caps[0] = 10
    node.scheduler.set_daily_left(0, site.number, 0)
    assert until(marketing) == (node.clock.wall_ms() // DAY_MS + 1) * DAY_MS
    node.scheduler.set_daily_left(0, site.number, 1)
    assert until(marketing) == 0


def test_a_path_without_a_source_is_blocked_for_ever() -> None:
    node = Node(tenancy={"dedicated": "shop"})
    assert node.paths.may_carry(2, "shop") == [0, 1]
    assert node.paths.may_carry(2, "t") == [0]
    assert node.paths.blocked_until("yahoo", [], 0) == NEVER

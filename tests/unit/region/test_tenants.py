"""Tenants in a region: counted from outcomes, enforced at once, told, and not forgotten."""

import itertools

import msgpack
import pytest

from engine.region import tenants as tenants_module
from engine.region.tenants import STATE_KEY, Tenants
from engine.values.outcome import Outcome, OutcomeKind, Scope
from engine.values.quality import Quality
from engine.values.reply import Reply
from tests.support.decisions import decisions, due_keys
from tests.unit.region.test_review import Node

ACCEPTED = Reply(250, "2.0.0", "ok")
UNKNOWN = Reply(550, "5.1.1", "no such user")
BLOCKED = Reply(550, "5.7.1", "part of your network is on our block list (S3140).")
SPAM = Reply(554, "5.7.1", "message refused: spam")
DEDICATED = {"tenancy": {"dedicated": "acme"}}
numbers = itertools.count(1)


def outcome(
    kind: OutcomeKind, scope: Scope = Scope.MESSAGE, reply: Reply = ACCEPTED, source: int = 0
) -> Outcome:
    return Outcome(1, kind, scope, reply, source, "mx", 0)


def send(world: Node, tenant: str, *, good: int, bad: int) -> None:
    world.tenants.note(tenant, outcome(OutcomeKind.DELIVERED), good)
    world.tenants.note(tenant, outcome(OutcomeKind.BOUNCED, Scope.RECIPIENT, UNKNOWN), bad)
    world.tenants.advance()


def used(world: Node, tenant: str, count: int = 40) -> set[str]:
    """The sources that carry a tenant's marketing mail now."""
    site = world.open("outlook")
    scheduler = world.scheduler
    first = next(numbers) * 1000
    flow = scheduler.flow(site.number, 2, world.sites.tenants.hold(tenant), 0)
    scheduler.add(flow, due_keys(range(first, first + count)))
    found = []
    for _ in range(count):
        world.clock.advance(1.0)
        found += decisions(scheduler.take(site.pool, world.clock.monotonic_ns(), 1000))
    mine = [d for d in found if d.id >= first]
    scheduler.settle(b"".join(d.id.to_bytes(8, "little") for d in found))
    scheduler.remove(b"".join(id_.to_bytes(8, "little") for id_ in range(first, first + count)))
    return {world.sites.sources[d.source].name for d in mine}


def test_a_bad_tenant_leaves_the_sources_of_the_others() -> None:
    world = Node(quality=["poor"])
    assert used(world, "bad") == used(world, "fine") == {"eu-1"}
    send(world, "bad", good=75, bad=25)
    send(world, "fine", good=990, bad=10)
    assert used(world, "bad") == {"eu-2"}
    assert used(world, "fine") == {"eu-1"}
    told = [(kind, fields) for _, kind, fields in world.store.events]
    assert [kind for kind, _ in told] == ["tenant", "alert"]
    assert told[0][1] | {"reason": ""} == {
        "tenant": "bad",
        "before": "new",
        "state": "poor",
        "score": 40,
        "reason": "",
    }
    assert "goes over the pool apart" in told[1][1]["reason"]
    why = world.why("outlook", tenant="bad")
    assert why == {"eu-1": ["does not serve tenants of the class poor, as bad is"], "eu-2": []}


def test_a_dedicated_source_that_is_removed_condemns_its_tenant_before_its_mail_overflows() -> None:
    world = Node(**DEDICATED)
    site = world.open("outlook")
    assert "eu-2" in used(world, "acme")
    world.observer.note(outcome(OutcomeKind.BOUNCED, Scope.SOURCE, BLOCKED, source=1), site.number)
    world.exchange()
    assert world.allowances.of(1, "outlook").state == "removed"
    assert used(world, "acme") == set()  # there is no pool apart, and it has a source of its own
    assert used(world, "fine") == {"eu-1"}
    assert "its source eu-2 was removed at outlook" in world.tenants.listing()[0]["reason"]  # type: ignore[operator]
    assert world.why("outlook", tenant="acme")["eu-1"] == [
        "does not serve tenants of the class poor, as acme is"
    ]


def test_without_a_pool_apart_a_tenant_without_sources_goes_on() -> None:
    world = Node()
    send(world, "bad", good=75, bad=25)
    assert used(world, "bad") == {"eu-1", "eu-2"}
    assert "there is no pool apart" in world.store.events[-1][2]["reason"]
    assert world.why("outlook", tenant="bad") == {"eu-1": [], "eu-2": []}


def test_what_a_shared_source_meets_says_nothing_about_a_tenant() -> None:
    world = Node(**DEDICATED)
    shared, own = 0, 1
    world.tenants.note("acme", outcome(OutcomeKind.DELIVERED), 100)
    for kind, scope, reply, source in (
        (OutcomeKind.BOUNCED, Scope.SOURCE, BLOCKED, shared),
        (OutcomeKind.DEFERRED, Scope.NETBLOCK, BLOCKED, own),
        (OutcomeKind.DEFERRED, Scope.PROVIDER, Reply(421, "4.3.2", "busy"), own),
        (OutcomeKind.DEFERRED, Scope.RECIPIENT, Reply(450, "4.2.0", "greylisted"), own),
        (OutcomeKind.DEFERRED, Scope.SESSION, Reply(0, "4.4.1", "timed out"), own),
        (OutcomeKind.BOUNCED, Scope.MESSAGE, Reply(552, "5.3.4", "too large"), own),
        (OutcomeKind.RETURNED, Scope.MESSAGE, Reply(0, "", ""), own),
    ):
        world.tenants.note("acme", outcome(kind, scope, reply, source), 1000)
    world.tenants.advance()
    assert world.tenants.quality_of("acme") is Quality.NEW
    world.tenants.note("acme", outcome(OutcomeKind.BOUNCED, Scope.SOURCE, BLOCKED, own), 40)
    world.tenants.advance()
    assert world.tenants.quality_of("acme") is Quality.POOR


def test_refused_content_and_late_signals_count() -> None:
    world = Node()
    world.tenants.note("spam", outcome(OutcomeKind.DELIVERED), 100)
    world.tenants.note("spam", outcome(OutcomeKind.BOUNCED, Scope.MESSAGE, SPAM), 40)
    for tenant, what in (("loud", "complaints"), ("late", "bounced")):
        world.tenants.note(tenant, outcome(OutcomeKind.DELIVERED), 1000)
        for _ in range(200):
            world.tenants.note_late(tenant, what)  # type: ignore[arg-type]
    world.tenants.advance()
    assert {str(row["tenant"]) for row in world.tenants.listing() if row["quality"] == "poor"} == {
        "spam",
        "loud",
        "late",
    }


def again(world: Node) -> Tenants:
    """Another incarnation with the state that is on disk."""
    made = Node(quality=["poor"])
    tenants = Tenants(
        config=world.config, sites=made.sites, spool=world.store, events=world.store, clock=world.clock
    )
    tenants.restore()
    made.tenants = tenants
    assert used(made, "bad") == {"eu-2"}
    return tenants


def test_a_class_survives_a_restart() -> None:
    world = Node(quality=["poor"])
    send(world, "bad", good=75, bad=25)
    world.tenants.save()
    assert again(world).listing() == world.tenants.listing()


def test_a_state_of_another_version_begins_anew() -> None:
    world = Node()
    world.store.put_state(STATE_KEY, msgpack.packb({"version": 99, "tenants": {"x": 1}}))
    world.tenants.restore()
    assert world.tenants.listing() == []


def test_an_operator_moves_a_tenant() -> None:
    world = Node(quality=["poor"])
    assert world.tenants.order("acme", Quality.POOR)
    assert not world.tenants.order("acme", Quality.POOR)
    assert used(world, "acme") == {"eu-2"}
    assert world.store.get_state(STATE_KEY) is not None
    assert world.tenants.order("acme", Quality.GOOD)
    assert used(world, "acme") == {"eu-1"}


def test_what_was_sent_before_an_operators_word_does_not_undo_it() -> None:
    world = Node(quality=["poor"])
    send(world, "bad", good=75, bad=25)
    world.tenants.note("bad", outcome(OutcomeKind.DELIVERED), 75)
    world.tenants.note("bad", outcome(OutcomeKind.BOUNCED, Scope.RECIPIENT, UNKNOWN), 25)
    assert world.tenants.order("bad", Quality.GOOD)
    world.tenants.advance()
    assert world.tenants.quality_of("bad") is Quality.GOOD
    send(world, "bad", good=75, bad=25)
    assert world.tenants.quality_of("bad") is Quality.POOR


def test_many_tenants_are_bounded_and_the_poor_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenants_module, "MAX_TENANTS", 5)
    world = Node(quality=["poor"])
    send(world, "bad", good=75, bad=25)
    for number in range(20):
        send(world, f"t{number}", good=1, bad=0)
    assert [row["tenant"] for row in world.tenants.listing()] == ["bad", "t16", "t17", "t18", "t19"]
    assert used(world, "bad") == {"eu-2"}

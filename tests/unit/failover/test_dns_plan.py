"""Which records the submission host name has: removal, return, floor, rate, retries, slow servers."""

import random
from typing import Any

import pytest
from pydantic import ValidationError

from engine.config.dns_failover import DnsFailoverConfig
from engine.config.load import ConfigError, parse_fleet
from engine.failover.dns_plan import DnsPlan, Published, Records, Step, why_it_stays
from tests.support.fleets import fleet, fleet_data

EU, US, AP = "192.0.2.1", "192.0.2.2", "192.0.2.3"
BASE = {
    "zone": "example.com",
    "name": "submit.example.com",
    "servers": ["192.0.2.53"],
    "key_file": "tsig.key",
    "addresses": {"eu": [EU], "us": [US], "ap": [AP]},
    "down_after": "2s",
    "up_after": "60s",
    "interval": "10s",
    "check": "60s",
    "ttl": "30s",
}
ALL = ("eu", "us", "ap")


def config(**changes: Any) -> DnsFailoverConfig:
    return DnsFailoverConfig.model_validate(BASE | changes)


def records(*addresses: str, ttl_s: int = 30) -> Records:
    return Records(frozenset(addresses), ttl_s)


def started(*present: str, healthy: tuple[str, ...] = ALL, **changes: Any) -> DnsPlan:
    """A plan that has looked at time 0 and seen who is healthy."""
    plan = DnsPlan(config(**changes))
    assert plan.step(0) is Step.LOOK
    plan.looked(0, records(*present), {})
    plan.observe(0, healthy)
    return plan


def publish(plan: DnsPlan, now_s: float) -> set[str]:
    """The plan wants an update; it is made and seen."""
    assert plan.step(now_s) is Step.PUBLISH
    wanted = plan.wanted()
    plan.published(now_s, Published.DONE, "")
    assert plan.step(now_s) is Step.LOOK
    plan.looked(now_s, wanted, {"ns1": wanted})
    assert plan.status.is_confirmed
    return set(wanted.addresses)


def test_nothing_happens_while_the_records_are_right() -> None:
    plan = started(EU, US, AP)
    assert plan.step(0) is Step.WAIT
    plan.observe(1000, ALL)
    assert plan.step(1000) is Step.LOOK, "it is looked at now and then"
    plan.looked(1000, records(EU, US, AP), {"ns1": records(EU, US, AP)})
    assert plan.step(1059) is Step.WAIT
    assert plan.step(1060) is Step.LOOK


def test_nothing_is_changed_before_the_zone_was_seen_and_the_health_is_known() -> None:
    plan = DnsPlan(config())
    plan.observe(0, ())
    assert plan.step(100) is Step.LOOK
    plan.looked(100, "ns: time-out", {})
    assert plan.step(100) is Step.WAIT
    assert plan.status.problem == "ns: time-out"
    unknown = DnsPlan(config())
    unknown.looked(0, records(EU), {})
    assert unknown.step(0) is Step.WAIT


def test_a_region_that_is_down_leaves_after_a_moment_and_returns_after_a_while() -> None:
    plan = started(EU, US, AP)
    plan.observe(10, ("eu", "us"))
    plan.observe(11.9, ("eu", "us"))
    assert plan.step(11.9) is Step.WAIT
    plan.observe(12, ("eu", "us"))
    assert publish(plan, 12) == {EU, US}
    plan.observe(20, ALL)
    plan.observe(79, ALL)
    assert plan.step(79) is Step.LOOK
    plan.looked(79, records(EU, US), {})
    plan.observe(80, ALL)
    assert publish(plan, 80) == {EU, US, AP}


def test_a_short_gap_changes_nothing_and_a_flapping_region_stays_out() -> None:
    plan = started(EU, US, AP)
    for second in range(10, 40):
        plan.observe(second, ALL if second % 2 else ("eu", "us"))
        assert plan.step(second) is not Step.PUBLISH
    plan.observe(50, ("eu", "us"))
    plan.observe(52, ("eu", "us"))
    assert publish(plan, 52) == {EU, US}
    for second in range(53, 300):
        plan.observe(second, ("eu", "us") if second % 30 == 0 else ALL)
        assert plan.step(second) is not Step.PUBLISH


def test_the_last_region_stays_and_the_first_that_is_healthy_replaces_it() -> None:
    plan = started(EU, US, AP)
    plan.observe(10, ("us",))
    plan.observe(12, ("us",))
    assert publish(plan, 12) == {US}
    plan.observe(30, ())
    plan.observe(1000, ())
    assert plan.step(1000) is Step.LOOK
    plan.looked(1000, records(US), {})
    assert plan.wanted() == records(US)
    plan.observe(1001, ("ap",))
    assert publish(plan, 1001) == {AP}, "at once: nobody else is healthy"


def test_of_regions_that_take_nothing_one_that_answers_stays() -> None:
    """Of two with copies one dies: the other notices first, and refuses for want of a peer."""
    plan = started(EU, US, addresses={"eu": [EU], "us": [US]}, healthy=("eu", "us"))
    plan.observe(10, ("eu",), ("us",))
    plan.observe(10.5, (), ("us",))
    plan.observe(12, (), ("us",))
    assert plan.step(12) is not Step.PUBLISH, "eu has not been down for long, but nothing better is left"
    assert plan.wanted() == records(EU, US)
    plan.observe(12.5, (), ("us",))
    assert publish(plan, 12.5) == {US}
    plan.observe(20, (), ("eu", "us"))  # it returns, and neither takes mail yet
    assert plan.wanted() == records(US)
    plan.observe(21, (), ("eu",))
    assert publish(plan, 25) == {EU}


def test_a_region_that_answers_and_takes_nothing_leaves_if_another_takes_mail() -> None:
    plan = started(EU, US, AP)
    plan.observe(10, ("us", "ap"), ("eu",))
    plan.observe(12, ("us", "ap"), ("eu",))
    assert publish(plan, 12) == {US, AP}


def test_the_floor() -> None:
    plan = started(EU, US, AP, min_regions=2)
    plan.observe(5, ("eu", "us"))
    plan.observe(6, ("eu",))
    plan.observe(20, ("eu",))
    assert publish(plan, 20) == {EU, US}, "us was healthy longer than ap"
    plan.observe(40, ())
    plan.observe(90, ())
    assert len(plan.wanted().addresses) == 2


def test_a_new_name_gets_every_healthy_region_and_none_before_one_is() -> None:
    plan = started(healthy=())
    assert plan.step(0) is Step.WAIT
    plan.observe(5, ())
    assert plan.wanted().addresses == frozenset()
    plan.observe(6, ("eu", "ap"))
    assert publish(plan, 6) == {EU, AP}


def test_an_address_family_does_not_vanish() -> None:
    plan = started(EU, "2001:db8::2", addresses={"eu": [EU], "us": ["2001:db8::2"]}, healthy=("eu", "us"))
    plan.observe(10, ("us",))
    plan.observe(20, ("us",))
    assert plan.step(20) is Step.WAIT
    assert plan.wanted().addresses == {EU, "2001:db8::2"}
    both = started(
        EU, "2001:db8::2", "2001:db8::3", addresses={"eu": [EU, "2001:db8::3"], "us": ["2001:db8::2"]}
    )
    both.observe(10, ("eu",))
    both.observe(20, ("eu",))
    assert both.wanted().addresses == {EU, "2001:db8::3"}


def test_updates_keep_their_interval() -> None:
    plan = started(EU, US, AP)
    plan.observe(10, ("eu", "us"))
    plan.observe(12, ("eu", "us"))
    publish(plan, 12)
    plan.observe(13, ("eu",))
    plan.observe(15, ("eu",))
    assert plan.step(15) is not Step.PUBLISH
    assert publish(plan, 22) == {EU}


def test_refused_updates_are_tried_again_more_and_more_slowly() -> None:
    plan = started(EU, US, AP)
    plan.observe(10, ("eu",))
    plan.observe(12, ("eu",))
    now_s, waits = 12.0, []
    for _ in range(9):
        assert plan.step(now_s) is Step.PUBLISH
        plan.published(now_s, Published.REFUSED, "REFUSED")
        before_s = now_s
        while plan.step(now_s) is not Step.PUBLISH:
            now_s += 1
            if plan.step(now_s) is Step.LOOK:
                plan.looked(now_s, records(EU, US, AP), {})
        waits.append(now_s - before_s)
    assert waits[:4] == [10, 20, 40, 80]
    assert max(waits) == 300
    assert plan.status.problem == "REFUSED"
    plan.published(now_s, Published.DONE, "")
    plan.looked(now_s, records(EU), {})
    assert (plan.status.problem, plan.status.is_confirmed) == ("", True)


def test_a_lost_answer_is_found_out_by_looking() -> None:
    plan = started(EU, US, AP)
    plan.observe(10, ("eu", "us"))
    plan.observe(12, ("eu", "us"))
    assert plan.step(12) is Step.PUBLISH
    plan.published(12, Published.UNKNOWN, "time-out")
    assert plan.status.problem == "time-out"
    assert plan.step(12.5) is Step.LOOK
    plan.looked(12.5, records(EU, US), {})
    assert (plan.status.is_confirmed, plan.status.problem) == (True, "")
    assert plan.step(30) is not Step.PUBLISH


def test_a_slow_server_is_reported_and_not_updated_again() -> None:
    plan = started(EU, US, AP)
    plan.observe(10, ("eu", "us"))
    plan.observe(12, ("eu", "us"))
    plan.published(12, Published.DONE, "")
    plan.looked(12, records(EU, US), {"ns1": records(EU, US), "ns2": records(EU, US, AP), "ns3": "time-out"})
    assert not plan.status.is_confirmed
    assert plan.status.lagging == {
        "ns2": "gives 192.0.2.1, 192.0.2.2, 192.0.2.3 with a TTL of 30 s",
        "ns3": "time-out",
    }
    looks = [second for second in range(13, 400) if _looks(plan, second)]
    assert looks[:5] == [13, 14, 16, 20, 28]
    plan.looked(400, records(EU, US), {"ns1": records(EU, US), "ns2": records(EU, US)})
    assert plan.status.is_confirmed


def _looks(plan: DnsPlan, second: int) -> bool:
    step = plan.step(second)
    assert step is not Step.PUBLISH
    if step is Step.LOOK:
        plan.looked(second, records(EU, US), {"ns1": records(EU, US), "ns2": records(EU)})
    return step is Step.LOOK


def test_what_another_changed_is_put_right_also_a_ttl() -> None:
    plan = started(EU, US, AP)
    plan.looked(60, records(EU, US, AP, ttl_s=3600), {})
    assert publish(plan, 60) == {EU, US, AP}
    plan.looked(120, records("198.51.100.9"), {})
    assert publish(plan, 120) == {EU, US, AP}


def test_an_update_that_shows_no_effect_is_told() -> None:
    plan = started(EU, US, AP)
    plan.observe(10, ("eu",))
    plan.observe(12, ("eu",))
    assert plan.step(12) is Step.PUBLISH
    plan.published(12, Published.DONE, "")
    plan.looked(12, records(EU, US, AP), {})
    assert "they say" in plan.status.problem
    assert plan.step(13) is not Step.PUBLISH
    assert plan.step(22) is Step.PUBLISH


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_the_set_is_never_empty_and_the_rate_holds(seed: int) -> None:
    rng = random.Random(seed)
    floor = rng.choice([1, 2])
    plan = DnsPlan(config(min_regions=floor))
    zone = records(*rng.sample([EU, US, AP], rng.randint(floor, 3)))
    last_s = -1000.0
    now_s = 0.0
    for _ in range(1000):
        now_s += rng.random() * 3
        healthy = [name for name in ALL if rng.random() < rng.choice([0.05, 0.5, 0.99])]
        plan.observe(now_s, healthy, [name for name in ALL if name not in healthy and rng.random() < 0.5])
        step = plan.step(now_s)
        if step is Step.LOOK:
            plan.looked(now_s, "time-out" if rng.random() < 0.2 else zone, {})
        elif step is Step.PUBLISH:
            wanted = plan.wanted()
            assert len(wanted.addresses) >= floor
            assert wanted != zone
            assert now_s - last_s >= 10
            last_s = now_s
            result = rng.choice(list(Published))
            if result is Published.DONE or (result is Published.UNKNOWN and rng.random() < 0.5):
                zone = wanted
            plan.published(now_s, result, "why")
    plan.observe(now_s, ALL)
    for _ in range(1000):
        now_s += 1
        plan.observe(now_s, ALL)
        step = plan.step(now_s)
        if step is Step.LOOK:
            plan.looked(now_s, zone, {"ns1": zone})
        elif step is Step.PUBLISH:
            zone = plan.wanted()
            plan.published(now_s, Published.DONE, "")
    assert zone == records(EU, US, AP)
    assert plan.status.is_confirmed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "submit.example.net"}, "name: allowed is example.com or a name below it"),
        ({"addresses": {}}, "addresses: allowed is at least one region"),
        ({"min_regions": 4}, "min_regions: allowed is at most 3"),
        ({"ttl": "1500ms"}, "ttl: allowed are whole seconds"),
        ({"addresses": {"eu": [EU], "us": [EU]}}, "is both eu's and us's"),
        ({"servers": ["ns.example.com"]}, "allowed is an IP address"),
        ({"servers": []}, "at least 1"),
        ({"addresses": {"eu": ["0.0.0.0"]}}, "allowed are addresses of hosts"),
    ],
)
def test_a_wrong_section(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        config(**change)


def test_the_section_in_a_fleet() -> None:
    section = BASE | {"addresses": {"eu": [EU]}, "servers": ["192.0.2.53:5353", "2001:db8::53"]}
    found = fleet(dns_failover=section).dns_failover
    assert found is not None
    assert found.ttl == 30.0
    with pytest.raises(ConfigError) as error:
        parse_fleet(fleet_data(dns_failover=section | {"addresses": {"mars": [EU]}}))
    assert "'mars': allowed are the regions eu" in str(error.value)
    assert "'eu': the region's addresses are missing" in str(error.value)


@pytest.mark.parametrize(
    ("addresses", "min_regions", "reason"),
    [
        ({"eu": ["192.0.2.1"], "us": ["192.0.2.2"]}, 1, ""),
        ({"eu": ["192.0.2.1"], "us": ["192.0.2.2"]}, 2, "min_regions is 2"),
        ({"eu": ["192.0.2.1", "2001:db8::1"], "us": ["192.0.2.2"]}, 1, "region eu alone has IPv6"),
        ({"eu": ["192.0.2.1"], "us": ["192.0.2.2", "2001:db8::1"]}, 1, ""),
    ],
)
def test_why_a_region_never_leaves(addresses: dict[str, list[str]], min_regions: int, reason: str) -> None:
    config = DnsFailoverConfig.model_construct(addresses=addresses, min_regions=min_regions)
    found = why_it_stays(config, "eu")
    assert reason in found if reason else found == ""

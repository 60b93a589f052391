"""The owner of a source: what follows from reputation, warm-up and shaping together, and what survives a restart."""

from typing import Any

import msgpack
import pytest

from engine.reputation.allowance import (
    Allowance,
    Answer,
    SiteCounts,
    SourceEvent,
    Summary,
    decode_answer,
    decode_summary,
    encode_answer,
    encode_summary,
)
from engine.reputation.figures import source_points
from engine.reputation.source import SourceOwner
from engine.reputation.standing import Standing, Transition
from tests.support.fleets import fleet, fleet_data

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
MINUTE_MS = 60_000
S3140 = "550 5.7.1 part of their network is on our block list (S3140)."
S775 = "451 4.7.650 The mail server [x] has been temporarily rate limited (S775)"
TSS04 = "421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred"


class Life:
    """An owner with its clock and the region that talks with it."""

    def __init__(self, warmup: str | None = None, **sections: Any) -> None:
        data = fleet_data(**sections)
        if warmup is not None:
            data["sources"][0]["warmup"] = warmup
        self.config = fleet(**data)
        self.owner = SourceOwner(self.config, "eu-1")
        self.now_ms = 20_000 * DAY_MS
        self.seen = 0

    def after(self, ms: int, *rows: SiteCounts, full: bool = False) -> Answer:
        self.now_ms += ms
        summary = Summary(self.now_ms, full, self.seen, rows)
        answer = decode_answer(encode_answer(self.owner.observe(decode_summary(encode_summary(summary)))))
        self.seen = max([self.seen, *(event.number for event in answer.events)])
        return answer

    def restart(self) -> None:
        state = msgpack.unpackb(msgpack.packb(self.owner.to_state()))
        self.owner = SourceOwner.from_state(self.config, "eu-1", state)
        assert self.owner.to_state() == state


def of(answer: Answer, site: str) -> Allowance:
    return next(a for a in answer.allowances if a.site == site)


def good(site: str, count: int = 100) -> SiteCounts:
    return SiteCounts(site, count, 0, 0, 0)


def refused(site: str, reply: str, count: int = 1) -> SiteCounts:
    return SiteCounts(site, 0, count, 0, count, replies=((reply, count),))


def test_messages_round_trip() -> None:
    summary = Summary(5, True, 7, (SiteCounts("google", 1, 2, 3, 4, 5, 6, (("421 x", 2), ("451 y", 1))),))
    assert decode_summary(encode_summary(summary)) == summary
    event = SourceEvent(3, 9, "shaping", "google", {"rule": "x"})
    answer = Answer(11, (Allowance("google", weight=5, reason="r"),), (event,))
    assert decode_answer(encode_answer(answer)) == answer


def test_a_source_in_good_standing_changes_nothing() -> None:
    assert Life().after(0, good("google"), full=True) == Answer(0, (), ())


def test_one_s3140_takes_the_source_out_at_outlook_alone() -> None:
    life = Life()
    answer = life.after(0, refused("outlook", S3140), good("google"))
    out = of(answer, "outlook")
    assert (out.state, out.weight, out.suspended_until_ms) == ("removed", 0, 0)
    assert "outlook-block-list" in out.reason
    assert [a.site for a in answer.allowances] == ["outlook"]
    assert [(e.kind, e.fields.get("rule"), e.fields.get("state")) for e in answer.events] == [
        ("shaping", "outlook-block-list", None),
        ("reputation", None, "removed"),
    ]
    assert answer.review_ms > life.now_ms


def test_its_figures_are_by_provider_the_worst_of_the_sites_first() -> None:
    life = Life(warmup="standard")
    life.after(0, refused("outlook", S3140), good("google"), good("mx:a.example", 7), good("mx:b.example", 5))
    points = source_points(life.owner, life.now_ms)
    found = {(point.metric.removeprefix("sendfleet."), *point.labels): point.value for point in points}
    assert found["source.sites", "outlook", "eu-1", "removed"] == 1
    assert found["source.sites", "default", "eu-1", "warming"] == 2
    assert found["source.sites", "all", "eu-1", "active"] == 1
    assert found["source.score", "google", "eu-1"] == 100
    assert found["source.score", "default", "eu-1"] == 100
    assert found["warmup.attempts", "default", "eu-1"] == 12
    assert found["warmup.delivered", "default", "eu-1"] == 12
    assert found["warmup.cap", "google", "eu-1"] > 0
    assert found["warmup.held", "google", "eu-1"] == 0
    assert not any(label.startswith("mx:") for key in found for label in key)


def test_only_changes_are_told_until_all_is_asked_for() -> None:
    life = Life()
    life.after(0, refused("outlook", S3140))
    assert life.after(1000).allowances == ()
    assert [a.site for a in life.after(1000, full=True).allowances] == ["outlook"]


def test_events_are_repeated_until_they_are_seen() -> None:
    life = Life()
    events = life.after(0, refused("yahoo", TSS04)).events
    life.seen = 0
    assert life.after(1000).events == events
    assert life.after(1000).events == ()


def test_an_owner_that_has_lost_its_state_is_heard_by_a_region_that_has_not() -> None:
    life = Life()
    life.seen = 500
    answer = life.after(0, refused("outlook", S3140))
    assert [event.kind for event in answer.events] == ["shaping", "reputation"]
    assert [event.number for event in answer.events] == [501, 502]


def test_it_comes_back_through_probation() -> None:
    life = Life()
    life.after(0, refused("outlook", S3140))
    life.restart()
    assert of(life.after(DAY_MS), "outlook").interval_us == 30_000_000
    states = []
    for _ in range(4):
        answer = life.after(31 * MINUTE_MS, good("outlook", 20))
        found = [a for a in answer.allowances if a.site == "outlook"]
        states += [(a.state, a.weight, a.connections) for a in found]
    assert states == [
        ("probation", 100, 1),
        ("probation", 250, 1),
        ("probation", 500, 2),
        ("active", 1000, 0),
    ]


def test_s775_slows_and_costs_a_stage() -> None:
    life = Life(warmup="standard")
    life.after(0, good("outlook", 200), good("google", 200))
    life.after(DAY_MS)
    assert of(life.after(0, full=True), "outlook").daily_cap == 500
    answer = life.after(HOUR_MS, refused("outlook", S775, 3))
    slowed = of(answer, "outlook")
    assert (slowed.rate, slowed.connections, slowed.daily_cap) == (500, 2, 200)
    assert slowed.suspended_until_ms == 0
    assert of(life.after(0, full=True), "google").daily_cap == 500


def test_a_new_site_of_a_source_in_warm_up_is_named_and_gets_its_first_stage() -> None:
    life = Life(warmup="conservative")
    allowance = of(life.after(0, SiteCounts("google", 0, 0, 0, 0)), "google")
    assert (allowance.daily_cap, allowance.daily_used, allowance.state) == (300, 0, "active")
    assert allowance.interval_us == 23 * HOUR_MS * 1000 // 300
    allowance = of(life.after(1000, good("google", 20)), "google")
    assert allowance.state == "warming"


def test_a_small_drift_of_the_pace_is_not_told() -> None:
    life = Life(warmup="conservative")
    life.after(0, good("google", 1))
    assert life.after(HOUR_MS, good("google", 13)).allowances == ()
    assert len(life.after(6 * HOUR_MS).allowances) == 1


def test_a_block_that_no_rule_knows_suspends_for_a_while() -> None:
    life = Life()
    answer = life.after(0, refused("mx:example.org", "554 5.7.1 Client host blocked"))
    assert of(answer, "mx:example.org").suspended_until_ms == life.now_ms + 10 * MINUTE_MS


def test_a_domain_rule_is_an_alert_and_changes_nothing() -> None:
    life = Life()
    reply = "421 4.7.28 unusual rate of email originating from your DKIM domain"
    answer = life.after(0, SiteCounts("google", 0, 1, 0, 0, replies=((reply, 1),)))
    assert [e.kind for e in answer.events] == ["alert"]
    assert answer.allowances == ()


@pytest.mark.parametrize(
    ("order", "argument", "field", "value"),
    [("skip", 3, "daily_cap", 660), ("skip", 21, "daily_cap", -1)],
)
def test_operators_orders_change_the_allowance(order: str, argument: int, field: str, value: int) -> None:
    life = Life(warmup="conservative")
    life.after(0, good("google", 1))
    assert life.owner.order(life.now_ms, order, "google", argument)
    life.restart()
    life.after(0)
    assert getattr(life.owner.allowance(life.now_ms, "google"), field) == value


def test_an_order_that_makes_no_sense_is_refused() -> None:
    life = Life(warmup="conservative")
    assert not life.owner.order(life.now_ms, "resume", "google")
    with pytest.raises(ValueError, match="stage 99: allowed are 0 to 21"):
        life.owner.order(life.now_ms, "skip", "google", 99)
    with pytest.raises(ValueError, match="allowed are pause, resume, skip and cancel"):
        life.owner.order(life.now_ms, "dance", "google")


def test_cancelling_an_order_gives_everything_back() -> None:
    life = Life()
    life.after(0, refused("yahoo", TSS04))
    assert life.owner.order(life.now_ms, "cancel", "yahoo", "yahoo-deferred")
    assert not life.owner.order(life.now_ms, "cancel", "yahoo", "yahoo-deferred")
    assert of(life.after(1), "yahoo") == Allowance("yahoo")


def test_news_are_saved_at_once_and_counts_now_and_then() -> None:
    life = Life()
    life.after(0, refused("yahoo", TSS04))
    assert life.owner.is_due_to_save(life.now_ms)
    life.owner.saved(life.now_ms)
    life.after(1000, good("google"))
    assert not life.owner.is_due_to_save(life.now_ms)
    life.after(5000, good("google"))
    assert life.owner.is_due_to_save(life.now_ms)


def test_a_state_of_the_first_release_begins_anew_and_an_unknown_one_is_refused() -> None:
    life = Life()
    first = {"google": [1, 2, 3, 4, 5, 6, "x"]}
    assert SourceOwner.from_state(life.config, "eu-1", first).reputation.sites == {}
    with pytest.raises(ValueError, match="state of source eu-1: version 9; allowed is 2"):
        SourceOwner.from_state(life.config, "eu-1", {"version": 9})


def test_the_snapshot_tells_all() -> None:
    life = Life(warmup="conservative")
    life.after(0, refused("outlook", S3140), good("google", 3))
    found = life.owner.snapshot(life.now_ms)
    assert {row["site"]: row["state"] for row in found["standings"]} == {  # type: ignore[attr-defined]
        "": "active",
        "google": "warming",
        "outlook": "removed",
    }
    assert found["shaping"][0]["rule"] == "outlook-block-list"  # type: ignore[index]
    assert {row["site"] for row in found["warmup"]} == {"google", "outlook"}  # type: ignore[attr-defined]


# -- a source that knows thousands of sites


def knowing(count: int, warmup: str | None) -> Life:
    life = Life(warmup)
    life.after(0, full=True)
    for first in range(0, count, 500):
        life.after(250, *(good(f"mx:{n}", 1) for n in range(first, first + 500)))
    return life


@pytest.mark.parametrize("warmup", [None, "standard"])
def test_an_answer_looks_at_few_of_the_sites_that_it_knows(
    warmup: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = knowing(3000, warmup)
    life.after(MINUTE_MS)  # now and then at all
    looked: list[str] = []
    whole = SourceOwner.allowance
    advanced: list[str] = []
    advance = Standing.advance

    def allowance(owner: SourceOwner, now_ms: int, site: str) -> Allowance:
        looked.append(site)
        return whole(owner, now_ms, site)

    def counted(standing: Standing, now_ms: int, *, warming: bool) -> Transition | None:
        advanced.append(standing.site)
        return advance(standing, now_ms, warming=warming)

    monkeypatch.setattr(SourceOwner, "allowance", allowance)
    monkeypatch.setattr(Standing, "advance", counted)
    life.after(250, good("mx:7"))
    assert looked == ["", "mx:7"]
    assert advanced == ["mx:7"]
    looked.clear()
    life.after(MINUTE_MS)
    assert len(looked) == (3001 if warmup else 1)


def test_a_plan_with_nothing_left_to_lose_is_forgotten_and_begins_again_in_the_same_way() -> None:
    life = knowing(1000, "standard")
    before = life.owner.allowance(life.now_ms, "mx:1")
    life.after(60 * DAY_MS, good("mx:2", 1))
    life.after(DAY_MS)
    assert set(life.owner.warmup.plans) == {"mx:2"}
    assert set(life.owner._sent) == {"mx:2"}
    answer = life.after(250, SiteCounts("mx:1", 0, 0, 0, 0))  # the region asks before it sends there
    assert of(answer, "mx:1").daily_cap == before.daily_cap
    assert set(life.owner.warmup.plans) == {"mx:1", "mx:2"}


def test_a_site_that_left_with_the_whole_source_returns_with_it_though_its_plan_is_forgotten() -> None:
    life = Life("standard")
    bounces = [SiteCounts(site, 20, 0, 180, 0) for site in ("google", "outlook")]
    gone = life.after(250, *bounces, SiteCounts("mx:1", 0, 0, 0, 0), full=True)
    assert (of(gone, "mx:1").state, of(gone, "mx:1").weight) == ("removed", 0)
    life.after(20 * DAY_MS)
    life.after(250, bounces[0])
    back = life.after(20 * DAY_MS)
    assert "mx:1" not in life.owner.warmup.plans
    assert of(back, "mx:1").weight > 0

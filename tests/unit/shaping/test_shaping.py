"""Thresholds, suspension, multiplicative decrease and additive increase, Google's recovery, restart, cancel."""

import math

import msgpack
import pytest

from engine.config.shaping import AutomationRule, ShapingConfig
from engine.config.units import Rate
from engine.providers.profiles import load_profiles
from engine.shaping.control import MAX_HITS
from engine.shaping.rules import RuleSet
from engine.shaping.shaping import UNSHAPED, Fired, Shaping
from engine.shaping.windows import Answers

CONFIG = ShapingConfig()
PROFILES = load_profiles({})
RULES = {n: RuleSet.build(p.automation, p.max_connections) for n, p in PROFILES.items()}
MINUTE_MS = 60_000
HOUR_MS = 3_600_000
GOOGLE = "421 4.7.28 an unusual rate of email originating from your IP address"
YAHOO = "421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred"
S775 = "451 4.7.650 The mail server [x] has been temporarily rate limited (S775)"
S3115 = "451 4.7.652 The mail server [x] has exceeded the maximum number of connections. (S3115)"
S3140 = "550 5.7.1 part of their network is on our block list (S3140)."
BUSY = "451 4.7.500 Server busy. Please try again later from [x]. (AS761)"


class Life:
    def __init__(self) -> None:
        self.shaping = Shaping(CONFIG, RULES.__getitem__)
        self.now_ms = 1_000_000_000

    def after(self, ms: int, site: str, *replies: str, delivered: int = 0) -> list[Fired]:
        self.now_ms += ms
        return self.shaping.observe(self.now_ms, site, [(reply, 1) for reply in replies], delivered)


def test_tss04_suspends_for_two_hours_and_then_begins_slowly() -> None:
    life = Life()
    (fired,) = life.after(0, "yahoo", YAHOO)
    assert fired.order.until_ms == life.now_ms + 2 * HOUR_MS
    assert life.shaping.shape("yahoo").source_until_ms == life.now_ms + 2 * HOUR_MS
    assert life.after(MINUTE_MS, "yahoo", YAHOO) == [], "a late answer does not prolong it"
    life.after(2 * HOUR_MS, "yahoo")
    shape = life.shaping.shape("yahoo")
    assert (shape.source_until_ms, shape.rate) == (0, 250)


def test_the_rate_rises_additively_only_while_mail_is_delivered() -> None:
    life = Life()
    life.after(0, "yahoo", YAHOO)
    life.after(2 * HOUR_MS, "yahoo")
    rates = []
    for _ in range(3):
        life.after(5 * MINUTE_MS, "yahoo", delivered=10)
        rates.append(life.shaping.shape("yahoo").rate)
    assert rates == [300, 350, 400]
    life.after(HOUR_MS, "yahoo")
    assert life.shaping.shape("yahoo").rate == 400, "idle time earns nothing"
    for _ in range(20):
        life.after(5 * MINUTE_MS, "yahoo", delivered=10)
    assert life.shaping.shape("yahoo") == UNSHAPED
    assert life.shaping.sites == {}, "nothing is remembered that need not be"


def test_s775_multiplies_once_per_period_down_to_the_floor() -> None:
    life = Life()
    life.after(0, "outlook", S775, S775, S775)
    shape = life.shaping.shape("outlook")
    assert (shape.rate, shape.connections, shape.source_until_ms) == (500, 2, 0)
    life.after(1000, "outlook", S775)
    assert life.shaping.shape("outlook").rate == 500
    for _ in range(10):
        life.after(MINUTE_MS, "outlook", S775)
    shape = life.shaping.shape("outlook")
    assert (shape.rate, shape.connections) == (50, 1)
    life.after(29 * MINUTE_MS, "outlook", delivered=10)
    assert life.shaping.shape("outlook").rate == 50, "the order holds it for its duration"
    life.after(7 * MINUTE_MS, "outlook", delivered=10)
    life.after(6 * MINUTE_MS, "outlook", delivered=10)
    assert life.shaping.shape("outlook").rate == 100


def test_s3115_is_about_connections_alone() -> None:
    life = Life()
    life.after(0, "outlook", S3115)
    shape = life.shaping.shape("outlook")
    assert (shape.rate, shape.connections) == (1000, 2)


def test_s3140_orders_a_removal() -> None:
    life = Life()
    (fired,) = life.after(0, "outlook", S3140)
    assert (fired.rule.action, fired.rule.duration) == ("remove", 86400)
    assert life.after(1000, "outlook", S3140) == []


def test_a_threshold_needs_its_number_within_its_period() -> None:
    life = Life()
    for _ in range(8):
        assert life.after(20_000, "outlook", BUSY) == []
    fired = life.after(1000, "outlook", *[BUSY] * 3)
    assert [f.rule.name for f in fired] == ["outlook-busy"]
    shape = life.shaping.shape("outlook")
    assert shape.provider_until_ms == life.now_ms + 2 * MINUTE_MS
    assert shape.source_until_ms == 0


@pytest.mark.parametrize(("count", "apart_s"), [(60, 30), (100, 30), (100, 35.9), (1000, 3.5)])
def test_a_large_threshold_counts_replies_that_come_one_by_one(count: int, apart_s: float) -> None:
    rule = AutomationRule.model_validate(
        {
            "name": "many",
            "pattern": "BUSY",
            "sample": "451 4.3.2 BUSY",
            "scope": "source",
            "threshold": f"{count}/h",
            "action": "suspend",
            "duration": "10m",
        }
    )
    life = Life()
    life.shaping = Shaping(CONFIG, lambda _: RuleSet.build((rule,), 10))
    fired = [life.after(round(apart_s * 1000), "x", rule.sample) for _ in range(count + count // 20)]
    (at,) = [number for number, orders in enumerate(fired, 1) if orders]
    # of more than are kept one by one it is known within a part of the period when they came
    assert count <= at <= count + (count // 50 if count > MAX_HITS else 0)


def test_replies_that_are_further_apart_than_a_large_threshold_says_set_nothing_off() -> None:
    life = Life()
    rule = PROFILES["outlook"].automation[0].model_copy(update={"threshold": Rate(100, 3600.0)})
    life.shaping = Shaping(CONFIG, lambda _: RuleSet.build((rule,), 10))
    for _ in range(300):
        assert life.after(37_000, "outlook", S3140) == []
    assert len(life.shaping.sites["outlook"]._hits[rule.name]) <= MAX_HITS


def test_google_recovers_one_connection_at_a_time() -> None:
    life = Life()
    (fired,) = life.after(0, "google", GOOGLE)
    assert fired.rule.step_back
    until_ms = life.now_ms + 10 * MINUTE_MS
    assert life.shaping.shape("google").source_until_ms == until_ms
    assert life.shaping.review_ms("google", life.now_ms) == until_ms
    life.after(10 * MINUTE_MS, "google")
    shape = life.shaping.shape("google")
    assert (shape.source_until_ms, shape.connections) == (0, 1)
    seen = []
    for _ in range(4):
        life.after(MINUTE_MS, "google", delivered=10)
        seen.append(life.shaping.shape("google").connections)
    assert seen == [2, 3, 4, 0]
    assert life.shaping.sites == {}


def test_each_number_of_connections_lasts_its_time_however_much_it_delivers() -> None:
    life = Life()
    life.after(0, "google", GOOGLE)
    life.after(10 * MINUTE_MS, "google")
    life.after(MINUTE_MS - 1, "google", delivered=10_000)
    assert life.shaping.shape("google").connections == 1
    life.after(1, "google")
    assert life.shaping.shape("google").connections == 2


def test_a_step_that_delivers_nothing_opens_no_further_connection() -> None:
    life = Life()
    life.after(0, "google", GOOGLE)
    life.after(10 * MINUTE_MS, "google")
    life.after(10 * MINUTE_MS, "google", delivered=9)
    assert life.shaping.shape("google").connections == 1


def test_google_refusing_again_means_another_ten_minutes() -> None:
    life = Life()
    life.after(0, "google", GOOGLE)
    life.after(10 * MINUTE_MS, "google")
    life.after(MINUTE_MS, "google", delivered=10)
    (fired,) = life.after(1000, "google", GOOGLE)
    assert fired.order.until_ms == life.now_ms + 10 * MINUTE_MS
    assert life.shaping.shape("google").source_until_ms == life.now_ms + 10 * MINUTE_MS
    life.after(10 * MINUTE_MS, "google")
    assert life.shaping.shape("google").connections == 1


def test_a_clock_that_is_set_back_makes_no_order_last_longer_than_its_rule_says() -> None:
    life = Life()
    life.now_ms += 400 * 24 * HOUR_MS
    for site, reply in (("yahoo", YAHOO), ("google", GOOGLE), ("outlook", S775)):
        assert len(life.after(0, site, reply)) == 1
    life.shaping = Shaping.from_state(CONFIG, RULES.__getitem__, life.shaping.to_state())
    life.now_ms -= 400 * 24 * HOUR_MS
    life.shaping.advance(life.now_ms)
    assert life.shaping.shape("yahoo").source_until_ms == life.now_ms + 2 * HOUR_MS
    assert life.shaping.shape("google").source_until_ms == life.now_ms + 10 * MINUTE_MS
    life.after(10 * MINUTE_MS, "google")
    assert (life.shaping.shape("google").source_until_ms, life.shaping.shape("google").connections) == (0, 1)
    for _ in range(60):
        life.now_ms += 6 * MINUTE_MS
        for site in ("yahoo", "google", "outlook"):
            life.after(0, site, delivered=20)
    assert life.shaping.sites == {}


def test_a_netblock_order_is_told_apart_from_one_about_the_source() -> None:
    life = Life()
    life.after(0, "google", "421 4.7.28 unsolicited email originating from your IP Netblock")
    shape = life.shaping.shape("google")
    assert (shape.source_until_ms, shape.netblock_until_ms) == (0, life.now_ms + 10 * MINUTE_MS)


def test_what_is_in_force_is_listed_with_its_reason_and_can_be_cancelled() -> None:
    life = Life()
    life.after(0, "yahoo", YAHOO)
    (row,) = life.shaping.listing()
    assert (row["rule"], row["action"], row["reply"]) == ("yahoo-deferred", "suspend", YAHOO)
    assert row["until_ms"] == life.now_ms + 2 * HOUR_MS
    assert not life.shaping.cancel("yahoo", "other")
    assert life.shaping.cancel("yahoo", "yahoo-deferred")
    assert life.shaping.shape("yahoo") == UNSHAPED


@pytest.mark.parametrize("reply", [GOOGLE, YAHOO, S775, BUSY])
def test_everything_survives_a_restart(reply: str) -> None:
    life = Life()
    site = {GOOGLE: "google", YAHOO: "yahoo"}.get(reply, "outlook")
    life.after(0, site, reply)
    state = msgpack.unpackb(msgpack.packb(life.shaping.to_state()))
    again = Shaping.from_state(CONFIG, RULES.__getitem__, state)
    assert again.to_state() == life.shaping.to_state()
    assert again.shape(site) == life.shaping.shape(site)
    with pytest.raises(ValueError, match="version 3; allowed is 1"):
        Shaping.from_state(CONFIG, RULES.__getitem__, state | {"version": 3})


# -- connection windows (windows.py has their own tests)

ADAPTIVE = {
    n: RuleSet.build(p.automation, p.max_connections, is_adaptive=n != "google") for n, p in PROFILES.items()
}
FULL = PROFILES["yahoo"].max_connections


def answers(ms: float, most: int = FULL) -> Answers:
    return Answers(attempts=100, timed=100, log2_us=100 * math.log2(ms * 1000), most=most)


def narrowed(site: str = "yahoo") -> Shaping:
    shaping = Shaping(CONFIG, ADAPTIVE.__getitem__)
    for n, ms in enumerate((100, 100, 900)):
        shaping.note_answers(1_000_000 + n * 6_000, site, answers(ms))
    return shaping


def test_slow_answers_leave_fewer_connections_than_the_profile_allows() -> None:
    shaping = narrowed()
    assert 0 < shaping.adapted("yahoo") < FULL
    assert shaping.adapted("outlook") == 0
    assert shaping.narrow == {"yahoo"}
    assert shaping.review_ms("yahoo", 1_012_000) == 1_012_000 + 300_000
    shaping.advance(1_012_000 + 300_000)
    assert shaping.adapted("yahoo") == narrowed().adapted("yahoo") + 1


def test_where_it_is_turned_off_nothing_is_adapted_and_what_was_is_forgotten() -> None:
    assert narrowed("google").windows == {}
    shaping = narrowed()
    before = msgpack.unpackb(msgpack.packb(shaping.to_state()))
    off = Shaping.from_state(CONFIG, RULES.__getitem__, before)
    assert (off.windows, off.adapted("yahoo")) == ({}, 0)
    on = Shaping.from_state(CONFIG, ADAPTIVE.__getitem__, before)
    assert on.adapted("yahoo") == shaping.adapted("yahoo")
    shaping.note_answers(1_030_000, "outlook", answers(100))
    assert shaping.to_state() == before, "only what is not full is worth a place on disk"
    assert on.narrow == {"yahoo"}


def test_a_state_without_windows_is_one_of_an_earlier_release() -> None:
    state = narrowed().to_state()
    del state["windows"]
    assert Shaping.from_state(CONFIG, ADAPTIVE.__getitem__, state).windows == {}


def test_windows_are_bounded_and_full_ones_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.shaping.shaping.MAX_WINDOWS", 3)
    shaping = Shaping(CONFIG, lambda site: ADAPTIVE["yahoo"])
    for n, ms in enumerate((100, 100, 900)):
        shaping.note_answers(1_000_000 + n * 6_000, "a", answers(ms))
    for n, site in enumerate("bcde"):
        shaping.note_answers(1_020_000 + n, site, answers(100))
    assert list(shaping.windows) == ["a", "d", "e"]


def test_a_full_window_that_is_not_used_is_forgotten() -> None:
    shaping = Shaping(CONFIG, lambda site: ADAPTIVE["yahoo"])
    shaping.note_answers(0, "a", answers(100))
    shaping.note_answers(HOUR_MS // 2, "b", answers(100))
    shaping.advance(HOUR_MS)
    assert list(shaping.windows) == ["b"]

"""Standings: removal by site, then as a whole; the way back; what survives a restart."""

from typing import Any

import msgpack
import pytest

from engine.config.reputation import ProbationConfig, ReputationConfig
from engine.reputation import book as book_module
from engine.reputation.allowance import SiteCounts
from engine.reputation.book import Reputation
from engine.reputation.floor import Candidate, find_breaches
from engine.reputation.standing import FULL, State
from engine.values.stream import Stream

CONFIG = ReputationConfig()
STAY_MS = round(CONFIG.removed_stay * 1000)
MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS


def good(site: str, count: int = 100) -> SiteCounts:
    return SiteCounts(site, count, 0, 0, 0)


def blocked(site: str, count: int = 100) -> SiteCounts:
    return SiteCounts(site, 0, count, 0, count)


def bouncing(site: str, bounced: int) -> SiteCounts:
    return SiteCounts(site, 100 - bounced, 0, bounced, 0)


class Life:
    """A book with its clock."""

    def __init__(self, config: ReputationConfig = CONFIG) -> None:
        self.book = Reputation(config)
        self.now_ms = 1_000_000_000
        self.warming = False

    def after(self, ms: int, *rows: SiteCounts) -> list[tuple[str, State]]:
        self.now_ms += ms
        self.book.observe(self.now_ms, rows)
        return [(t.site, t.after) for t in self.book.advance(self.now_ms, lambda _: self.warming)]

    def state(self, site: str = "outlook") -> State:
        return self.book.standing(site).state


def test_a_source_is_removed_at_the_site_that_blocks_it_and_only_there() -> None:
    life = Life()
    assert life.after(0, good("google"), blocked("outlook")) == [("outlook", State.REMOVED)]
    assert life.book.share("outlook").permille == 0
    assert life.book.share("google").permille == FULL
    assert "blocks" in life.book.standing("outlook").reason


def test_few_bad_replies_remove_nothing() -> None:
    life = Life()
    assert life.after(0, blocked("outlook", 20)) == []


def test_it_returns_by_probes_and_a_ramp_and_not_before_the_minimum_stay() -> None:
    life = Life()
    life.after(0, blocked("outlook"))
    assert life.after(STAY_MS - 1) == []
    assert life.after(1) == [("outlook", State.PROBATION)]
    assert life.book.share("outlook").interval_ms == 30_000
    shares = []
    for _ in range(4):
        life.after(31 * MINUTE_MS, good("outlook", 20))
        shares.append((life.state(), life.book.share("outlook").permille))
    assert shares == [
        (State.PROBATION, 100),
        (State.PROBATION, 250),
        (State.PROBATION, 500),
        (State.ACTIVE, FULL),
    ]


def test_a_failed_probation_goes_back_and_stays_longer() -> None:
    life = Life()
    life.after(0, blocked("outlook"))
    life.after(STAY_MS)
    assert life.after(MINUTE_MS, blocked("outlook", 20)) == [("outlook", State.REMOVED)]
    assert life.after(STAY_MS) == []
    assert life.after(STAY_MS) == [("outlook", State.PROBATION)]


def test_a_hopeless_probation_ends_before_all_probes_are_spent() -> None:
    life = Life()
    life.after(0, blocked("outlook"))
    life.after(STAY_MS)
    assert life.after(MINUTE_MS, blocked("outlook", 1)) == [("outlook", State.REMOVED)]


def test_a_medium_score_degrades_and_hysteresis_holds_it_there() -> None:
    life = Life(CONFIG.model_copy(update={"windows": CONFIG.windows[:1]}))
    assert life.after(0, bouncing("outlook", 10)) == [("outlook", State.DEGRADED)]
    share = life.book.share("outlook").permille
    assert 0 < share < FULL
    life.after(0, bouncing("outlook", 13))
    assert life.book.share("outlook").permille < share
    assert life.after(MINUTE_MS, good("outlook", 2000)) == []  # recovered, but its stay is not over
    assert life.after(10 * MINUTE_MS, good("outlook")) == [("outlook", State.ACTIVE)]


def test_a_score_between_the_limits_of_hysteresis_neither_degrades_nor_ends_it() -> None:
    config = CONFIG.model_copy(update={"windows": CONFIG.windows[:1], "hysteresis": 15})
    life = Life(config)
    assert life.after(0, bouncing("outlook", 7)) == []
    assert 80 <= life.book.score("outlook") < 95
    assert life.after(0, bouncing("outlook", 17)) == [("outlook", State.DEGRADED)]
    assert life.after(HOUR_MS, SiteCounts("outlook", 1910, 0, 90, 0)) == []
    assert 80 <= life.book.score("outlook") < 95
    assert life.after(HOUR_MS, good("outlook", 2000)) == [("outlook", State.ACTIVE)]


def test_a_removal_is_forgiven_by_a_day_in_good_standing() -> None:
    life = Life()

    def stay() -> int:
        life.after(0, blocked("outlook"))
        removed = life.book.sites["outlook"]
        life.after(removed.stay_ms)
        for _ in range(4):
            life.after(31 * MINUTE_MS, good("outlook", 20))
        assert life.state() is State.ACTIVE
        return removed.stay_ms

    assert [stay(), stay(), stay()] == [STAY_MS, 2 * STAY_MS, 4 * STAY_MS]
    for _ in range(3):
        life.after(DAY_MS, good("outlook", 20))
    assert stay() == STAY_MS


def test_the_trickle_lasts_its_time_however_fast_the_probes_are() -> None:
    life = Life()
    life.after(0, blocked("outlook"))
    life.after(STAY_MS)
    stay_ms = round(CONFIG.probation.stay * 1000)
    assert life.after(stay_ms - 1, good("outlook", 200)) == []
    assert life.book.share("outlook").interval_ms == 30_000
    assert life.after(1) == [("outlook", State.PROBATION)]
    step_ms = round(CONFIG.probation.step * 1000)
    assert life.after(step_ms - 1, good("outlook", 200)) == []
    assert life.book.share("outlook").permille == 100


def test_what_it_was_removed_for_is_no_reason_to_remove_it_again() -> None:
    life = Life()
    life.after(0, blocked("outlook", 100_000))
    life.after(STAY_MS)
    for _ in range(4):
        life.after(31 * MINUTE_MS, good("outlook", 20))
    assert life.state() is State.ACTIVE
    assert life.after(MINUTE_MS, good("outlook", 2000)) == []
    assert life.state() is State.ACTIVE


def test_a_clock_that_is_set_back_keeps_nobody_out_for_ever() -> None:
    """The machine took it for another year; what it wrote then is read by the next process."""
    life = Life()
    life.after(400 * DAY_MS, blocked("outlook"), bouncing("google", 10))
    assert life.state("google") is State.DEGRADED
    life.book = Reputation.from_state(CONFIG, life.book.to_state())
    life.after(-400 * DAY_MS)
    assert life.after(STAY_MS - 1) == [("google", State.ACTIVE)]
    assert life.after(1) == [("outlook", State.PROBATION)]
    for _ in range(4):
        life.after(31 * MINUTE_MS, good("outlook", 20))
    assert life.state() is State.ACTIVE


def test_removal_by_order_lasts_as_long_as_it_says() -> None:
    life = Life()
    transition = life.book.remove(life.now_ms, "outlook", "S3140", stay_ms=2 * STAY_MS)
    assert transition is not None
    assert transition.after is State.REMOVED
    assert life.book.remove(life.now_ms, "outlook", "S3140") is None
    assert life.after(STAY_MS) == []
    assert life.after(STAY_MS) == [("outlook", State.PROBATION)]


def test_several_sites_that_agree_remove_the_whole_source_once() -> None:
    life = Life()
    found = life.after(0, blocked("outlook"), blocked("google"), good("yahoo"))
    assert ("", State.REMOVED) in found
    assert life.book.share("yahoo").permille == 0
    assert life.book.standing("yahoo").reason == "removed by outlook, google"
    life.book.remove(life.now_ms, "apple", "x", stay_ms=10 * STAY_MS)
    found = life.after(STAY_MS)
    assert ("", State.PROBATION) in found
    assert life.state("yahoo") is State.PROBATION
    assert all(site for site, _ in life.after(1)), "what agreed before the return does not count again"


def test_sites_that_agree_are_outvoted_by_those_that_do_not() -> None:
    life = Life()
    others = [good(f"mx:{n}") for n in range(3)]
    found = life.after(0, blocked("outlook"), blocked("google"), *others)
    assert sorted(site for site, _ in found) == ["google", "outlook"]
    assert life.book.share("mx:0").permille == FULL
    assert ("", State.REMOVED) in life.after(0, blocked("yahoo"))


def test_a_listed_source_stays_out_everywhere_until_the_listing_ends() -> None:
    life = Life()
    life.book.listed = "zen.example"
    assert life.after(0, good("google")) == [("", State.REMOVED)]
    assert life.book.share("never-met").permille == 0
    assert life.after(10 * STAY_MS) == []
    life.book.listed = ""
    assert life.after(1) == [("", State.PROBATION)]


def test_warming_is_a_state_of_its_own() -> None:
    life = Life()
    life.warming = True
    assert life.after(0, good("google")) == [("google", State.WARMING)]
    assert life.book.share("google").permille == FULL
    life.warming = False
    life.book.look_at("google")
    assert life.after(1) == [("google", State.ACTIVE)]


def test_everything_survives_a_restart() -> None:
    life = Life()
    life.after(0, blocked("outlook"), bouncing("google", 6))
    state = msgpack.unpackb(msgpack.packb(life.book.to_state()))
    life.book = Reputation.from_state(CONFIG, state)
    assert life.book.to_state() == state
    assert ("outlook", State.PROBATION) not in life.after(STAY_MS - 1)
    assert ("outlook", State.PROBATION) in life.after(1)


def test_a_state_of_an_unknown_version_is_refused() -> None:
    state = Reputation(CONFIG).to_state() | {"version": 99}
    with pytest.raises(ValueError, match="version 99; allowed is 1"):
        Reputation.from_state(CONFIG, state)


def test_a_shorter_ramp_in_the_configuration_does_not_break_a_stored_step() -> None:
    life = Life()
    life.after(0, blocked("outlook"))
    life.after(STAY_MS)
    for _ in range(3):
        life.after(31 * MINUTE_MS, good("outlook", 20))
    shorter = CONFIG.model_copy(update={"probation": ProbationConfig(ramp=(0.2,))})
    book = Reputation.from_state(shorter, life.book.to_state())
    assert book.share("outlook").permille == 200


MAIL = frozenset({Stream.TRANSACTIONAL})
BULK = frozenset({Stream.MARKETING})


def test_the_last_source_of_a_stream_is_a_breach() -> None:
    rows = [
        Candidate(0, MAIL | BULK, serves=False, score=10),
        Candidate(1, BULK, serves=False, score=30),
        Candidate(2, MAIL, serves=True, score=90),
    ]
    (breach,) = find_breaches(rows, "hold")
    assert (breach.stream, breach.kept) == (Stream.MARKETING, None)
    (breach,) = find_breaches(rows, "trickle")
    assert breach.kept == 1


def test_a_stream_that_nobody_serves_is_no_breach() -> None:
    assert find_breaches([Candidate(0, MAIL, serves=True, score=90)], "hold") == []


def test_when_there_are_too_many_sites_a_removal_is_the_last_to_be_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(book_module, "MAX_SITES", 3)
    life = Life()
    life.after(0, blocked("outlook"))
    life.after(0, *[good(f"mx:{n}") for n in range(10)])
    assert list(life.book.sites) == ["outlook", "mx:8", "mx:9"]
    assert life.state() is State.REMOVED
    life.after(0, *[blocked(f"mx:{n}") for n in range(10)])
    assert len(life.book.sites) == 3
    assert life.book.unsettled <= life.book.sites.keys()


def test_sites_in_good_standing_that_are_not_heard_of_cost_nothing() -> None:
    life = Life()
    for number in range(300):
        life.after(0, good(f"mx:{number}"))
    judged: list[int] = []
    for standing in life.book.sites.values():
        standing.counts = CountingCounts(standing.counts, judged)  # type: ignore[assignment]
    assert life.after(1000, good("mx:7")) == []
    assert len(judged) == 1


class CountingCounts:
    """Counts that tell when they are judged."""

    def __init__(self, counts: Any, judged: list[int]) -> None:
        self._counts = counts
        self._judged = judged

    def score(self, at_ms: int) -> Any:
        self._judged.append(at_ms)
        return self._counts.score(at_ms)

    def add(self, at_ms: int, counts: Any) -> None:
        self._counts.add(at_ms, counts)

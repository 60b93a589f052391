"""Modelled providers: limits, spikes, spam, blocks, and how they are forgiven; that their replies are understood."""

import random
import statistics

import pytest

from engine.simulator.models import BUILT_IN, PLENTY, Listing, Mailboxes, ModelConfig, Record, draw
from engine.values.outcome import OutcomeKind, Scope

DAY_S = 86_400.0


def boxes(name: str = "outlook", history: int = 0, **changes: object) -> Mailboxes:
    config = BUILT_IN.get(name, ModelConfig()).model_copy(update=changes)
    return Mailboxes(config, {0: history}, random.Random(1))


def refused(found: Mailboxes, now_s: float, count: int, unknown: float = 0.0, spam: float = 0.0) -> int:
    return sum(part.attempts for part in found.answer(0, now_s, count, 0, unknown, spam))


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_the_engine_understands_the_replies(name: str) -> None:
    said = boxes(name).replies
    assert said["unknown_user"].kind is OutcomeKind.BOUNCED
    assert said["greylisted"].kind is OutcomeKind.DEFERRED
    for kind in ("rate", "soft", "block", "netblock"):
        assert said[kind].kind is OutcomeKind.DEFERRED, said[kind].reply
    for kind in ("block", "netblock"):
        assert said[kind].scope in (Scope.SOURCE, Scope.NETBLOCK)


def test_a_new_source_may_send_little_and_more_each_day() -> None:
    found = boxes()
    limits = []
    for day in range(8):
        now_s = day * DAY_S
        limit = found.day_limit(found.record(0))
        for hour in range(24):
            refused(found, now_s + hour * 3600, limit // 24)
        limits.append(found.day_limit(found.record(0)))
    assert limits == sorted(limits)
    assert limits[-1] > 20 * limits[0]


def test_a_spike_is_rate_limited_and_ignoring_that_costs_the_reputation() -> None:
    found = boxes(history=1000)
    assert refused(found, 0, 900) == 0
    before = found.record(0).reputation
    parts = found.answer(0, 10, 5000, 0, 0.0, 0.0)
    assert parts[0].said == found.replies["rate"]
    assert 3000 < parts[0].attempts < 5000
    assert found.record(0).reputation < before / 2


def test_spam_blocks_and_time_heals() -> None:
    found = boxes(history=PLENTY)
    sent = 0
    while not refused(found, sent, 100, 0.3, 0.01) >= 100:
        sent += 100
        assert sent < 100_000
    assert sent > 2_000
    record = found.record(0)
    assert record.blocked_until_s > sent
    parts = found.answer(0, sent + 1, 50, 0, 0.0, 0.0)
    assert parts == [(50, found.replies["block"])]
    later = record.blocked_until_s + DAY_S
    assert refused(found, later, 100) == 0
    assert found.record(0).reputation > 0.5


def test_good_mail_keeps_a_good_reputation_whatever_the_size_of_the_batches() -> None:
    for size in (5, 500):
        found = boxes(history=PLENTY)
        for turn in range(50_000 // size):
            refused(found, turn, size, 0.005, 0.0003)
        assert found.record(0).reputation > 0.7
        assert found.record(0).blocked_until_s == 0


def test_listings_hold_for_their_sources_and_their_time() -> None:
    found = boxes(history=PLENTY)
    found.listings.append(Listing(100.0, found.replies["netblock"], frozenset({1})))
    assert refused(found, 0, 10) == 0
    found.listings.append(Listing(100.0, found.replies["netblock"], frozenset({0, 1})))
    assert refused(found, 1, 10) == 10
    assert refused(found, 100, 10) == 0
    found.listings.append(Listing(300.0, found.replies["rate"], None, 0.5))
    assert 350 < refused(found, 200, 800) < 450


def test_greylisting_is_about_first_attempts() -> None:
    found = boxes(history=PLENTY, greylist=1.0)
    assert [p.attempts for p in found.answer(0, 0, 10, 4, 0.0, 0.0)] == [4]


def test_binomial_draws() -> None:
    rng = random.Random(3)
    for count, share in ((10, 0.3), (1000, 0.001), (1000, 0.4), (50, 0.97)):
        values = [draw(rng, count, share) for _ in range(4000)]
        assert min(values) >= 0
        assert max(values) <= count
        spread = (count * share * (1 - share)) ** 0.5
        assert abs(statistics.fmean(values) - count * share) < 5 * spread / 4000**0.5
        assert abs(statistics.pstdev(values) - spread) < 0.1 * spread
    assert draw(rng, 10, 0) == draw(rng, 0, 0.5) == 0
    assert draw(rng, 10, 1) == 10


def test_a_record_of_an_unknown_source_is_neutral() -> None:
    assert boxes().record(0) == Record(0.6, 0.0)

"""Scores: what costs points, which window counts, and that too little is not judged."""

import random

import pytest

from engine.config.reputation import ReputationConfig, ScoreWindow
from engine.reputation.allowance import SiteCounts
from engine.reputation.score import BEST, Counts, judge, vector

CONFIG = ReputationConfig()
METRICS = CONFIG.metrics
HOUR_MS = 3_600_000


def counts(**fields: int) -> tuple[float, ...]:
    row = {"delivered": 0, "deferred": 0, "bounced": 0, "blocked": 0, "complaints": 0, "tls_failures": 0}
    return vector(SiteCounts(site="google", **(row | fields)))


def test_good_mail_has_the_best_score() -> None:
    assert judge(counts(delivered=970, bounced=20, deferred=10), 50, METRICS).value == BEST


@pytest.mark.parametrize(
    ("fields", "value"),
    [
        ({"delivered": 9_000_000, "bounced": 1_000_000}, 40),
        ({"delivered": 9_400_000, "bounced": 600_000}, 70),
        ({"delivered": 95, "deferred": 5, "blocked": 5}, 0),
        ({"delivered": 1000, "complaints": 3}, 0),
        ({"delivered": 1000, "complaints": 2}, 50),
        ({"delivered": 40, "deferred": 60}, 60),
        ({"delivered": 40, "excused": 60}, 100),
        ({"bounced": 300_000, "excused": 9_700_000}, 93),
        ({"delivered": 45, "bounced": 5}, 78),
        ({"delivered": 25, "bounced": 25}, 40),
        ({"delivered": 70, "deferred": 30, "tls_failures": 30}, 80),
    ],
)
def test_what_each_metric_costs(fields: dict[str, int], value: int) -> None:
    found = judge(counts(**fields), 50, METRICS)
    assert found.judged
    assert found.value == value


def test_a_good_list_is_not_taken_for_a_bad_one_by_chance() -> None:
    """3 % of unknown users, looked at after each attempt from the fiftieth on: no sender is removed for it."""
    rng = random.Random(5)
    worst = BEST
    for _ in range(500):
        bounced = 0
        for attempts in range(1, 401):
            bounced += rng.random() < 0.03
            worst = min(
                worst, judge(counts(delivered=attempts - bounced, bounced=bounced), 50, METRICS).value
            )
    assert worst >= CONFIG.removed_below


def test_a_block_is_not_counted_again_as_a_deferral() -> None:
    blocked = judge(counts(delivered=98, deferred=2, blocked=2), 50, METRICS)
    assert blocked.reason == "blocks at 2.00%"
    assert blocked.value == BEST - round(100 * 0.015 / 0.045)


def test_too_few_attempts_are_not_judged() -> None:
    assert not judge(counts(bounced=49), 50, METRICS).judged
    assert judge(counts(bounced=50), 50, METRICS).judged


def test_the_worst_window_counts() -> None:
    config = ReputationConfig(
        windows=(
            ScoreWindow.model_validate({"half_life": "10m", "minimum": 50}),
            ScoreWindow.model_validate({"half_life": "3d", "minimum": 50}),
        )
    )
    book = Counts(config)
    book.add(0, counts(bounced=500))
    book.add(4 * HOUR_MS, counts(delivered=500))
    assert book.score(4 * HOUR_MS).value < 50  # the short window has forgotten, the long one has not
    only_short = ReputationConfig(windows=config.windows[:1])
    book = Counts(only_short)
    book.add(0, counts(bounced=500))
    book.add(4 * HOUR_MS, counts(delivered=500))
    assert book.score(4 * HOUR_MS).value == BEST


def test_counts_fade_until_they_are_not_judged() -> None:
    book = Counts(CONFIG)
    book.add(0, counts(bounced=60))
    assert book.score(0).judged
    assert not book.score(HOUR_MS).judged


def test_counts_survive_a_restart_unless_the_windows_are_others() -> None:
    book = Counts(CONFIG)
    book.add(1000, counts(bounced=60, delivered=40))
    again = Counts.from_state(CONFIG, book.to_state())
    assert again.to_state() == book.to_state()
    other = ReputationConfig(windows=CONFIG.windows[:1])
    assert not Counts.from_state(other, book.to_state()).score(1000).judged

"""When a pool gets another process or loses one, and who carries what."""

import pytest

from engine.region.sharding import GROW_AFTER_NS, SHRINK_AFTER_NS, Sizing, is_worth, spread

S = 1_000_000_000


def look_for(sizing: Sizing, start_s: int, seconds: int, shares: list[float], most: int = 4) -> int:
    """Look once a second; the last answer."""
    answer = len(shares)
    for second in range(start_s, start_s + seconds + 1):
        answer = sizing.look(second * S, shares, most)
    return answer


def test_a_full_process_gets_company_after_a_while() -> None:
    sizing = Sizing(busy=0.85)
    assert look_for(sizing, 0, GROW_AFTER_NS // S - 1, [0.9]) == 1
    assert look_for(sizing, GROW_AFTER_NS // S, 0, [0.9]) == 2


def test_a_peak_is_no_reason() -> None:
    sizing = Sizing(busy=0.85)
    assert look_for(sizing, 0, 2, [1.0]) == 1
    assert look_for(sizing, 3, 0, [0.5]) == 1
    assert look_for(sizing, 4, 2, [1.0]) == 1


def test_one_full_process_among_several_is_enough() -> None:
    assert look_for(Sizing(busy=0.85), 0, 3, [0.1, 0.95]) == 3


def test_never_more_than_allowed_and_fewer_at_once_if_there_are() -> None:
    sizing = Sizing(busy=0.85)
    assert look_for(sizing, 0, 600, [1.0, 1.0], most=2) == 2
    assert sizing.look(601 * S, [1.0, 1.0, 1.0], 2) == 2


def test_one_fewer_after_a_long_while_with_little_to_do() -> None:
    sizing = Sizing(busy=0.8)
    after_s = SHRINK_AFTER_NS // S
    assert look_for(sizing, 0, after_s - 1, [0.1, 0.2, 0.1]) == 3
    assert look_for(sizing, after_s, 0, [0.1, 0.2, 0.1]) == 2
    assert look_for(Sizing(busy=0.8), 0, 10 * after_s, [0.0]) == 1


def test_a_busy_moment_starts_the_long_while_anew() -> None:
    sizing = Sizing(busy=0.8)
    after_s = SHRINK_AFTER_NS // S
    assert look_for(sizing, 0, after_s - 1, [0.1, 0.2]) == 2
    assert look_for(sizing, after_s, 0, [0.4, 0.2]) == 2
    assert look_for(sizing, after_s + 1, after_s - 1, [0.1, 0.2]) == 2


@pytest.mark.parametrize("shares", [[0.79, 0.0], [0.41, 0.0], [0.9, 0.0, 0.0, 0.0, 0.0]])
def test_what_would_not_fit_well_into_fewer_stays(shares: list[float]) -> None:
    assert look_for(Sizing(busy=0.8), 0, SHRINK_AFTER_NS // S + 10, shares, most=len(shares)) == len(shares)


def test_after_a_change_the_past_says_nothing() -> None:
    sizing = Sizing(busy=0.85)
    assert look_for(sizing, 0, 3, [1.0]) == 2
    sizing.reset()
    assert look_for(sizing, 4, 2, [1.0, 1.0]) == 2


def loads(plan: dict[int, int], weights: dict[int, float], count: int) -> list[float]:
    return [sum(weights[source] for source, at in plan.items() if at == shard) for shard in range(count)]


def test_a_new_process_gets_half_of_the_work_and_the_rest_stays() -> None:
    weights = {0: 50.0, 1: 40.0, 2: 30.0, 3: 20.0}
    plan = spread(dict.fromkeys(weights, 0), weights, 2)
    assert sorted(loads(plan, weights, 2)) == [70, 70]
    assert is_worth(dict.fromkeys(weights, 0), plan, weights)


def test_what_need_not_move_does_not() -> None:
    owners = {0: 0, 1: 0, 2: 1, 3: 1}
    plan = spread(owners, {0: 90, 1: 90, 2: 5, 3: 5}, 3)
    assert (plan[2], plan[3]) == (1, 1)
    assert sorted([plan[0], plan[1]]) == [0, 2]
    assert spread(owners, {}, 2) == owners


def test_a_source_that_does_nearly_everything_cannot_be_shared() -> None:
    weights = {0: 1000.0, 1: 1.0, 2: 1.0}
    owners = dict.fromkeys(weights, 0)
    assert not is_worth(owners, spread(owners, weights, 2), weights)


def test_the_sources_of_one_that_ends_go_to_those_with_least() -> None:
    owners = {0: 0, 1: 1, 2: 2, 3: 2}
    plan = spread(owners, {0: 10, 1: 1, 2: 5, 3: 4}, 2)
    assert plan == {0: 0, 1: 1, 2: 1, 3: 1}


def test_what_nobody_carries_is_placed() -> None:
    plan = spread({0: 0, 1: None, 2: None, 3: None}, {}, 2)
    assert sorted(plan.values()) == [0, 0, 1, 1]
    assert plan[0] == 0


def test_a_lone_source_stays() -> None:
    assert spread({0: 0}, {0: 5}, 2) == {0: 0}

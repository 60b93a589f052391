import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.failover import spans

IDS = st.sets(st.integers(1, 60))


@settings(deadline=None)
@given(IDS)
def test_runs_hold_exactly_the_ids(ids: set[int]) -> None:
    runs = spans.of_ids(ids)
    assert set(spans.ids_of(runs)) == ids
    assert spans.size(runs) == len(ids)
    assert all(a[0] + a[1] < b[0] for a, b in itertools.pairwise(runs))


@settings(deadline=None)
@given(IDS, IDS)
def test_set_operations(left: set[int], right: set[int]) -> None:
    a, b = spans.of_ids(left), spans.of_ids(right)
    assert set(spans.ids_of(spans.intersect(a, b))) == left & right
    assert set(spans.ids_of(spans.subtract(a, b))) == left - right
    assert spans.union(a, b) == spans.of_ids(left | right)


def test_normal_joins_what_touches_and_drops_what_is_empty() -> None:
    assert spans.normal([(5, 2), (1, 4), (9, 0), (6, 4)]) == ((1, 9),)

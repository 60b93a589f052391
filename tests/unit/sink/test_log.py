"""Counting in windows."""

from hypothesis import given
from hypothesis import strategies as st

from engine.sink.log import max_in_window


@given(st.lists(st.integers(0, 50)).map(sorted), st.integers(1, 20))
def test_max_in_window_equals_the_obvious_count(times: list[int], window: int) -> None:
    obvious = max((sum(t <= other < t + window for other in times) for t in times), default=0)
    assert max_in_window(times, window) == obvious

"""A window of connections under any answers, at any times: within its limits, gradual, the same after a restart."""

import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config.shaping import AdaptiveConfig
from engine.shaping.windows import Answers, ConnectionWindow

CONFIG = AdaptiveConfig()
STEP_MS = [-3_600_000, 0, 250, 5_000, 20_000, 400_000]

answers = st.builds(
    lambda timed, log2, deferred, refused, most: Answers(
        max(timed, deferred), deferred, timed, timed * log2, refused, most
    ),
    st.integers(0, 200),
    st.floats(0, 36),
    st.integers(0, 200),
    st.integers(0, 3),
    st.integers(0, 40),
)


@settings(max_examples=200, deadline=None)
@given(
    full=st.integers(2, 30),
    life=st.lists(st.tuples(st.sampled_from(STEP_MS), st.none() | answers, st.booleans()), max_size=40),
)
def test_a_window_stays_within_its_limits_and_widens_by_one_at_a_time(
    full: int, life: list[tuple[int, Answers | None, bool]]
) -> None:
    window = ConnectionWindow(CONFIG)
    now_ms = 1_700_000_000_000
    widened_ms = 0
    for step_ms, found, is_restarted in life:
        now_ms += step_ms
        before = window.allowed(full)
        if found is None:
            window.advance(now_ms, full)
            narrowed = None
        else:
            narrowed = window.observe(now_ms, found, full)
        after = window.allowed(full)
        assert 1 <= after <= full
        assert (narrowed is not None) == (after < before)
        assert after <= before + 1
        assert window.review_ms() == 0 or window.window
        if step_ms < 0:
            widened_ms = 0  # what the clock said before does not count
        if after > before:
            assert now_ms >= widened_ms + CONFIG.increase_every * 1000
            widened_ms = now_ms
        if is_restarted:
            state = window.to_state()
            window = ConnectionWindow.from_state(CONFIG, msgpack.unpackb(msgpack.packb(state)))
            assert window.to_state() == state
            assert window.allowed(full) == after

"""Whatever the replies: bounds hold, one rise per period at most, and in the end all is as before."""

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config.shaping import ShapingConfig
from engine.providers.profiles import load_profiles
from engine.shaping.control import FULL
from engine.shaping.rules import RuleSet
from engine.shaping.shaping import UNSHAPED, Shaping

CONFIG = ShapingConfig()
PROFILES = load_profiles({})
RULES = {n: RuleSet.build(p.automation, p.max_connections) for n, p in PROFILES.items()}
SAMPLES = {n: [rule.sample for rule in p.automation] for n, p in PROFILES.items()}
DAY_MS = 86_400_000
FLOOR = round(CONFIG.floor * FULL)
STEP = round(CONFIG.increase * FULL)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["google", "outlook", "yahoo", "apple"]),
    st.lists(
        st.tuples(
            st.integers(1, 3_600_000),
            st.integers(0, 20),
            st.integers(0, 50),
            st.integers(1, 20),
            st.booleans(),
        ),
        max_size=60,
    ),
)
def test_bounds_and_gradual_return(site: str, events: list[tuple[int, int, int, int, bool]]) -> None:
    shaping = Shaping(CONFIG, RULES.__getitem__)
    now_ms = 1_000_000
    rate = FULL
    for wait_ms, sample, delivered, count, restart in events:
        now_ms += wait_ms
        samples = SAMPLES[site]
        replies = [(samples[sample], count)] if sample < len(samples) else []
        if restart:
            shaping = Shaping.from_state(CONFIG, RULES.__getitem__, shaping.to_state())
        for fired in shaping.observe(now_ms, site, replies, delivered):
            assert fired.order.until_ms == now_ms + round(fired.rule.duration * 1000)
        shape = shaping.shape(site)
        assert FLOOR <= shape.rate <= FULL
        assert shape.rate <= rate + STEP, "never a snap back"
        assert 0 <= shape.connections < PROFILES[site].max_connections
        rate = shape.rate
    now_ms += 2 * DAY_MS
    for _ in range(40 + 20 + 2):
        shaping.observe(now_ms, site, [], 100)
        now_ms += 300_000
    assert shaping.shape(site) == UNSHAPED

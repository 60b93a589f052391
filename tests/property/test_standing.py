"""No flapping: whatever the replies do, one removal and one return at most within any minimum stay."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config.reputation import ReputationConfig
from engine.reputation.allowance import SiteCounts
from engine.reputation.book import Reputation
from engine.reputation.standing import State

CONFIG = ReputationConfig()
STAY_MS = round(CONFIG.removed_stay * 1000)

COUNTS = st.tuples(*[st.integers(0, 200)] * 3, st.integers(0, 50))
EVENTS = st.lists(
    st.tuples(
        st.integers(1, 3 * 3_600_000),
        st.sampled_from(["google", "outlook", "yahoo"]),
        COUNTS,
        st.sampled_from(["", "", "", "remove", "list", "unlist", "restart"]),
    ),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(EVENTS)
def test_at_most_one_removal_and_one_return_per_minimum_stay(
    events: list[tuple[int, str, tuple[int, int, int, int], str]],
) -> None:
    book = Reputation(CONFIG)
    now_ms = 1_000_000
    removals: dict[str, list[int]] = {}
    returns: dict[str, list[int]] = {}
    for wait_ms, site, (delivered, deferred, bounced, blocked), order in events:
        now_ms += wait_ms
        found = []
        if order == "remove":
            found.append(book.remove(now_ms, site, "by order"))
        elif order in ("list", "unlist"):
            book.listed = "zen.example" if order == "list" else ""
        elif order == "restart":
            book = Reputation.from_state(CONFIG, book.to_state())
        book.observe(now_ms, [SiteCounts(site, delivered, deferred + blocked, bounced, blocked)])
        found += book.advance(now_ms, lambda _: False)
        for transition in found:
            if transition is None:
                continue
            if transition.after is State.REMOVED:
                removals.setdefault(transition.site, []).append(now_ms)
            if transition.before is State.REMOVED:
                returns.setdefault(transition.site, []).append(now_ms)
        for standing in [book.whole, *book.sites.values()]:
            assert 0 <= standing.score <= 100
            assert (standing.share().permille == 0) == (standing.state is State.REMOVED)
    for times in [*removals.values(), *returns.values()]:
        for first, second in pairwise(times):
            assert second - first >= STAY_MS


@given(st.integers(0, 100))
def test_a_removed_source_always_returns_when_nothing_more_happens(strikes: int) -> None:
    book = Reputation(CONFIG)
    book.remove(1, "google", "x")
    book.sites["google"].strikes = min(strikes, 16)
    now_ms = 1 + book.sites["google"].stay_ms
    assert book.review_ms("google") == now_ms
    (transition,) = book.advance(now_ms, lambda _: False)
    assert transition.after is State.PROBATION

"""A window of connections: narrowed by latency, deferrals and refusals, widened one at a time, kept over a restart."""

import math
from itertools import pairwise

import msgpack
import pytest

from engine.config.shaping import AdaptiveConfig
from engine.shaping.windows import Answers, ConnectionWindow, Narrowed

CONFIG = AdaptiveConfig()
FULL = 10


class Life:
    """A window at a site with mail always waiting: every connection that is allowed is in use."""

    def __init__(self, config: AdaptiveConfig = CONFIG) -> None:
        self.window = ConnectionWindow(config)
        self.now_ms = 1_000_000

    @property
    def allowed(self) -> int:
        return self.window.allowed(FULL)

    def after(
        self, seconds: float, ms: float = 0, *, deferred: int = 0, refused: int = 0, most: int | None = None
    ) -> Narrowed | None:
        """100 attempts, answered after `ms` each."""
        self.now_ms += round(seconds * 1000)
        timed = 100 if ms else 0
        log2_us = timed * math.log2(ms * 1000) if ms else 0.0
        answers = Answers(100, deferred, timed, log2_us, refused, self.allowed if most is None else most)
        return self.window.observe(self.now_ms, answers, FULL)

    def narrow_to(self, count: int) -> None:
        self.after(0, 100)
        self.after(5, 100)
        while self.allowed > count:
            self.after(10, 2000)


def test_all_connections_are_open_where_answers_are_as_fast_as_ever() -> None:
    life = Life()
    for _ in range(20):
        assert life.after(5, 100) is None
    assert life.allowed == FULL
    assert life.window.window == 0


def test_slow_answers_narrow_by_a_factor_and_say_why() -> None:
    life = Life()
    life.after(0, 100)
    life.after(5, 100)
    narrowed = life.after(5, 800)
    assert narrowed == Narrowed(10, 7, "answers take 800 ms, 100 ms at best")
    assert life.after(4, 800) is None, "what was under way is answered late too"
    assert life.allowed == 7
    seen = []
    for _ in range(6):
        life.after(10, 800)
        seen.append(life.allowed)
    assert seen == [4, 2, 1, 1, 1, 1]


def test_slow_is_relative_and_never_below_the_least() -> None:
    life = Life()
    life.after(0, 2)
    for _ in range(10):
        assert life.after(5, 450) is None, "far above 2 ms, but no trouble"
    life = Life()
    life.after(0, 200, most=1)
    life.after(5, 200, most=1)
    for _ in range(10):
        assert life.after(5, 590) is None, "not three times as slow"


def test_a_few_answers_that_take_a_minute_say_nothing() -> None:
    life = Life()
    life.after(0, 200)
    life.now_ms += 5000
    log2_us = 97 * math.log2(200_000) + 3 * math.log2(60_000_000)
    assert life.window.observe(life.now_ms, Answers(100, 0, 100, log2_us, 0, FULL), FULL) is None


@pytest.mark.parametrize(("deferred", "allowed"), [(20, 10), (21, 7)])
def test_many_deferrals_narrow(deferred: int, allowed: int) -> None:
    life = Life()
    life.after(0, 100)
    life.after(5, 100)
    life.after(5, 100, deferred=deferred)
    assert life.allowed == allowed


def test_a_refused_connection_leaves_those_that_are_open() -> None:
    life = Life()
    life.after(0, 100, most=6)
    narrowed = life.after(5, 100, refused=3, most=6)
    assert narrowed is not None
    assert (narrowed.now, narrowed.reason) == (6, "connections refused beyond 6 (3)")


def test_one_connection_is_the_floor_and_no_reason_to_narrow() -> None:
    life = Life()
    life.after(0, 100, most=1)
    assert life.after(5, 5000, deferred=100, most=1) is None
    assert life.allowed == FULL, "one was in use: the number of connections is not what is wrong"


def test_it_widens_by_one_at_a_time_up_to_the_full_number() -> None:
    life = Life()
    life.narrow_to(1)
    seen = []
    for _ in range(60):
        life.after(5, 100)
        seen.append(life.allowed)
    assert seen[-1] == FULL
    assert life.window.window == 0
    assert all(later - earlier in (0, 1) for earlier, later in pairwise(seen))
    widened = [n for n, (earlier, later) in enumerate(pairwise(seen)) if later > earlier]
    assert min(b - a for a, b in pairwise(widened)) >= 3, "every 15 s at most"


def test_connections_that_are_not_in_use_prove_nothing() -> None:
    life = Life()
    life.narrow_to(4)
    for _ in range(20):
        life.after(5, 100, most=3)
    assert life.allowed == 4


@pytest.mark.parametrize(("ms", "deferred"), [(160, 0), (100, 6)])
def test_between_the_thresholds_it_stays(ms: float, deferred: int) -> None:
    config = AdaptiveConfig.model_validate({"least": "10ms"})
    life = Life(config)
    life.after(0, 100, most=1)
    life.after(5, 100, most=1)
    life.narrow_to(4)
    for _ in range(20):
        life.after(5, ms, deferred=deferred)
    assert life.allowed == 4


def test_a_failed_increase_doubles_the_wait_and_a_good_one_halves_it() -> None:
    life = Life()
    life.narrow_to(4)

    def wait() -> int:
        """Seconds until the window widens."""
        began, before = life.now_ms, life.allowed
        while life.allowed == before:
            life.after(5, 100)
        return (life.now_ms - began) // 1000

    waits = []
    for _ in range(8):
        waits.append(wait())
        life.after(5, 2000)
        while life.allowed < 4:
            wait()
    assert waits[1] > waits[0]
    assert max(waits) <= 600 + 5
    for _ in range(12):
        wait() if life.allowed < FULL else None
    assert life.window._wait_ms == 15_000


def test_a_site_that_is_slower_for_good_gets_its_connections_back() -> None:
    life = Life()
    life.after(0, 100)
    for _ in range(200):
        life.after(10, 900)  # whatever is open
    assert life.allowed == FULL


def test_a_site_that_is_crowded_from_the_first_message_on_is_found_out() -> None:
    life = Life()
    for _ in range(100):
        life.after(5, 600 * max(1.0, life.allowed / 3))
    assert 3 <= life.allowed <= 5
    assert life.window.floor_us == pytest.approx(600_000)


def test_whether_fewer_are_faster_is_tried_once_where_they_are_not() -> None:
    life = Life()
    tried = [life.after(5, 900) for _ in range(200)]
    (narrowed,) = [change for change in tried if change is not None]
    assert (narrowed.before, narrowed.now) == (10, 7)
    assert "tried" in narrowed.reason
    assert life.allowed == FULL


def test_without_mail_it_widens_slowly() -> None:
    life = Life()
    life.narrow_to(8 if life.allowed == 8 else 7)
    before = life.allowed
    life.window.advance(life.window.review_ms() - 1, FULL)
    assert life.allowed == before
    for _ in range(2):
        life.window.advance(life.window.review_ms(), FULL)
    assert life.allowed == before + 2
    life.window.advance(life.window.review_ms(), FULL)
    assert (life.window.window, life.window.review_ms()) == (0, 0)


def test_what_was_learnt_survives_a_restart() -> None:
    life = Life()
    life.narrow_to(4)
    state = msgpack.unpackb(msgpack.packb(life.window.to_state()))
    life.window = ConnectionWindow.from_state(CONFIG, state)
    assert life.allowed == 4
    life.after(10, 2000)
    assert life.after(10, 2000) is not None, "the floor is known still"


def test_a_clock_that_is_set_back_stops_nothing() -> None:
    life = Life()
    life.narrow_to(4)
    life.now_ms -= 86_400_000
    life.after(5, 2000)
    life.after(5, 2000)
    assert life.allowed == 2
    life.now_ms -= 86_400_000
    for _ in range(10):
        life.after(5, 100)
    assert life.allowed > 2


def test_a_limit_that_is_lowered_holds_at_once() -> None:
    life = Life()
    life.narrow_to(4)
    assert life.window.allowed(3) == 3
    assert ConnectionWindow(CONFIG).allowed(3) == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"near": 3.0}, "near: allowed is less than high"),
        ({"increase_every": "700s"}, "increase_every_max: allowed is at least increase_every"),
        ({"decrease": 1.0}, "less than 1"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaptiveConfig.model_validate(fields)

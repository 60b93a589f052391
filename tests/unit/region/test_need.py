"""When mail is in need: after it has been blocked for a while, for long enough, and until it is not any more."""

from collections.abc import Iterable

from engine.region.need import ASKED_AT_ONCE, MAX_PATHS, PER_LOOK, STEADY_MS, Need, NeedWatch, Path

MINUTE = 60_000
AFTER = 30 * MINUTE
PATH = ("google", 2, "shop")


def test_a_path_that_stays_blocked_for_long_is_in_need_until_little_of_it_is_left() -> None:
    need = Need(AFTER)
    until = 60 * MINUTE
    need.observe({PATH: until}, 0)
    assert need.paths() == ()
    need.observe({PATH: until}, STEADY_MS - 1)
    assert need.paths() == ()
    need.observe({PATH: until}, STEADY_MS)
    assert need.paths() == (PATH,)
    need.observe({PATH: until}, until - AFTER // 2)
    assert need.paths() == (PATH,)  # it does not come and go around one limit
    need.observe({PATH: until}, until - AFTER // 2 + 1)
    assert need.paths() == ()
    need.observe({PATH: until}, until - AFTER // 2 + 2)
    assert need.paths() == ()


def test_a_short_block_is_none() -> None:
    need = Need(AFTER)
    for now in range(0, 20 * MINUTE, 1000):
        need.observe({PATH: now + AFTER - 1}, now)
        assert need.paths() == ()


def test_a_block_with_a_break_begins_anew() -> None:
    need = Need(AFTER)
    need.observe({PATH: 1 << 47}, 0)
    need.observe({}, STEADY_MS - 1)
    need.observe({PATH: 1 << 47}, STEADY_MS)
    assert need.paths() == ()
    need.observe({PATH: 1 << 47}, 2 * STEADY_MS)
    assert need.paths() == (PATH,)
    need.observe({}, 2 * STEADY_MS + 1)
    assert need.paths() == ()


def test_so_many_paths_are_looked_at_and_no_more() -> None:
    need = Need(1000)
    for now in (0, 1000):
        need.observe({(f"site{n}", 0, "t"): 1 << 47 for n in range(MAX_PATHS + 5)}, now)
    assert len(need.paths()) == MAX_PATHS


class Region:
    """Paths by the site's number: every tenth is free; the streams' sources are looked up once per round."""

    def __init__(self, paths: int) -> None:
        self.waiting = {(f"site{n:04}", 1, "t") for n in range(paths)}
        self.asked_for = 0

    def may_carry(self, stream: int, tenant: str) -> list[int]:
        self.asked_for += 1
        return [7]

    def blocked_until(self, site: str, sources: Iterable[int], now_ms: int) -> int:
        assert list(sources) == [7]
        return 0 if site.endswith("0") else 1 << 47


def test_paths_are_looked_at_a_few_at_a_time_and_asked_about_in_turns() -> None:
    region = Region(200)
    watch = NeedWatch(1000, paths=region, waiting=lambda: region.waiting)
    now = 0
    seen: set[Path] = set()
    for _ in range(6 * (200 // PER_LOOK + 1)):
        watch.look(now)
        now += 100
        asked = watch.asked()
        assert len(asked) <= ASKED_AT_ONCE
        seen |= set(asked)
    assert seen == {path for path in region.waiting if not path[0].endswith("0")}
    assert region.asked_for <= 6 + 1  # once per round
    region.waiting = set()
    for _ in range(2 * (200 // PER_LOOK + 1)):
        watch.look(now)
    assert watch.asked() == ()

"""When mail is in need: after it has been blocked, or has waited, for a while, for long enough, and until it is not."""

from collections.abc import Iterable

from engine.region.need import (
    ASKED_AT_ONCE,
    FLOWS_PER_LOOK,
    MAX_PATHS,
    PER_LOOK,
    STEADY_MS,
    Change,
    Need,
    NeedWatch,
    Path,
    Reason,
)

MINUTE = 60_000
AFTER = 30 * MINUTE
PATH = ("google", 2, "shop")


def blocked() -> Need:
    return Need(Reason.BLOCKED, AFTER)


def test_a_path_that_stays_blocked_for_long_is_in_need_until_little_of_it_is_left() -> None:
    need = blocked()
    until = 60 * MINUTE
    assert need.observe({PATH: until}, 0) == []
    need.observe({PATH: until - STEADY_MS + 1}, STEADY_MS - 1)
    assert need.paths() == {}
    left = until - STEADY_MS
    assert need.observe({PATH: left}, STEADY_MS) == [Change(PATH, Reason.BLOCKED, True, left)]
    assert need.paths() == {PATH: left}
    assert need.observe({PATH: AFTER // 2}, until - AFTER // 2) == []
    assert list(need.paths()) == [PATH]  # it does not come and go around one limit
    ended = Change(PATH, Reason.BLOCKED, False, AFTER // 2 - 1)
    assert need.observe({PATH: AFTER // 2 - 1}, until - AFTER // 2 + 1) == [ended]
    need.observe({PATH: AFTER // 2 - 2}, until - AFTER // 2 + 2)
    assert need.paths() == {}


def test_mail_that_has_waited_for_long_is_in_need_until_what_is_next_has_waited_half_as_long() -> None:
    need = Need(Reason.OVERLOADED, AFTER)
    now = 0
    for waited in range(AFTER // 2, AFTER + MINUTE, MINUTE):
        now += MINUTE
        need.observe({PATH: waited}, now)
    assert need.paths() == {PATH: AFTER}
    for waited in range(AFTER, AFTER // 2 - 1, -MINUTE):
        now += MINUTE
        need.observe({PATH: waited}, now)
        assert need.paths() == {PATH: waited}
    assert need.observe({}, now + 1) == [Change(PATH, Reason.OVERLOADED, False, 0)]


def test_a_backlog_that_is_old_when_the_region_starts_has_a_while_to_go_out() -> None:
    need = Need(Reason.OVERLOADED, AFTER)
    need.observe({PATH: 10 * AFTER}, 0)
    need.observe({PATH: 10 * AFTER}, STEADY_MS - 1)
    assert need.paths() == {}


def test_a_short_block_is_none() -> None:
    need = blocked()
    for now in range(0, 20 * MINUTE, 1000):
        need.observe({PATH: AFTER - 1}, now)
        assert need.paths() == {}


def test_a_block_with_a_break_begins_anew() -> None:
    need = blocked()
    need.observe({PATH: 1 << 47}, 0)
    need.observe({}, STEADY_MS - 1)
    need.observe({PATH: 1 << 47}, STEADY_MS)
    assert need.paths() == {}
    need.observe({PATH: 1 << 47}, 2 * STEADY_MS)
    assert list(need.paths()) == [PATH]
    need.observe({}, 2 * STEADY_MS + 1)
    assert need.paths() == {}


def test_so_many_paths_are_looked_at_and_no_more() -> None:
    need = Need(Reason.BLOCKED, 1000)
    for now in (0, 1000):
        need.observe({(f"site{n}", 0, "t"): 1 << 47 for n in range(MAX_PATHS + 5)}, now)
    assert len(need.paths()) == MAX_PATHS


class Region:
    """Paths by the site's number: every tenth is free; the streams' sources are looked up once per round. All have
    waited for as many seconds as the number of their site says, in one flow each."""

    def __init__(self, paths: int, *, flows: int = 1) -> None:
        self.waiting = {(f"site{n:04}", 1, "t") for n in range(paths)}
        self.asked_for = 0
        self.flows = flows
        self._cost = 0

    def may_carry(self, stream: int, tenant: str) -> list[int]:
        self.asked_for += 1
        return [7]

    def blocked_until(self, site: str, sources: Iterable[int], now_ms: int) -> int:
        assert list(sources) == [7]
        return 0 if site.endswith("0") else 1 << 47

    def waited_ms(self, path: Path, now_ms: int) -> int:
        self._cost += self.flows
        return int(path[0].removeprefix("site")) * 1000

    def take_cost(self) -> int:
        cost, self._cost = self._cost, 0
        return cost

    def watch(self, overloaded_ms: int | None = None) -> NeedWatch:
        return NeedWatch(
            blocked_ms=1000,
            overloaded_ms=overloaded_ms,
            paths=self,
            ready=self,
            waiting=lambda: self.waiting,
        )


def test_paths_are_looked_at_a_few_at_a_time_and_asked_about_in_turns() -> None:
    region = Region(200)
    watch = region.watch()
    now = 0
    seen: set[Path] = set()
    for _ in range(6 * (200 // PER_LOOK + 1)):
        watch.look(now)
        now += 100
        asked = watch.blocked()
        assert len(asked) <= ASKED_AT_ONCE
        seen |= set(asked)
    assert seen == {path for path in region.waiting if not path[0].endswith("0")}
    assert region.asked_for <= 6 + 1  # once per round
    region.waiting = set()
    for _ in range(2 * (200 // PER_LOOK + 1)):
        watch.look(now)
    assert watch.blocked() == ()


def test_what_is_blocked_is_not_asked_about_a_second_time_for_having_waited() -> None:
    region = Region(200)
    watch = region.watch(overloaded_ms=100_000)
    for now in range(0, 400_000, 1000):
        watch.look(now)
    free = [(f"site{n:04}", 1, "t") for n in range(190, 99, -10)]
    assert watch.overloaded() == tuple((path, int(path[0][4:]) * 1000) for path in free)


def test_a_look_ends_early_where_paths_have_many_flows() -> None:
    region = Region(100, flows=FLOWS_PER_LOOK // 4)
    watch = region.watch(overloaded_ms=1000)
    watch.look(0)
    assert watch.look(1) == []
    assert len(watch._left) == 96

"""Which mail in need a region gives to whom, and what it takes of others' mail."""

from typing import Any

from engine.failover.handover import Inquire, Terms
from engine.region.need import STEADY_MS, Path
from engine.region.portions import EVERY_NS, FIRST
from engine.region.relief import HEADROOM, Relief
from engine.region.waiting import OFFER_MESSAGES
from tests.support.clock import ManualClock

AFTER = 15 * 60_000
GOOGLE, YAHOO = ("google", 2, "shop"), ("yahoo", 2, "shop")


class Region:
    """What a relief sees of its region, and the relief."""

    def __init__(self, *, overloaded_ms: int | None = AFTER, blocked_ms: int | None = 2 * AFTER) -> None:
        self.clock = ManualClock()
        self.blocked_ms: dict[str, int] = {}  # by site, for how long
        self.waits_ms: dict[Path, int] = {}
        self.full: set[str] = set()
        self.unrouted = 0
        self.events: list[dict[str, Any]] = []
        self.relief = Relief(
            blocked_ms=blocked_ms,
            overloaded_ms=overloaded_ms,
            clock=self.clock,
            events=self,
            paths=self,
            mail=self,
            waits=self,
            is_full=lambda site: False,
        )

    def may_carry(self, stream: int, tenant: str) -> list[int]:
        return [0]

    def blocked_until(self, site: str, sources: object, now_ms: int) -> int:
        return now_ms + self.blocked_ms[site] if site in self.blocked_ms else 0

    def held_by(self, site: str, sources: object, now_ms: int) -> str:
        return "connections"

    def paths(self) -> set[Path]:
        return set(self.waits_ms)

    def full_sites(self) -> set[str]:
        return self.full

    def waited_ms(self, path: Path, now_ms: int) -> int:
        return self.waits_ms.get(path, 0)

    def before_ms(self, site: str, stream: int, now_ms: int) -> int:
        found = [ms for path, ms in self.waits_ms.items() if path[0] == site and path[1] <= stream]
        return max(found, default=0)

    def unrouted_ms(self, now_ms: int) -> int:
        return self.unrouted

    def take_cost(self) -> int:
        return 1

    def note_events(self, events: list[tuple[int, str, dict[str, Any]]]) -> None:
        self.events += [fields for _, kind, fields in events if kind == "hand_over"]

    def look(self) -> bool:
        """Long enough for whatever is so to be steady."""
        for _ in range(3):
            self.relief.look()
            self.clock.advance(STEADY_MS / 1000)
        return self.relief.look()


def question(region: Region) -> Inquire:
    return Inquire("eu", region.relief.blocked, region.relief.overloaded)


def test_what_waits_too_long_goes_in_portions_to_who_has_room_and_it_is_an_event() -> None:
    eu, us = Region(), Region()
    eu.waits_ms = {GOOGLE: AFTER, YAHOO: AFTER - 1}
    assert eu.look()
    assert question(eu) == Inquire("eu", (), ((GOOGLE, AFTER),))
    assert eu.relief.status() == {
        "in_need": [],
        "overloaded": [["google", 2, "shop", AFTER // 1000, "connections"]],
    }
    (began,) = eu.events
    assert (began["reason"], began["state"], began["held_by"]) == ("overloaded", "began", "connections")
    now = eu.clock.monotonic_ns()
    assert eu.relief.wanted("us", frozenset({GOOGLE}), now)[0] == {}  # it has not said anything yet
    granted = us.relief.takes(question(eu))
    assert granted == (GOOGLE,)
    eu.relief.heard("us", question(eu), Terms(b"disk", "", granted), now)
    since = eu.clock.wall_ms() - AFTER // 2  # what came later has not waited for long
    assert eu.relief.wanted("us", frozenset(granted), now) == ({GOOGLE: since}, FIRST)
    eu.relief.gave("us", now)
    assert eu.relief.wanted("us", frozenset(granted), now + EVERY_NS)[0] == {}
    eu.waits_ms = {GOOGLE: AFTER // 2 - 1}
    assert not eu.look()
    assert eu.events[-1]["state"] == "ended"


def test_a_region_takes_only_what_leaves_it_clearly_sooner() -> None:
    us = Region()
    asked = Inquire("eu", (), ((GOOGLE, AFTER), (YAHOO, AFTER)))
    us.waits_ms = {("google", 1, "other"): AFTER // HEADROOM, ("yahoo", 1, "other"): AFTER // HEADROOM + 1}
    assert us.relief.takes(asked) == (GOOGLE,)
    us.waits_ms = {("yahoo", 3, "other"): AFTER}  # of a stream that is served later
    assert us.relief.takes(asked) == (GOOGLE, YAHOO)
    us.full = {"google"}
    us.blocked_ms = {"yahoo": 1}
    assert us.relief.takes(asked) == ()


def test_a_region_whose_mail_waits_for_routes_takes_nothing() -> None:
    us = Region()
    asked = Inquire("eu", (GOOGLE,), ((YAHOO, AFTER),))
    us.unrouted = AFTER // HEADROOM
    assert us.relief.takes(asked) == (GOOGLE, YAHOO)
    us.unrouted = AFTER // HEADROOM + 1
    assert us.relief.takes(asked) == (GOOGLE,)
    us.unrouted = AFTER + 1
    assert us.relief.takes(asked) == ()


def test_of_two_overloaded_regions_none_takes_from_the_other() -> None:
    eu, us = Region(), Region()
    eu.waits_ms, us.waits_ms = {GOOGLE: 2 * AFTER}, {GOOGLE: AFTER}
    assert eu.look()
    assert us.look()
    assert eu.relief.takes(question(us)) == us.relief.takes(question(eu)) == ()


def test_an_overloaded_region_does_not_take_what_is_blocked_elsewhere() -> None:
    us = Region()
    asked = Inquire("eu", (GOOGLE,))
    us.waits_ms = {GOOGLE: AFTER}
    assert us.relief.takes(asked) == (GOOGLE,)
    us.waits_ms = {GOOGLE: AFTER + 1}
    assert us.relief.takes(asked) == ()
    unlimited = Region(overloaded_ms=None)
    unlimited.waits_ms = us.waits_ms
    assert unlimited.relief.takes(asked) == (GOOGLE,)


def test_what_is_blocked_goes_without_portions() -> None:
    eu = Region()
    eu.waits_ms, eu.blocked_ms = {GOOGLE: AFTER}, {"google": 1 << 40}
    assert eu.look()
    assert question(eu) == Inquire("eu", (GOOGLE,), ())
    only, most = eu.relief.wanted("us", frozenset({GOOGLE}), 0)
    assert (only, most) == ({GOOGLE: eu.clock.wall_ms() + 1}, OFFER_MESSAGES)
    assert {fields["reason"] for fields in eu.events} == {"blocked", "overloaded"}
    assert {fields["held_by"] for fields in eu.events} == {"block"}
    eu.relief.rest()
    assert eu.relief.wanted("us", frozenset({GOOGLE}), 0)[0] == {}


def test_without_the_options_nothing_is_in_need() -> None:
    for region in (Region(blocked_ms=None), Region(overloaded_ms=None)):
        region.waits_ms = {GOOGLE: 100 * AFTER}
        assert not region.look()
        assert region.relief.status() == {"in_need": [], "overloaded": []}

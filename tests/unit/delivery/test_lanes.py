"""As many lanes and gates as are in use; what the sources of a site share is one thing while one of them uses it."""

from types import SimpleNamespace
from typing import Any

import pytest

from engine.delivery import lanes as module
from engine.delivery.lanes import Gates, Lanes

S = 1_000_000_000


def gates(total: int = 5) -> Gates:
    return Gates(connections=3, interval_ns=S, total=lambda: total)


def test_a_gate_is_forgotten_when_nothing_is_to_be_remembered() -> None:
    made = gates()
    gate = made.of(0, "a")
    assert made.of(0, "a") is gate
    user = object()
    gate.join(user)
    made.sweep(0)
    assert len(made) == 1
    gate.acquire()
    gate.leave(user)
    made.sweep(0)
    assert len(made) == 1
    gate.release()
    gate.started(10)
    made.sweep(S)
    assert len(made) == 1  # its pace is to be kept
    made.sweep(S + 10)
    assert (len(made), made.totals) == (0, {})


def test_what_a_limit_has_refused_outlives_its_gate() -> None:
    made = gates()
    made.of(0, "a").refused = 3
    made.of(1, "a").refused = 1
    made.sweep(S)
    assert len(made) == 0
    made.of(0, "b").refused = 2
    assert made.refused() == {0: 5, 1: 1}


def test_what_the_sources_of_a_site_share_goes_with_the_last_of_them() -> None:
    made = gates(total=1)
    one, other = made.of(0, "a"), made.of(1, "a")
    user = object()
    other.join(user)
    made.sweep(0)
    assert list(made) == [(1, "a")]
    one = made.of(0, "a")
    one.acquire()
    assert not other.has_room()
    assert one.total is other.total
    one.release()
    other.leave(user)
    made.sweep(0)
    assert (len(made), made.totals) == (0, {})


def test_the_pace_of_all_sources_together_is_kept_when_no_gate_is_left() -> None:
    made = Gates(connections=3, interval_ns=0, total=lambda: 0, total_interval_ns=S)
    made.of(0, "a").started(10)
    made.sweep(S)
    assert len(made) == 0
    assert made.of(1, "a").earliest_ns(0) == S + 10
    made.sweep(S + 10)
    assert (len(made), made.totals) == (0, {})


def test_the_part_of_what_is_shared_may_change() -> None:
    part = 4
    made = Gates(connections=3, interval_ns=0, total=lambda: part)
    gate = made.of(0, "a")
    part = 2
    made.share_anew()
    assert gate.total.limit == 2
    assert made.of(1, "b").total.limit == 2


class World:
    """Lanes that are no more than their key."""

    def __init__(self) -> None:
        self.closed: list[Any] = []
        self.lanes = Lanes(self._make)

    def _make(self, source: int, site: str, route: Any) -> Any:
        lane = SimpleNamespace(key=(source, site, route), route=route, is_closed=False)

        def close() -> None:
            lane.is_closed = True
            self.closed.append(lane.key)

        lane.close = close
        return lane


def job(domain: str, source: int = 0, *, wish: int = 0) -> Any:
    return SimpleNamespace(source=source, site="a", domain=domain, tls_wish=wish)


def test_domains_of_one_route_share_a_lane_and_find_it_again() -> None:
    world = World()
    route, newer = tuple("mx"), tuple("mx")  # the same, asked for twice
    lane = world.lanes.of(job("a.example"), route)
    assert world.lanes.of(job("b.example"), route) is lane
    assert world.lanes.known(job("a.example"), route) is lane
    assert world.lanes.known(job("a.example", wish=1), route) is None
    assert world.lanes.known(job("a.example", source=1), route) is None
    assert world.lanes.known(job("a.example"), newer) is None
    assert world.lanes.of(job("a.example"), newer) is lane
    assert world.lanes.known(job("a.example"), newer) is lane
    assert len(world.lanes) == 1


def test_a_lane_that_was_forgotten_serves_no_domain() -> None:
    world = World()
    route, other = ("mx",), ("other",)
    lane = world.lanes.of(job("a.example"), route)
    world.lanes.of(job("b.example"), other)
    world.lanes.forget((0, "a", route))
    assert world.closed == [(0, "a", route)]
    assert world.lanes.known(job("a.example"), route) is None
    assert world.lanes.of(job("a.example"), route) is not lane
    world.lanes.forget((0, "a", route))
    world.lanes.forget((0, "a", other))
    assert world.lanes.known_domains() == 0


def test_of_many_domains_not_all_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KNOWN_DOMAINS", 100)
    world = World()
    route = ("mx",)
    for n in range(1000):
        world.lanes.of(job(f"d{n}.example"), route)
        assert world.lanes.known_domains() <= 100
    assert len(world.lanes) == 1

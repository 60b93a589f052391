"""A number on disk means the source that had it when it was written."""

import msgpack

from engine.region.source_numbers import MOST, STATE_KEY, SourceNumbers
from tests.support.clock import ManualClock
from tests.unit.region.test_review import Store

HOUR_S = 3600


def incarnation(store: Store, clock: ManualClock, *names: str) -> SourceNumbers:
    made = SourceNumbers(names=names, store=store, clock=clock)
    made.restore()
    return made


def test_a_number_means_what_it_meant_then() -> None:
    store, clock = Store(), ManualClock()
    incarnation(store, clock, "a", "b", "c")
    first_ms = clock.wall_ms()
    clock.advance(HOUR_S)
    incarnation(store, clock, "a", "b", "c")
    incarnation(store, clock, "b", "c")
    second_ms = clock.wall_ms()
    clock.advance(HOUR_S)
    now = incarnation(store, clock, "d", "c", "b")
    assert [now.now(number, first_ms) for number in range(4)] == [-1, 2, 1, -1]
    assert [now.now(number, second_ms) for number in range(4)] == [2, 1, -1, -1]
    assert [now.now(number, clock.wall_ms()) for number in (0, 1, 2, 0xFFFF)] == [0, 1, 2, -1]
    assert now.now(0, 0) == -1, "before all that is known: as the first"


def test_each_change_is_an_event_and_they_are_bounded() -> None:
    store, clock = Store(), ManualClock()
    for number in range(2 * MOST):
        for _ in range(2):
            incarnation(store, clock, f"s{number}")
        clock.advance(HOUR_S)
    assert [fields["names"] for _, kind, fields in store.events if kind == "sources"] == [
        [f"s{number}"] for number in range(1, 2 * MOST)
    ]
    assert store.events[0][2] == {"names": ["s1"], "before": ["s0"]}
    assert len(msgpack.unpackb(store.state[STATE_KEY])["history"]) == MOST


def test_a_state_of_another_version_begins_anew() -> None:
    store = Store()
    store.put_state(STATE_KEY, msgpack.packb({"version": 99}))
    assert incarnation(store, ManualClock(), "a").now(0, 5) == 0

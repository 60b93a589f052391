"""An overloaded region is relieved by those that have headroom, bit by bit, once per message."""

import pytest

from engine.region import relief
from engine.region.portions import FIRST
from tests.simulation.overload import MESSAGES, Overloaded

SEEDS = range(5)
SLOW, FAST, FULL = 0.02, 0.5, 0.02


def test_nothing_is_lost_or_sent_twice_without_a_mark_and_nothing_goes_in_circles() -> None:
    portions = 0
    for seed in SEEDS:
        world = Overloaded(seed)
        assert world.run() == [], f"python -m tests.simulation.overload {seed}"
        portions += len(world.portions)
    assert portions


def test_a_slow_region_is_relieved_by_fast_ones_and_its_need_begins_and_ends_but_once_or_twice() -> None:
    world = Overloaded(1, speeds={"a": SLOW, "b": FAST, "c": FAST})
    assert world.run() == []
    sent = {name: len(disk.sent) for name, disk in world.disks.items()}
    assert sent["b"] + sent["c"] > MESSAGES * 3 // 4
    assert world.changes["a"] <= 4
    assert world.changes["b"] == world.changes["c"] == 0
    alone = Overloaded(1, overloaded_ms=None, speeds=world.pace)
    assert alone.run() != []  # too much for it in that time


def test_slow_peers_get_what_they_send_and_no_more() -> None:
    world = Overloaded(1, speeds={"a": 0.2, "b": FULL, "c": FULL})
    world.run()
    assert [count for _, _, count in world.portions] == [FIRST, FIRST]


def test_without_the_rule_of_headroom_they_get_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relief, "HEADROOM", 0.01)
    world = Overloaded(1, speeds={"a": 0.2, "b": FULL, "c": FULL})
    world.run()
    assert sum(count for _, _, count in world.portions) > 2 * FIRST

"""How much a peer gets of what waits too long."""

from engine.region.portions import EVERY_NS, FIRST, FORGET_NS, Portions

A, B = ("google", 2, "shop"), ("yahoo", 2, "shop")
NOTHING = (frozenset(), 0)


def test_a_peer_that_keeps_up_gets_more_each_second_and_one_that_does_not_little() -> None:
    portions = Portions(500)
    assert portions.next("us", 0) == NOTHING
    sizes = []
    for second in range(8):
        now = second * EVERY_NS
        portions.heard("us", [A], [A], now)
        paths, size = portions.next("us", now)
        assert paths == {A}
        portions.gave("us", now)
        assert portions.next("us", now) == NOTHING
        sizes.append(size)
    assert sizes == [16, 32, 64, 128, 256, 500, 500, 500]
    portions.heard("us", [A], [], 8 * EVERY_NS)
    assert portions.next("us", 8 * EVERY_NS) == NOTHING
    portions.heard("us", [A], [A], 9 * EVERY_NS)
    assert portions.next("us", 9 * EVERY_NS) == ({A}, FIRST)


def test_there_is_no_second_portion_within_a_second_however_often_the_peer_says_yes() -> None:
    portions = Portions(500)
    portions.heard("us", [A], [A], 0)
    portions.gave("us", 0)
    for now in range(0, EVERY_NS, EVERY_NS // 10):
        portions.heard("us", [A], [A], now)
        assert portions.next("us", now) == NOTHING
    assert portions.next("us", EVERY_NS) == ({A}, 2 * FIRST)


def test_a_path_that_is_not_asked_about_any_more_is_no_refusal_and_one_of_two_is() -> None:
    portions = Portions(500)
    portions.heard("us", [A, B], [A, B], 0)
    portions.gave("us", 0)
    portions.heard("us", [B], [B], EVERY_NS)
    assert portions.next("us", EVERY_NS) == ({B}, 2 * FIRST)
    portions.heard("us", [A, B], [A, B], EVERY_NS)
    portions.gave("us", EVERY_NS)
    portions.heard("us", [A, B], [B], 2 * EVERY_NS)
    assert portions.next("us", 2 * EVERY_NS) == ({B}, FIRST)


def test_peers_are_told_apart_and_what_was_long_ago_is_forgotten() -> None:
    portions = Portions(500)
    for peer in ("us", "ap"):
        portions.heard(peer, [A], [A], 0)
    portions.gave("us", 0)
    portions.heard("us", [A], [A], EVERY_NS)
    assert portions.next("us", EVERY_NS)[1] == 2 * FIRST
    assert portions.next("ap", EVERY_NS)[1] == FIRST
    portions.heard("us", [A], [A], FORGET_NS + 1)
    assert portions.next("us", FORGET_NS + 1)[1] == FIRST


def test_a_small_offer_bounds_the_first_portion_too() -> None:
    portions = Portions(3)
    portions.heard("us", [A], [A], 0)
    assert portions.next("us", 0) == ({A}, 3)

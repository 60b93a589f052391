"""What is not to be loaded now, and who gets it when that ends."""

from engine.region.busy import Busy


def key(id_: int) -> bytes:
    return bytes(10) + id_.to_bytes(8, "big")


def test_what_is_passed_over_while_it_is_written_comes_with_the_end_of_the_last_write() -> None:
    busy = Busy()
    busy.settling([1, 2, 2])
    busy.settling([2])
    assert busy.free([key(1), key(2), key(3)]) == [key(3)]
    assert busy.settled([1, 2]) == [key(1)]
    assert (busy.is_settling(1), busy.is_settling(2)) == (False, True)
    assert busy.settled([2]) == [key(2)]
    assert busy.settled([2]) == []
    assert busy.free([key(1), key(2)]) == [key(1), key(2)]


def test_what_was_not_met_meanwhile_needs_no_second_look() -> None:
    busy = Busy()
    busy.settling([1])
    busy.free([key(3)])
    assert busy.settled([1]) == []


def test_what_is_held_comes_with_its_release() -> None:
    busy = Busy()
    busy.hold("a", [1, 2])
    busy.hold("b", [3])
    assert busy.free([key(1), key(2), key(3), key(4)]) == [key(4)]
    assert busy.release(1) == key(1)
    assert busy.release_all("a") == [key(2)]
    assert busy.release_all("a") == []
    assert busy.is_held(3)


def test_what_is_held_twice_is_not_forgotten() -> None:
    busy = Busy()
    busy.hold("a", [1])
    assert busy.free([key(1)]) == []
    busy.hold("a", [1])
    assert busy.release_all("a") == [key(1)]

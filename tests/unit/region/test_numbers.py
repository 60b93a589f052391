"""Numbers for names: dense, and given to others only when nobody holds them."""

import pytest

from engine.region.numbers import HeldNumbers, Numbering


def test_a_name_of_a_fixed_set_keeps_its_number() -> None:
    numbers = Numbering()
    assert [numbers.number(name) for name in ("a", "b", "a")] == [0, 1, 0]
    assert numbers.name(1) == "b"
    assert len(numbers) == 2


def test_a_number_is_given_to_the_next_name_when_nobody_holds_it() -> None:
    numbers = HeldNumbers()
    assert [numbers.hold(name) for name in ("a", "b", "a")] == [0, 1, 0]
    assert not numbers.release(0)
    assert "a" in numbers
    assert numbers.release(0)
    assert "a" not in numbers
    assert numbers.hold("c") == 0
    assert (numbers.name(0), numbers.number("c"), len(numbers)) == ("c", 0, 2)


def test_what_nobody_holds_has_no_name_and_no_number() -> None:
    numbers = HeldNumbers()
    numbers.release(numbers.hold("a"))
    for number in (0, 1, -1):
        with pytest.raises(KeyError):
            numbers.name(number)
    with pytest.raises(KeyError):
        numbers.release(0)
    with pytest.raises(KeyError):
        numbers.number("a")

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.values.stream import Stream
from engine.values.suppression import (
    Reason,
    Suppression,
    address_digest,
    checked,
    decode_rows,
    encode_rows,
    list_digest,
    make,
)

NOW_MS = 1_800_000_000_000


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("User@Example.com", "user@example.com"),
        ('"user"@example.com', "user@example.com"),
        ("user@bücher.example", "user@xn--bcher-kva.example"),
        ("grüße@example.com", "GRÜßE@example.com"),
    ],
)
def test_forms_of_one_address(one: str, other: str) -> None:
    rows = [make(text, reason=Reason.MANUAL, at_ms=1) for text in (one, other)]
    assert rows[0].address == rows[1].address
    assert address_digest(rows[0].address) == address_digest(rows[1].address)


def test_addresses_that_differ() -> None:
    digests = {address_digest(text) for text in ("a@example.com", "a+b@example.com", "a@example.org")}
    assert len(digests) == 3


def test_lists_are_told_apart() -> None:
    lists = [("", -1), ("a", -1), ("a", 0), ("a", 1), ("b", 0)]
    assert len({list_digest(*name) for name in lists}) == len(lists)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="stream: allowed only together with a tenant"):
        make("a@example.com", reason=Reason.MANUAL, at_ms=1, stream=Stream.MARKETING)
    with pytest.raises(ValueError, match="note"):
        make("a@example.com", reason=Reason.MANUAL, at_ms=1, note="a\nb")
    with pytest.raises(ValueError, match="reason 'spam'"):
        Reason.parse("spam")


@pytest.mark.parametrize(
    "row",
    [
        Suppression("nobody", "", -1, Reason.MANUAL, 1),
        Suppression("a@example.com", "", 2, Reason.MANUAL, 1),
        Suppression("a@example.com", "t", 9, Reason.MANUAL, 1),
        Suppression("a@example.com", "t" * 200, -1, Reason.MANUAL, 1),
        Suppression("a@example.com", "", -1, Reason.MANUAL, -1),
    ],
)
def test_a_row_that_makes_no_sense_is_named(row: Suppression) -> None:
    with pytest.raises(ValueError, match=f"suppression of '{row.address}'"):
        checked(row, NOW_MS)


def test_a_checked_row_is_in_its_normal_form() -> None:
    row = Suppression("User@Bücher.example", "t", -1, Reason.COMPLAINT, 5, 7, "note")
    assert checked(row, NOW_MS) == row._replace(address="user@xn--bcher-kva.example")
    assert checked(checked(row, NOW_MS), NOW_MS) == checked(row, NOW_MS)


def test_a_row_of_a_clock_that_is_ahead_does_not_hold_against_what_is_said_later() -> None:
    ahead = Suppression("a@example.com", "", -1, Reason.MANUAL, NOW_MS + 60_000)
    removed = ahead._replace(reason=Reason.REMOVED, at_ms=NOW_MS + 1)
    assert checked(removed, NOW_MS + 1).wins_over(checked(ahead, NOW_MS))


def test_rows_travel() -> None:
    rows = [make("a@example.com", reason=Reason.COMPLAINT, at_ms=5, tenant="t", message_id=9, note="n")]
    assert decode_rows(encode_rows(rows)) == rows


rows_of_one_key = st.builds(
    lambda at_ms, reason, id_: Suppression("a@example.com", "", -1, Reason(reason), at_ms, id_),
    st.integers(0, 3),
    st.integers(0, 4),
    st.integers(0, 2),
)


@given(st.lists(rows_of_one_key, min_size=1, max_size=5))
def test_the_order_of_arrival_does_not_matter(rows: list[Suppression]) -> None:
    """Regions that have heard the same rows agree, whatever the order and however often."""
    ends = set()
    for order in itertools.islice(itertools.permutations(rows), 24):
        known = order[0]
        for row in (*order, order[0]):
            if row.wins_over(known):
                known = row
        ends.add(known)
    assert len(ends) == 1

"""Message ids."""

import pytest

from engine.values.ids import format_id, make_id, parse_id, region_of, seq_of


def test_parts_come_back() -> None:
    id_ = make_id(7, 12345)
    assert (region_of(id_), seq_of(id_)) == (7, 12345)
    assert parse_id(format_id(id_)) == id_


@pytest.mark.parametrize(("region", "seq"), [(0, 1), (1, 0), (1 << 15, 1), (1, 1 << 48)])
def test_parts_out_of_range_are_refused(region: int, seq: int) -> None:
    with pytest.raises(ValueError, match="allowed are"):
        make_id(region, seq)


@pytest.mark.parametrize("text", ["", "12", "g" * 16, "0" * 17])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="16 hex digits"):
        parse_id(text)

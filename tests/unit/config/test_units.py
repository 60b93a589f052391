import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config.units import (
    Rate,
    format_duration,
    format_rate,
    format_size,
    parse_duration,
    parse_rate,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5m", 300),
        ("5min", 300),
        ("90s", 90),
        ("1.5h", 5400),
        ("2d", 172800),
        ("250ms", 0.25),
        (" 5 m ", 300),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", [5, 5.0, "5", "m", "-5m", "5 weeks", "5m5s", "", None, True, "٥m", "1e3s"])
def test_a_duration_without_a_known_unit_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="a number with a unit"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"), [("25MiB", 25 * 2**20), ("1KB", 1000), ("512B", 512), ("0.5GiB", 2**29)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", [25, "25", "25mib", "25Mib", "-1B", "B"])
def test_a_size_without_a_known_unit_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="a number with a unit"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("100/min", Rate(100, 60)),
        ("1/s", Rate(1, 1)),
        ("20000/day", Rate(20000, 86400)),
        ("5/10s", Rate(5, 10)),
        ("7 / h", Rate(7, 3600)),
    ],
)
def test_rates(text: str, rate: Rate) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", [100, "100", "0/min", "100/fortnight", "/min", "1.5/s", "5/0s"])
def test_a_rate_without_a_period_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="a count per period"):
        parse_rate(text)


@given(st.integers(min_value=1, max_value=10**9))
def test_a_written_duration_is_read_back(milliseconds: int) -> None:
    assert parse_duration(format_duration(milliseconds / 1000)) == milliseconds / 1000


@given(st.integers(min_value=0, max_value=2**50))
def test_a_written_size_is_read_back(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.integers(min_value=1, max_value=10**9), st.integers(min_value=1, max_value=10**6))
def test_a_written_rate_is_read_back(count: int, period_s: int) -> None:
    rate = Rate(count, float(period_s))
    assert parse_rate(format_rate(rate)) == rate

from pathlib import Path

import pytest

from engine.campaign.recipients import BadRow, RecipientFileError
from engine.suppression.table import Defaults, header_line, read_table, row_line
from engine.values.stream import Stream
from engine.values.suppression import Reason, Suppression, make

DEFAULTS = Defaults(at_ms=1_800_000_000_000)


def read(tmp_path: Path, data: str | bytes, defaults: Defaults = DEFAULTS) -> list[Suppression | BadRow]:
    path = tmp_path / "list.csv"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return list(read_table(path, defaults))


def test_what_is_exported_can_be_imported(tmp_path: Path) -> None:
    rows = [
        make("a@example.com", reason=Reason.MANUAL, at_ms=1_799_999_999_123),
        make(
            '"odd, one"@example.com',
            reason=Reason.COMPLAINT,
            at_ms=5,
            tenant="acme",
            stream=Stream.MARKETING,
            message_id=7,
            note='said "spam", twice',
        ),
    ]
    assert read(tmp_path, header_line() + "".join(map(row_line, rows))) == rows


def test_a_plain_list_with_defaults(tmp_path: Path) -> None:
    defaults = Defaults(5, "acme", Stream.MARKETING, Reason.UNSUBSCRIBE)
    rows = read(tmp_path, b"\xef\xbb\xbfE-Mail,name\r\na@example.com,Ann\r\n\r\nB@Example.org,\r\n", defaults)
    assert rows == [
        make(address, reason=Reason.UNSUBSCRIBE, at_ms=5, tenant="acme", stream=Stream.MARKETING)
        for address in ("a@example.com", "b@example.org")
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("nobody", "no @"),
        ("a@example.com,,marketing", "stream: allowed only together with a tenant"),
        ("a@example.com,t,news", "stream 'news'"),
        ("a@example.com,,,spam", "reason 'spam'"),
        ("a@example.com,,,removed", "sendfleet suppression remove"),
        ("a@example.com,,,,yesterday", "ISO 8601"),
        ("a@example.com,,,,,xyz", "16 hex digits"),
        ("a@example.com,,,,9999-12-31T23:59:59-23:59", "times since 1970"),
        ('"a@example.com', "a quote that is not closed"),
        ("a@example.com," + "t" * 20_000, "longer than"),
    ],
)
def test_a_bad_row_has_its_line_and_reason_and_costs_nothing_else(
    tmp_path: Path, line: str, reason: str
) -> None:
    first, bad, last = read(tmp_path, f"{header_line()}x@example.com\r\n{line}\r\ny@example.com\r\n")
    assert isinstance(first, Suppression)
    assert isinstance(last, Suppression)
    assert isinstance(bad, BadRow)
    assert bad.line == 3
    assert reason in bad.reason


def test_bytes_that_are_not_utf8_are_a_bad_row(tmp_path: Path) -> None:
    (bad,) = read(tmp_path, b"address\na\xff@example.com\n")
    assert isinstance(bad, BadRow)


@pytest.mark.parametrize("separator", [";", "\t"])
def test_another_separator_is_named(tmp_path: Path, separator: str) -> None:
    with pytest.raises(RecipientFileError, match=r"separated by .*: allowed are commas"):
        read(tmp_path, f"address{separator}reason\na@example.com{separator}manual\n")


@pytest.mark.parametrize("at", ["2027-01-15T20:00:00Z", "2099-01-01"])
def test_a_time_of_the_future_counts_as_now(tmp_path: Path, at: str) -> None:
    (row,) = read(tmp_path, f"address,at\na@example.com,{at}\n")
    assert isinstance(row, Suppression)
    assert row.at_ms == DEFAULTS.at_ms


@pytest.mark.parametrize("data", ["", "name\nAnn\n", 'add"ress\n', b"\xff\xfe\n"])
def test_a_file_without_addresses_is_refused(tmp_path: Path, data: str | bytes) -> None:
    with pytest.raises(RecipientFileError):
        read(tmp_path, data)

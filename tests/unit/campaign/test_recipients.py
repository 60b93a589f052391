"""Recipients from files: every row is a recipient or a bad row with its line and reason."""

import tracemalloc
from pathlib import Path

import pytest

from engine.campaign.bad_rows import BadRowFile
from engine.campaign.recipients import (
    MAX_ROW_BYTES,
    MAX_ROW_LINES,
    BadRow,
    Recipient,
    RecipientFile,
    RecipientFileError,
)


def read(
    tmp_path: Path,
    data: bytes | str,
    *fields: str,
    name: str = "r.csv",
    address_column: str = "",
    format: str = "",
) -> list[Recipient | BadRow]:
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return list(RecipientFile(path, address_column=address_column, format=format).rows(fields))


def good(rows: list[Recipient | BadRow]) -> list[tuple[int, str, tuple[str, ...]]]:
    return [(row.line, row.address, row.values) for row in rows if isinstance(row, Recipient)]


def bad(rows: list[Recipient | BadRow]) -> list[tuple[int, str]]:
    return [(row.line, row.reason) for row in rows if isinstance(row, BadRow)]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_dialects(tmp_path: Path, delimiter: str, line_end: str, encoding: str) -> None:
    lines = ["Email", "Name"], ["a@example.com", "Åsa"], ["b@example.com", '"x""y\nz"']
    text = line_end.join(delimiter.join(line) for line in lines) + line_end
    rows = read(tmp_path, text.encode(encoding), "Name")
    assert good(rows) == [(2, "a@example.com", ("Åsa",)), (3, "b@example.com", ('x"y\nz',))]
    assert not bad(rows)


def test_bad_rows_are_told_by_line_and_reason_and_reading_goes_on(tmp_path: Path) -> None:
    rows = read(
        tmp_path,
        b"email,name\n"
        b"a@example.com,Ann\n"
        b"nobody,Bob\n"
        b"\n"
        b"c@example.com\n"
        b'd@example.com,"open\n'
        b'e@example.com,"E"\n'
        b"f@example.com,\xff\n"
        b"A@example.com,again\n"
        b" g@example.com ,G\n",
        "name",
    )
    assert good(rows) == [
        (2, "a@example.com", ("Ann",)),
        (7, "e@example.com", ("E",)),
        (10, "g@example.com", ("G",)),
    ]
    reasons = dict(bad(rows))
    assert list(reasons) == [3, 5, 6, 8, 9]
    assert reasons[3] == "address 'nobody': no @"
    assert reasons[5] == "1 columns instead of 2"
    assert reasons[6].startswith("quoting")
    assert reasons[8] == "not UTF-8"
    assert reasons[9] == "the same address as line 2"


def test_a_quote_that_is_never_closed_costs_one_line(tmp_path: Path) -> None:
    count = MAX_ROW_LINES * 3
    lines = [f"u{n}@example.com,n" for n in range(count)]
    lines[10] = 'u10@example.com,"open'
    rows = read(tmp_path, "email,name\n" + "\n".join(lines))
    assert [line for line, _ in bad(rows)] == [12]
    assert len(good(rows)) == count - 1


def test_a_row_that_is_too_long_is_bad(tmp_path: Path) -> None:
    long = "x" * (MAX_ROW_BYTES * 3)
    rows = read(tmp_path, f"email,name\na@example.com,{long}\nb@example.com,B\n", "name")
    assert good(rows) == [(3, "b@example.com", ("B",))]
    assert [line for line, _ in bad(rows)] == [2]
    rows = read(tmp_path, f'{{"email": "a@example.com", "n": "{long}"}}\n"b@example.com"\n', name="r.jsonl")
    assert good(rows) == [(2, "b@example.com", ())]
    assert [line for line, _ in bad(rows)] == [1]


def test_the_column_of_addresses(tmp_path: Path) -> None:
    data = "id,E-Mail,Work Mail\n1,a@example.com,w@example.com\n"
    assert good(read(tmp_path, data))[0][1] == "a@example.com"
    assert good(read(tmp_path, data, address_column="work mail"))[0][1] == "w@example.com"
    assert good(read(tmp_path, data, "Work_Mail", "id"))[0][2] == ("w@example.com", "1")
    with pytest.raises(RecipientFileError, match="no column 'other'; there are id, E_Mail, Work_Mail"):
        read(tmp_path, data, address_column="other")
    with pytest.raises(RecipientFileError, match=r"no column city, which the template wants; there are id"):
        read(tmp_path, data, "city")
    with pytest.raises(
        RecipientFileError, match=r"no column of addresses \(named email, .*address_column says\); there are"
    ):
        read(tmp_path, "a@example.com,Ann\n")
    with pytest.raises(RecipientFileError, match="more than one column is called x_y"):
        read(tmp_path, "email,x y,x-y\n")
    with pytest.raises(RecipientFileError, match="empty"):
        read(tmp_path, "")
    with pytest.raises(RecipientFileError, match="format"):
        read(tmp_path, "email\n", name="r.dat")
    assert read(tmp_path, "email\na@example.com\n", name="r.dat", format="csv")


def test_json_lines(tmp_path: Path) -> None:
    rows = read(
        tmp_path,
        '\ufeff{"email": "a@example.com", "first name": "Ann", "age": 7, "vip": true}\n'
        "\n"
        "not json\n"
        "[1]\n"
        '{"email": "b@example.com", "first name": null, "age": 1.5, "vip": false}\n'
        '{"email": "c@example.com", "age": 1, "vip": false}\n'
        '{"email": "d@example.com", "first name": {}, "age": 1, "vip": 1}\n'
        '{"mailbox": "e@example.com", "first name": "", "age": 1, "vip": 1}\n'
        '{"email": "A@EXAMPLE.com", "first name": "", "age": 1, "vip": 1}\n'
        '{"email": 5, "first name": "", "age": 1, "vip": 1}',
        "first_name",
        "age",
        "vip",
        name="r.jsonl",
    )
    assert good(rows) == [
        (1, "a@example.com", ("Ann", "7", "true")),
        (5, "b@example.com", ("", "1.5", "false")),
    ]
    reasons = dict(bad(rows))
    assert list(reasons) == [3, 4, 6, 7, 8, 9, 10]
    assert reasons[6] == "field first_name is missing"
    assert reasons[7] == "field first_name: expected text or a number"
    assert reasons[9] == "the same address as line 1"


def test_a_json_line_can_be_the_address_alone(tmp_path: Path) -> None:
    assert good(read(tmp_path, '"a@example.com"\n', name="r.ndjson")) == [(1, "a@example.com", ())]


def test_progress_reaches_the_size(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("email\n" + "".join(f"u{n}@example.com\n" for n in range(10)))
    file = RecipientFile(path)
    assert list(file.rows())
    assert file.position_bytes == file.size_bytes == path.stat().st_size


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        path = tmp_path / f"{count}.csv"
        with path.open("w") as file:
            file.write("email,name\n")
            file.writelines(f"user{n}@example.com,Name {n}\n" for n in range(count))
        tracemalloc.start()
        found = sum(1 for _ in RecipientFile(path).rows(("name",)))
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found == count
        return size

    peak(100)
    assert peak(20_000) < peak(1_000) + 100_000


def test_the_report_of_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "r.bad-rows.csv"
    path.write_text("of an earlier run")
    with BadRowFile(path) as report:
        pass
    assert not path.exists()
    with BadRowFile(path) as report:
        report.write(BadRow(3, "no @", 'x,"y"'))
        report.write(BadRow(4, "the same address as line 2", "a", is_duplicate=True))
    assert path.read_text() == 'line,reason,row\n3,no @,"x,""y"""\n4,the same address as line 2,a\n'
    assert (report.count, report.duplicates) == (2, 1)


def test_columns_without_a_name_are_passed_over(tmp_path: Path) -> None:
    rows = read(tmp_path, "email,,name,\na@example.com,1,Ann,2\n", "name")
    assert good(rows) == [(2, "a@example.com", ("Ann",))]


def test_a_first_line_that_is_empty(tmp_path: Path) -> None:
    with pytest.raises(RecipientFileError, match="the first line is empty"):
        read(tmp_path, "\nemail\na@example.com\n")


def test_lines_of_utf16_end_where_those_of_utf8_do(tmp_path: Path) -> None:
    text = (
        f"email,name\na@example.com,A\u2028\x85n\nb@example.com,{'x' * (MAX_ROW_BYTES + 9)},c@example.com,C\n"
    )
    for encoding in ("utf-8", "utf-16"):
        rows = read(tmp_path, text.encode(encoding), "name")
        assert good(rows) == [(2, "a@example.com", ("A\u2028\x85n",))]
        assert bad(rows) == [(3, f"longer than {MAX_ROW_BYTES} bytes")]

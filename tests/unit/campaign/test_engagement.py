"""Who goes first: classes by a number or a day, bad values as bad rows, the same order whenever the file is read."""

import tempfile
import tracemalloc
from datetime import date
from pathlib import Path

import pytest

from engine.campaign.chunks import cut_chunks
from engine.campaign.engagement import DayRule, EngagementRule, NumberRule, read_in_order
from engine.campaign.recipients import BadRow, Recipient, RecipientFile, RecipientFileError
from engine.values.engagement import Engagement

ENGAGED, NORMAL, UNENGAGED = Engagement.ENGAGED, Engagement.NORMAL, Engagement.UNENGAGED
BY_DAY = DayRule("last_open", date(2026, 9, 1), date(2026, 3, 1))
BY_NUMBER = NumberRule("opens", 3.0, 1.0)


def read(tmp_path: Path, text: str, rule: EngagementRule, name: str = "r.csv") -> list[Recipient | BadRow]:
    path = tmp_path / name
    path.write_text(text)
    return list(read_in_order(RecipientFile(path), ("name",), rule))


@pytest.mark.parametrize(
    ("rule", "value", "found"),
    [
        (BY_NUMBER, "3", ENGAGED),
        (BY_NUMBER, "2.99", NORMAL),
        (BY_NUMBER, "1", NORMAL),
        (BY_NUMBER, " 0 ", UNENGAGED),
        (BY_NUMBER, "", NORMAL),
        (NumberRule("opens"), "1", ENGAGED),
        (NumberRule("opens"), "0", NORMAL),
        (BY_DAY, "2026-09-01", ENGAGED),
        (BY_DAY, "2026-08-31T23:59:59Z", NORMAL),
        (BY_DAY, "2026-03-01 00:00:00", NORMAL),
        (BY_DAY, "2026-02-28", UNENGAGED),
        (BY_DAY, " ", NORMAL),
    ],
)
def test_classes(rule: EngagementRule, value: str, found: Engagement) -> None:
    assert rule.classify(value) is found


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        (BY_NUMBER, "often"),
        (BY_NUMBER, "nan"),
        (BY_NUMBER, "1e999"),
        (BY_NUMBER, "2026-09-01"),
        (BY_DAY, "2026-02-30"),
        (BY_DAY, "2026-09-01 noon"),
        (BY_DAY, "01.09.2026"),
        (BY_DAY, "7"),
    ],
)
def test_values_that_are_none(rule: EngagementRule, value: str) -> None:
    with pytest.raises(ValueError, match=r"allowed|no day"):
        rule.classify(value)


def test_the_engaged_go_first_and_bad_values_are_told(tmp_path: Path) -> None:
    text = (
        "email,name,opens\n"
        "a@example.com,Ann,0\n"
        "b@example.com,Bob,2\n"
        "c@example.com,Carl,often\n"
        "d@example.com,Åsa,7\n"
        "e@example.com,Eve,\n"
        "nobody,Finn,9\n"
        "g@example.com,Gus,3\n"
    )
    rows = read(tmp_path, text, BY_NUMBER)
    good = [(row.line, row.address, row.values, row.engagement) for row in rows if isinstance(row, Recipient)]
    assert good == [
        (5, "d@example.com", ("Åsa",), ENGAGED),
        (8, "g@example.com", ("Gus",), ENGAGED),
        (3, "b@example.com", ("Bob",), NORMAL),
        (6, "e@example.com", ("Eve",), NORMAL),
        (2, "a@example.com", ("Ann",), UNENGAGED),
    ]
    bad = {row.line: row.reason for row in rows if isinstance(row, BadRow)}
    assert bad.keys() == {4, 7}
    assert bad[4] == "opens 'often': allowed is a number, or a day as 2026-01-31"
    assert read(tmp_path, text, BY_NUMBER) == rows


def test_json_lines(tmp_path: Path) -> None:
    text = (
        '{"email": "a@example.com", "name": "A", "opens": 0}\n'
        '{"email": "b@example.com", "name": "B", "opens": null}\n'
        '{"email": "c@example.com", "name": "C", "opens": 5}\n'
        '{"email": "d@example.com", "name": "D"}\n'
    )
    rows = read(tmp_path, text, BY_NUMBER, name="r.jsonl")
    assert [row.address for row in rows if isinstance(row, Recipient)] == [
        "c@example.com",
        "b@example.com",
        "a@example.com",
    ]
    assert [row.reason for row in rows if isinstance(row, BadRow)] == ["field opens is missing"]


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipientFileError, match=r"no column opens, which recipients\.engagement names"):
        read(tmp_path, "email,name\na@example.com,Ann\n", BY_NUMBER)


def test_the_column_may_be_one_of_the_templates(tmp_path: Path) -> None:
    rows = read(tmp_path, "email,name\na@example.com,1\nb@example.com,5\n", NumberRule("name", 3.0))
    assert [row.values for row in rows if isinstance(row, Recipient)] == [("5",), ("1",)]


def test_no_folder_for_those_who_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("r+b", buffering=0) as full:
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda: full)
        with pytest.raises(RecipientFileError, match=r"TMPDIR.*No space left"):
            read(tmp_path, "email,name,opens\na@example.com,Ann,0\n", BY_NUMBER)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    with path.open("w") as file:
        file.write("email,name,opens\n")
        for number in range(20_000):
            file.write(f"user{number}@example.com,{'x' * 200},{number % 2}\n")
    tracemalloc.start()
    count = sum(1 for _ in read_in_order(RecipientFile(path), ("name",), BY_NUMBER))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 20_000
    assert peak < 1 << 20


def test_a_chunk_has_one_class() -> None:
    rows = [
        Recipient(n, f"u{n}@example.com", (), found)
        for n, found in enumerate([ENGAGED] * 5 + [NORMAL] * 2 + [UNENGAGED] * 4)
    ]
    cut = list(cut_chunks(rows, tenant="t", campaign="c", field_names=(), refuse=lambda row: None, size=4))
    found = [(one.chunk.number, one.chunk.engagement, len(one.lines)) for one in cut]
    assert found == [(0, ENGAGED, 4), (1, ENGAGED, 1), (2, NORMAL, 2), (3, UNENGAGED, 4)]

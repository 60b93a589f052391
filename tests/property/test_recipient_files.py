"""Any CSV that the csv module writes is read back; any bytes at all are read without harm, row by row."""

import csv
import io
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.campaign.recipients import BadRow, Recipient, RecipientFile, RecipientFileError

FIELDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00\r"), max_size=30)
ROWS = st.lists(st.tuples(FIELDS, FIELDS), max_size=20)


def read(data: bytes, name: str, fields: tuple[str, ...] = ()) -> list[Recipient | BadRow]:
    with TemporaryDirectory() as directory:
        path = Path(directory) / name
        path.write_bytes(data)
        return list(RecipientFile(path).rows(fields))


@given(ROWS, st.sampled_from([",", ";", "\t", "|"]), st.sampled_from(["\n", "\r\n"]), st.booleans())
@settings(deadline=None)
def test_what_csv_writes_is_read_back(
    rows: list[tuple[str, str]], delimiter: str, line_end: str, with_bom: bool
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator=line_end)
    writer.writerow(("email", "name", "note"))
    for number, (name, note) in enumerate(rows):
        writer.writerow((f"u{number}@example.com", name, note))
    data = (b"\xef\xbb\xbf" if with_bom else b"") + text.getvalue().encode()
    found = read(data, "r.csv", ("note", "name"))
    assert found == [
        Recipient(row.line, f"u{number}@example.com", (note, name))
        for number, ((name, note), row) in enumerate(zip(rows, found, strict=True))
    ]


@given(st.binary(max_size=300), st.sampled_from(["r.csv", "r.jsonl"]))
@settings(deadline=None)
def test_any_bytes_are_read_to_their_end(data: bytes, name: str) -> None:
    head = b"email,name\n" if name == "r.csv" else b""
    tail = b'\nlast@example.com,"x"\n' if name == "r.csv" else b'\n"last@example.com"\n'
    try:
        found = read(head + data + tail, name)
    except RecipientFileError:
        return
    lines = [row.line for row in found]
    assert lines == sorted(lines)
    # nothing that came before can hide a good last row, except one like it
    assert any(isinstance(row, Recipient) and row.address == "last@example.com" for row in found)


@given(st.lists(st.integers(0, 30), max_size=60))
@settings(deadline=None)
def test_every_address_is_a_recipient_once(numbers: list[int]) -> None:
    data = "email\n" + "".join(f"User{n}@Example.com\n" for n in numbers)
    found = read(data.encode(), "r.csv")
    good = [row.address for row in found if isinstance(row, Recipient)]
    assert good == list(dict.fromkeys(f"User{n}@example.com" for n in numbers))
    assert len(found) == len(numbers)

"""Recipients from a file of any size, row by row, in constant memory: CSV with a header line, or JSON lines.

A row is either a Recipient or a BadRow with its line number and reason; one bad row never ends the reading.
The same file gives the same sequence every time: chunks are numbered by it.

CSV: UTF-8 with or without BOM, or UTF-16 with BOM; the delimiter is found in the header line (comma,
semicolon, tab, bar) or given. A quote that is never closed costs its own line only: the lines behind it are
read again. JSON lines: an object per line, or a string that is the address.

A field is known by its column's name with everything but letters, digits and `_` replaced by `_`, as a
template can write it. An address that stood in the file before (compared without case) is a BadRow that names
the first line; what has been seen is kept in a temporary database on disk.
"""

import codecs
import csv
import hashlib
import io
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import orjson

from engine.values.address import AddressError, parse_address
from engine.values.engagement import Engagement

FORMATS = ("csv", "jsonl")
SUFFIXES = {
    **dict.fromkeys((".csv", ".tsv", ".txt"), "csv"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
}
ADDRESS_COLUMNS = ("email", "e_mail", "mail", "email_address", "e_mail_address", "address", "recipient")
DELIMITERS = (",", ";", "\t", "|")
MAX_ROW_BYTES = 64 << 10
MAX_ROW_LINES = 64
SHOWN = 200
SEEN_CACHE_KIB = 32 << 10


class RecipientFileError(ValueError):
    """The file as a whole cannot be used."""


@dataclass(frozen=True, slots=True)
class Recipient:
    """`values` are in the order of the field names that were asked for. `line` counts from 1."""

    line: int
    address: str
    values: tuple[str, ...]
    engagement: Engagement = Engagement.UNKNOWN


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is left out. `row` is its text, shortened."""

    line: int
    reason: str
    row: str
    is_duplicate: bool = False


class RecipientFile:
    """A file of recipients. `columns` are those of a CSV; () for JSON lines, whose rows name their own."""

    def __init__(
        self, path: Path, *, format: str = "", address_column: str = "", delimiter: str = ""
    ) -> None:
        self.path = path
        self.format = format or SUFFIXES.get(path.suffix.lower(), "")
        if self.format not in FORMATS:
            raise RecipientFileError(
                f"{path}: the format is not clear from the name: give {' or '.join(FORMATS)}"
            )
        self.size_bytes = path.stat().st_size
        self.position_bytes = 0
        self._address_column = field_name(address_column)
        self._delimiter = delimiter
        self.columns: tuple[str, ...] = ()
        if self.format == "csv":
            self._read_header()

    def _read_header(self) -> None:
        with self.path.open("rb") as file:
            lines = _Lines(self, file)
            first = next(lines, "")
        if "\r" in first.rstrip("\r\n"):
            raise RecipientFileError(f"{self.path}: lines end with CR alone; allowed are LF and CRLF")
        if not first.strip():
            what = "the first line is empty" if first else "empty"
            raise RecipientFileError(f"{self.path}: {what}; a CSV file begins with a line of column names")
        if not self._delimiter:
            self._delimiter = max(DELIMITERS, key=first.count) if any(d in first for d in DELIMITERS) else ","
        try:
            names = next(csv.reader([first], delimiter=self._delimiter, strict=True))
        except csv.Error as error:
            raise RecipientFileError(f"{self.path}: line 1: {error}") from None
        self.columns = tuple(field_name(name) for name in names)
        twice = sorted({name for name in self.columns if name and self.columns.count(name) > 1})
        if twice:
            raise RecipientFileError(
                f"{self.path}: line 1: more than one column is called {', '.join(twice)}"
            )
        wanted = [self._address_column] if self._address_column else ADDRESS_COLUMNS
        lowered = {name.lower(): name for name in reversed(self.columns)}
        found = [lowered[name.lower()] for name in wanted if name.lower() in lowered]
        if not found:
            known = ", ".join(ADDRESS_COLUMNS)
            what = (
                f"no column {self._address_column!r}"
                if self._address_column
                else f"no column of addresses (named {known}, or as recipients.address_column says)"
            )
            raise RecipientFileError(f"{self.path}: line 1: {what}; there are {', '.join(self.columns)}")
        self._address_column = found[0]

    def rows(self, field_names: Sequence[str] = ()) -> Iterator[Recipient | BadRow]:
        """Every row of the file. Raises RecipientFileError if a CSV has no column of one of the names."""
        missing = [name for name in field_names if name not in self.columns]
        if missing and self.format == "csv":
            raise RecipientFileError(
                f"{self.path}: no column {', '.join(missing)}, which the template wants; "
                f"there are {', '.join(self.columns)}"
            )
        return self._distinct(self._csv(field_names) if self.format == "csv" else self._json(field_names))

    def _csv(self, field_names: Sequence[str]) -> Iterator[Recipient | BadRow]:
        address_at = self.columns.index(self._address_column)
        fields_at = [self.columns.index(name) for name in field_names]
        width = len(self.columns)
        with self.path.open("rb") as file:
            lines = _Lines(self, file)
            reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
            next(reader)
            while True:
                lines.begin_record()
                line = lines.number + 1
                try:
                    row = next(reader)
                except StopIteration:
                    return
                except (csv.Error, _TooLong) as error:
                    # the reader starts its next record afresh; what the open quote swallowed is read again
                    yield BadRow(line, f"quoting: {error}", lines.reject())
                    continue
                if not row:
                    continue
                if lines.is_too_long:
                    yield BadRow(line, f"longer than {MAX_ROW_BYTES} bytes", lines.record())
                elif len(row) != width:
                    yield BadRow(line, f"{len(row)} columns instead of {width}", lines.record())
                elif any("\udc80" <= c <= "\udcff" for value in row if not value.isascii() for c in value):
                    yield BadRow(line, "not UTF-8", lines.record())
                else:
                    yield _checked(line, row[address_at], tuple([row[at] for at in fields_at]), lines.record)

    def _json(self, field_names: Sequence[str]) -> Iterator[Recipient | BadRow]:
        with self.path.open("rb") as file:
            for number, data in enumerate(self._raw_lines(file), 1):
                text = data.decode("utf-8", "replace").strip()
                if not text:
                    continue
                if len(data) > MAX_ROW_BYTES:
                    yield BadRow(number, f"longer than {MAX_ROW_BYTES} bytes", text[:SHOWN])
                    continue
                try:
                    yield self._json_row(number, data, text, field_names)
                except _BadValue as error:
                    yield BadRow(number, str(error), text[:SHOWN])

    def _json_row(self, number: int, data: bytes, text: str, names: Sequence[str]) -> Recipient | BadRow:
        try:
            row = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise _BadValue(f"not JSON: {error}") from None
        if isinstance(row, str):
            row = {self._address_column or ADDRESS_COLUMNS[0]: row}
        if not isinstance(row, dict):
            raise _BadValue("expected an object, or a string that is the address")
        fields = {field_name(key): value for key, value in row.items()}
        wanted = [self._address_column] if self._address_column else ADDRESS_COLUMNS
        lowered = {name.lower(): name for name in fields}
        at = next((lowered[name.lower()] for name in wanted if name.lower() in lowered), None)
        if at is None:
            raise _BadValue(f"no address: expected {' or '.join(wanted)}")
        values = []
        for name in names:
            if name not in fields:
                raise _BadValue(f"field {name} is missing")
            values.append(_text_of(name, fields[name]))
        return _checked(number, _text_of(at, fields[at]), tuple(values), lambda: text[:SHOWN])

    def _raw_lines(self, file: BinaryIO) -> Iterator[bytes]:
        """Lines without BOM and line end; of a line that is too long, its beginning."""
        is_first = True
        while line := file.readline(MAX_ROW_BYTES + 1):
            self.position_bytes = file.tell()
            whole = line
            while whole and not whole.endswith(b"\n"):
                whole = file.readline(MAX_ROW_BYTES + 1)
            if is_first:
                line = line.removeprefix(codecs.BOM_UTF8)
                is_first = False
            yield line.rstrip(b"\r\n")

    def _distinct(self, rows: Iterable[Recipient | BadRow]) -> Iterator[Recipient | BadRow]:
        seen = _Seen()
        try:
            for row in rows:
                if isinstance(row, Recipient):
                    first = seen.line_of(row.address, row.line)
                    if first is not None:
                        yield BadRow(
                            row.line, f"the same address as line {first}", row.address, is_duplicate=True
                        )
                        continue
                yield row
        finally:
            seen.close()


class _TooLong(Exception):
    pass


class _BadValue(ValueError):
    pass


class _Lines:
    """Decoded lines for csv.reader; remembers those of the current record, so that they can be read again."""

    def __init__(self, owner: RecipientFile, file: BinaryIO) -> None:
        self._owner = owner
        start = file.read(3)
        file.seek(0)
        encoding = "utf-8"
        if start.startswith(codecs.BOM_UTF8):
            file.seek(3)
        elif start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            encoding = "utf-16"
        self._file = file
        self._text = (
            io.TextIOWrapper(file, encoding, "replace", newline="\n") if encoding == "utf-16" else None
        )
        self._again: list[str] = []
        self._record: list[str] = []
        self._record_size = 0
        self.number = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if len(self._record) >= MAX_ROW_LINES or self._record_size > MAX_ROW_BYTES:
            raise _TooLong(f"a row of more than {MAX_ROW_LINES} lines or {MAX_ROW_BYTES} bytes")
        line = self._again.pop() if self._again else self._read()
        if not line:
            raise StopIteration
        self.number += 1
        self._record.append(line)
        self._record_size += len(line)
        return line

    def _read(self) -> str:
        if self._text is not None:
            line = rest_of_text = self._text.readline(MAX_ROW_BYTES + 1)
            while rest_of_text and not rest_of_text.endswith("\n") and len(rest_of_text) > MAX_ROW_BYTES:
                rest_of_text = self._text.readline(MAX_ROW_BYTES + 1)
        else:
            data = self._file.readline(MAX_ROW_BYTES + 1)
            rest = data
            while rest and not rest.endswith(b"\n") and len(rest) > MAX_ROW_BYTES:
                rest = self._file.readline(MAX_ROW_BYTES + 1)
            line = data.decode("utf-8", "surrogateescape")
            if line.endswith("\r"):
                line += "\n"
        self._owner.position_bytes = self._file.tell()
        return line

    @property
    def is_too_long(self) -> bool:
        """Whether the record is longer than what was read of it."""
        return self._record_size > MAX_ROW_BYTES

    def begin_record(self) -> None:
        self._record = []
        self._record_size = 0

    def record(self) -> str:
        return "".join(self._record).rstrip("\r\n").encode("utf-8", "replace").decode()[:SHOWN]

    def reject(self) -> str:
        """Give up the first line of the record, go back to the second; returns the first."""
        first, *rest = self._record or [""]
        self._again += reversed(rest)
        self.number -= len(rest)
        self._record = [first]
        return self.record()


class _Seen:
    """Addresses and the line where each stood first, in a temporary database that SQLite deletes itself."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute(f"PRAGMA cache_size = -{SEEN_CACHE_KIB}")
        self._db.execute("CREATE TABLE seen (address BLOB PRIMARY KEY, line INTEGER) WITHOUT ROWID")
        self._db.execute("BEGIN")

    def line_of(self, address: str, line: int) -> int | None:
        """The line where the address stood before; None, and remembered, if it is new."""
        digest = hashlib.blake2b(address.lower().encode(), digest_size=16).digest()
        if self._db.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (digest, line)).rowcount:
            return None
        row: tuple[int] = self._db.execute("SELECT line FROM seen WHERE address = ?", (digest,)).fetchone()
        return row[0]

    def close(self) -> None:
        self._db.close()


def field_name(column: str) -> str:
    """A column's name as a template writes it."""
    return re.sub(r"\W", "_", column.strip())


def _checked(line: int, address: str, values: tuple[str, ...], text: Callable[[], str]) -> Recipient | BadRow:
    try:
        return Recipient(line, parse_address(address.strip()).text, values)
    except AddressError as error:
        return BadRow(line, f"address {address.strip()[:80]!r}: {error}", text())


def _text_of(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    raise _BadValue(f"field {name}: expected text or a number")

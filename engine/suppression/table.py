"""Suppression lists as CSV: read row by row in constant memory, written the same way.

Columns: address, tenant, stream, reason, at, message_id, note; only address must be there (or `email`,
`recipient`, as other systems call it). `at` is ISO 8601, in UTC unless it says otherwise. What a row leaves empty
comes from the caller.
Unlike in recipient files no field spans lines: a quote that is never closed spoils its own line only.
"""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from engine.campaign.recipients import ADDRESS_COLUMNS, BadRow, RecipientFileError, field_name
from engine.values.ids import format_id, parse_id
from engine.values.stream import Stream
from engine.values.suppression import ANY_STREAM, Reason, Suppression, make

COLUMNS = ("address", "tenant", "stream", "reason", "at", "message_id", "note")
MAX_LINE = 16 << 10
SHOWN = 200
_NO_END = "unexpected end of data"  # of the csv module


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a row that does not say it gets; `at_ms` unix milliseconds."""

    at_ms: int
    tenant: str = ""
    stream: Stream | None = None
    reason: Reason = Reason.MANUAL
    note: str = ""


def read_table(path: Path, defaults: Defaults) -> Iterator[Suppression | BadRow]:
    """Every row of a file, good or bad. RecipientFileError: there is no column with addresses."""
    with path.open("rb") as file:
        columns = _header(path, file)
        number = 1
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_LINE)
                yield BadRow(number, f"longer than {MAX_LINE} bytes", "")
                continue
            if line.strip():
                yield _row(number, line, columns, defaults)


def _header(path: Path, file: BinaryIO) -> dict[str, int]:
    try:
        (names,) = csv.reader([file.readline(MAX_LINE).decode("utf-8-sig")], strict=True)
    except (UnicodeDecodeError, csv.Error, ValueError) as error:
        raise RecipientFileError(f"{path}: the first line is not a CSV header in UTF-8: {error}") from None
    if len(names) == 1 and (wrong := next((c for c in ";\t|" if c in names[0]), "")):
        raise RecipientFileError(f"{path}: columns are separated by {wrong!r}: allowed are commas")
    columns = {field_name(name).lower(): index for index, name in reversed(list(enumerate(names)))}
    for name in ADDRESS_COLUMNS:
        if name in columns:
            columns.setdefault("address", columns[name])
    if "address" not in columns:
        raise RecipientFileError(f"{path}: no column `address`; there are {', '.join(columns) or 'none'}")
    return columns


def _row(number: int, line: bytes, columns: dict[str, int], defaults: Defaults) -> Suppression | BadRow:
    try:
        (fields,) = csv.reader([line.decode("utf-8").rstrip("\r\n")], strict=True)

        def field(name: str) -> str:
            index = columns.get(name)
            return fields[index].strip() if index is not None and index < len(fields) else ""

        message_id = field("message_id")
        return make(
            field("address"),
            tenant=field("tenant") or defaults.tenant,
            stream=Stream.parse(field("stream")) if field("stream") else defaults.stream,
            reason=_reason(field("reason")) if field("reason") else defaults.reason,
            at_ms=_time(field("at"), defaults.at_ms) if field("at") else defaults.at_ms,
            message_id=parse_id(message_id) if message_id else 0,
            note=field("note") or defaults.note,
        )
    except (ValueError, csv.Error) as error:
        why = "a quote that is not closed on its line" if str(error) == _NO_END else str(error)
        return BadRow(number, why, line.decode("utf-8", "replace").strip()[:SHOWN])


def _reason(text: str) -> Reason:
    reason = Reason.parse(text)
    if reason is Reason.REMOVED:
        raise ValueError("reason 'removed': take an address off with `sendfleet suppression remove`")
    return reason


def _time(text: str, now_ms: int) -> int:
    """One of the future, by a clock that is ahead or by mistake, counts as now: of two entries the later one holds."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"at {text!r}: expected ISO 8601, as in 2026-01-31T12:00:00Z") from None
    at_ms = round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
    if not 0 <= at_ms < 1 << 47:
        raise ValueError(f"at {text!r}: allowed are times since 1970")
    return min(at_ms, now_ms)


def header_line() -> str:
    return ",".join(COLUMNS) + "\r\n"


def row_line(row: Suppression) -> str:
    out = io.StringIO()
    csv.writer(out).writerow(fields_of(row).values())
    return out.getvalue()


def fields_of(row: Suppression) -> dict[str, str]:
    """A row's columns as text."""
    at = datetime.fromtimestamp(row.at_ms / 1000, UTC)
    values = (
        row.address,
        row.tenant,
        "" if row.stream == ANY_STREAM else str(Stream(row.stream)),
        str(row.reason),
        at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        format_id(row.message_id) if row.message_id else "",
        row.note,
    )
    return dict(zip(COLUMNS, values, strict=True))

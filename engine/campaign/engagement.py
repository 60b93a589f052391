"""Who of a campaign's recipients opens what is sent: those who do go first, so that a warm-up begins with them.

A field of the recipients says it: a number (opens, clicks, a score) or the day of the last open or click. Two limits
make three classes of it. A recipient without a value is of the middle one.

The limits are those of the campaign and do not move with time: the same file gives the same order whenever it is read,
as a campaign that is sent again needs it. Memory is constant: the first class goes on as it is read, the others wait in
temporary files, of about the size of the recipients' file together.
"""

import math
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import IO, TypeAlias

import msgpack

from engine.campaign.recipients import BadRow, Recipient, RecipientFile, RecipientFileError
from engine.values.engagement import Engagement

Limit: TypeAlias = float | date

READ_BYTES = 64 << 10
ONE_KIND = "engaged, unengaged: allowed are two numbers or two days"
_DAY = re.compile(r"\d{4}-\d\d-\d\d")


@dataclass(frozen=True, slots=True)
class NumberRule:
    """A number of at least `engaged`: engaged. Below `unengaged`, if that is given: unengaged."""

    column: str
    engaged: float = 1.0
    unengaged: float | None = None

    def classify(self, text: str) -> Engagement:
        """The class of a value; ValueError says what is allowed."""
        text = text.strip()
        if not text:
            return Engagement.NORMAL
        value = read_limit(text)
        if isinstance(value, date):
            raise ValueError("allowed is a number, or nothing")
        if value >= self.engaged:
            return Engagement.ENGAGED
        is_low = self.unengaged is not None and value < self.unengaged
        return Engagement.UNENGAGED if is_low else Engagement.NORMAL


@dataclass(frozen=True, slots=True)
class DayRule:
    """The day `engaged` or a later one: engaged. Before `unengaged`, if that is given: unengaged."""

    column: str
    engaged: date
    unengaged: date | None = None

    def classify(self, text: str) -> Engagement:
        """The class of a value; ValueError says what is allowed."""
        text = text.strip()
        if not text:
            return Engagement.NORMAL
        value = read_limit(text)
        if not isinstance(value, date):
            raise ValueError("allowed is a day, as 2026-01-31, or nothing")
        if value >= self.engaged:
            return Engagement.ENGAGED
        is_low = self.unengaged is not None and value < self.unengaged
        return Engagement.UNENGAGED if is_low else Engagement.NORMAL


EngagementRule: TypeAlias = NumberRule | DayRule


def rule_of(column: str, engaged: Limit, unengaged: Limit | None) -> EngagementRule:
    """ValueError: the limits are not of one kind, or in the wrong order."""
    rule: EngagementRule
    if isinstance(engaged, date):
        if unengaged is not None and not isinstance(unengaged, date):
            raise ValueError(ONE_KIND)
        rule, is_in_order = DayRule(column, engaged, unengaged), unengaged is None or unengaged <= engaged
    else:
        if isinstance(unengaged, date):
            raise ValueError(ONE_KIND)
        rule, is_in_order = NumberRule(column, engaged, unengaged), unengaged is None or unengaged <= engaged
    if not is_in_order:
        raise ValueError("unengaged: allowed is at most engaged")
    return rule


def read_limit(text: str) -> Limit:
    """A number, or a day (ISO 8601; a time behind it does not matter); ValueError for anything else."""
    if _DAY.match(text):
        try:
            return datetime.fromisoformat(text).date()
        except ValueError as error:
            raise ValueError(f"no day: {error}") from None
    try:
        number = float(text)
    except ValueError:
        raise ValueError("allowed is a number, or a day as 2026-01-31") from None
    if not math.isfinite(number):
        raise ValueError("allowed is a finite number")
    return number


def read_in_order(
    file: RecipientFile, field_names: Sequence[str], rule: EngagementRule | None
) -> Iterator[Recipient | BadRow]:
    """The rows of a file; with a rule, the engaged ones first, then the normal ones. Raises RecipientFileError at once
    if a CSV lacks a column."""
    if rule is None:
        return file.rows(field_names)
    if file.columns and rule.column not in file.columns:
        raise RecipientFileError(
            f"{file.path}: no column {rule.column}, which recipients.engagement names; "
            f"there are {', '.join(file.columns)}"
        )
    return _sorted(_classified(file.rows((*field_names, rule.column)), rule))


def _classified(rows: Iterable[Recipient | BadRow], rule: EngagementRule) -> Iterator[Recipient | BadRow]:
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        text = row.values[-1]
        try:
            found = rule.classify(text)
        except ValueError as error:
            yield BadRow(row.line, f"{rule.column} {text[:80]!r}: {error}", row.address)
        else:
            yield Recipient(row.line, row.address, row.values[:-1], found)


def _sorted(rows: Iterable[Recipient | BadRow]) -> Iterator[Recipient | BadRow]:
    with tempfile.TemporaryFile() as normal, tempfile.TemporaryFile() as unengaged:
        later = {Engagement.NORMAL: _Waiting(normal), Engagement.UNENGAGED: _Waiting(unengaged)}
        for row in rows:
            if isinstance(row, BadRow) or row.engagement not in later:
                yield row
            else:
                later[row.engagement].add(row)
        for found, waiting in later.items():
            for line, address, values in waiting.all():
                yield Recipient(line, address, tuple(values), found)


class _Waiting:
    """Recipients in a temporary file."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def add(self, row: Recipient) -> None:
        try:
            self._file.write(
                msgpack.packb((row.line, row.address, row.values), unicode_errors="surrogatepass")
            )
        except OSError as error:
            raise _no_room(error) from error

    def all(self) -> Iterator[tuple[int, str, list[str]]]:
        try:
            self._file.seek(0)
        except OSError as error:
            raise _no_room(error) from error
        yield from msgpack.Unpacker(self._file, read_size=READ_BYTES, unicode_errors="surrogatepass")


def _no_room(error: OSError) -> RecipientFileError:
    return RecipientFileError(
        f"recipients that are less engaged wait in {tempfile.gettempdir()} (TMPDIR): {error.strerror}"
    )

"""The report of rows that were left out: a CSV file of line, reason and row, made with the first of them."""

import csv
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from engine.campaign.recipients import BadRow


class BadRowFile:
    """Use as a context manager. A report of an earlier run is replaced; without bad rows there is no file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self.duplicates = 0
        self._file: TextIO | None = None
        self._writer: Any = None

    def write(self, row: BadRow) -> None:
        if self._file is None:
            self._file = self.path.open("w", newline="", encoding="utf-8")
            self._writer = csv.writer(self._file)
            self._writer.writerow(("line", "reason", "row"))
        self._writer.writerow((row.line, row.reason, row.row))
        self.count += 1
        self.duplicates += row.is_duplicate

    def __enter__(self) -> Self:
        self.path.unlink(missing_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

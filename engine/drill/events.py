"""What a drill reads of the events logs on one machine: only what was added since it began.

Live logs are large, and the machine that they are on sends. So `begin` notes where each file ends, and only lines
behind that are read, one after the other. A log is at least once: what comes twice counts once.
"""

import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import orjson

PATTERN = "events-*.jsonl"
_Key: TypeAlias = tuple[str, object, object]  # region, number in its log, message
_BLOCK_BYTES = 1 << 16
REMEMBERED = 100_000  # events of a message; a crash repeats a chunk of them at most


class EventLogs:
    """The logs below a directory, from their beginning unless `begin` was called; of one region, or of all."""

    def __init__(self, directory: Path, region: str = "*") -> None:
        self._directory = directory
        self._pattern = f"{region}/{PATTERN}"
        self._ends: dict[Path, tuple[int, int]] = {}  # of each file, by its number in the file system
        self._seen: dict[_Key, None] = {}  # the latest, oldest first
        self._since_ms = 0

    def begin(self, since_ms: int) -> None:
        """Events from this time (unix, milliseconds) on count, and only lines that are not written yet."""
        self._since_ms = since_ms
        self._ends = {path: _end_of_lines(path) for path in self._directory.glob(self._pattern)}

    def all(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Whole lines, with the region's name; a line that is still being written has no end yet."""
        for path in sorted(self._directory.glob(self._pattern)):
            for _, event in self._lines(path):
                if event["at_ms"] >= self._since_ms:
                    yield path.parent.name, event

    def of_messages(self) -> Iterator[Mapping[str, Any]]:
        """The events about messages, each once."""
        seen: dict[_Key, None] = {}
        for region, event in self.all():
            if _is_new(region, event, seen):
                yield event

    def more_of_messages(self, lines: int) -> tuple[list[Mapping[str, Any]], bool]:
        """The events about messages in the next `lines` lines that were not read yet, each once; whether there may be
        more lines now."""
        found = []
        left = lines
        for path in sorted(self._directory.glob(self._pattern)):
            for end, event in itertools.islice(self._lines(path), left):
                left -= 1
                self._ends[path] = end
                if event["at_ms"] >= self._since_ms and _is_new(path.parent.name, event, self._seen):
                    found.append(event)
        while len(self._seen) > REMEMBERED:
            del self._seen[next(iter(self._seen))]
        return found, not left

    def _lines(self, path: Path) -> Iterator[tuple[tuple[int, int], Mapping[str, Any]]]:
        """What is behind the end that is known, and where each line ends. Another file that has got the name is read
        from its beginning; one that is gone, taken away by whoever keeps old logs elsewhere, has no more."""
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return
        with file:
            number = os.fstat(file.fileno()).st_ino
            known, end = self._ends.get(path, (number, 0))
            end = file.seek(end if known == number else 0)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                end += len(line)
                yield (number, end), orjson.loads(line)

    def left_rotation_ms(self, source: str) -> int | None:
        """When (unix, milliseconds) the source was first taken out somewhere; None if it was not."""
        times = (
            int(event["at_ms"])
            for _, event in self.all()
            if event["event"] == "reputation" and event["source"] == source and event["state"] == "removed"
        )
        return min(times, default=None)


def _is_new(region: str, event: Mapping[str, Any], seen: dict[_Key, None]) -> bool:
    """Whether it is about a message, and not among `seen`, to which it is added."""
    if "recipient" not in event:
        return False
    key = region, event["seq"], event["id"]
    if key in seen:
        return False
    seen[key] = None
    return True


def _end_of_lines(path: Path) -> tuple[int, int]:
    """The number of the file, and where its last whole line ends: what is behind it may yet be cut off and written
    again."""
    with path.open("rb") as file:
        number = os.fstat(file.fileno()).st_ino
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - _BLOCK_BYTES)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                return number, start + found + 1
            end = start
    return number, 0

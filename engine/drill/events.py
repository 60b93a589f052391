"""What a drill reads of the events logs on this machine: only what was added since it began.

Live logs are large, and the machine that they are on sends. So `begin` notes where each file ends, and only lines
behind that are read, one after the other. A log is at least once: what comes twice counts once.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

PATTERN = "*/events-*.jsonl"
_BLOCK_BYTES = 1 << 16


class EventLogs:
    """The logs below a directory, from their beginning unless `begin` was called."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ends: dict[Path, int] = {}
        self._since_ms = 0

    def begin(self, since_ms: int) -> None:
        """Events from this time (unix, milliseconds) on count, and only lines that are not written yet."""
        self._since_ms = since_ms
        self._ends = {path: _end_of_lines(path) for path in self._directory.glob(PATTERN)}

    def all(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Whole lines, with the region's name; a line that is still being written has no end yet."""
        for path in sorted(self._directory.glob(PATTERN)):
            with path.open("rb") as file:
                file.seek(self._ends.get(path, 0))
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    event = orjson.loads(line)
                    if event["at_ms"] >= self._since_ms:
                        yield path.parent.name, event

    def of_messages(self) -> Iterator[Mapping[str, Any]]:
        """The events about messages, each once."""
        seen: set[tuple[str, object, object]] = set()
        for region, event in self.all():
            if "recipient" not in event:
                continue
            key = region, event["seq"], event["id"]
            if key not in seen:
                seen.add(key)
                yield event

    def left_rotation_ms(self, source: str) -> int | None:
        """When (unix, milliseconds) the source was first taken out somewhere; None if it was not."""
        times = (
            int(event["at_ms"])
            for _, event in self.all()
            if event["event"] == "reputation" and event["source"] == source and event["state"] == "removed"
        )
        return min(times, default=None)


def _end_of_lines(path: Path) -> int:
    """Where the last whole line ends: what is behind it may yet be cut off and written again."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - _BLOCK_BYTES)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            end = start
    return 0

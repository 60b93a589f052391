"""The sink's log, written: JSON lines, appended in batches, in the kernel before the client is answered.

One `write(2)` per turn of the event loop holds every record of that turn; only then are the replies of
that turn sent. So a kill -9 of the sink loses no acceptance that a client has seen (a crash of the
machine may: the file is not fsynced). A write that failed half way leaves a torn line, which the next
write closes with a newline and the reader skips; the connections that waited for it are aborted,
unanswered.

Records, one JSON object per line: `k` kind, `t` unix ms, `n` monotonic ns, `p` personality, `c` client
IP, `s` session number (unique within a run).
  b  begin of a run                  pid
  o  connection opened               e  connection ended
  a  message accepted                id (X-Sendfleet-ID, else Message-ID), r recipients, z size in bytes
  x  refused                         at stage, code, r recipient or ""
  d  connection dropped on purpose   at stage, r recipient
"""

import asyncio
import os
import time
from pathlib import Path
from typing import Protocol

import orjson


class Waiting(Protocol):
    """A connection whose replies wait for the journal."""

    def release(self) -> None:
        """The records are written: send."""

    def abort(self) -> None:
        """They could not be written: cut the connection."""


class Journal:
    """Appends records and releases the connections that wait for them. One per sink process."""

    def __init__(self, path: Path, loop: asyncio.AbstractEventLoop) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        size = os.fstat(self._fd).st_size
        self._torn = size > 0 and os.pread(self._fd, 1, size - 1) != b"\n"
        self._loop = loop
        self._lines: list[bytes] = []
        self._waiting: list[Waiting] = []
        self._scheduled = False
        self.failures = 0
        self.record(
            {"k": "b", "t": time.time_ns() // 1_000_000, "n": time.monotonic_ns(), "pid": os.getpid()}
        )

    def record(self, fields: dict[str, object]) -> None:
        self._lines.append(orjson.dumps(fields))
        self._schedule()

    def wait(self, connection: Waiting) -> None:
        """Release `connection` after the next write. A connection asks once per turn."""
        self._waiting.append(connection)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        self._scheduled = False
        lines, self._lines = self._lines, []
        waiting, self._waiting = self._waiting, []
        if lines and not self._write(lines):
            self.failures += 1
            for connection in waiting:
                connection.abort()
            return
        for connection in waiting:
            connection.release()

    def _write(self, lines: list[bytes]) -> bool:
        lines.append(b"")
        data = b"\n".join(lines)
        if self._torn:
            data = b"\n" + data
        try:
            written = os.write(self._fd, data)
        except OSError:
            return False
        if written != len(data):
            self._torn = data[written - 1 : written] != b"\n"
            return False
        self._torn = False
        return True

    def close(self) -> None:
        self.flush()
        os.close(self._fd)

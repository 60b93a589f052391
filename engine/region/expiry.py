"""Messages whose time runs out while they wait in memory for a source that may carry them.

What waits on disk is looked at when it is loaded (engine/region/windows.py). What is loaded, and then cannot go because
every source is suspended, capped or out of the rotation, would wait for ever, and go out whenever one came back. A hand
moves round the due index, `ROWS` a second, and gives up what is too late.

A message is given up at its expiry. One whose last attempt falls on the expiry itself gets that attempt up to `LATE_MS`
later, not after that. What is in flight is never touched: its outcome decides.
"""

import struct
from collections.abc import Callable
from typing import Protocol

from native.scheduler import Scheduler

ROWS = 2000
INTERVAL_NS = 1_000_000_000
LATE_MS = 3_600_000


class DueIndex(Protocol):
    def due_rows(self, after: bytes, limit: int) -> list[tuple[bytes, int]]:
        """Due keys of all queues behind `after` in their order, with their expiry."""


class Expiry:
    """See the module docstring. `expire` settles due keys; `freed` is told that memory has room again."""

    def __init__(
        self,
        *,
        index: DueIndex,
        scheduler: Scheduler,
        expire: Callable[[list[bytes]], None],
        freed: Callable[[], None],
    ) -> None:
        self._index = index
        self._scheduler = scheduler
        self._expire = expire
        self._freed = freed
        self._after = b""
        self._looked_ns = 0

    def tick(self, now_ms: int, now_ns: int) -> None:
        """Look at the next rows, once a second at most."""
        if now_ns - self._looked_ns < INTERVAL_NS:
            return
        self._looked_ns = now_ns
        rows = self._index.due_rows(self._after, ROWS)
        self._after = rows[-1][0] if len(rows) == ROWS else b""
        late = [
            key
            for key, expires_ms in rows
            if expires_ms < now_ms
            and _gives_up_at(key, expires_ms) < now_ms
            and self._scheduler.contains(_id(key))
        ]
        if not late:
            return
        self._scheduler.remove(struct.pack(f"<{len(late)}Q", *map(_id, late)))
        gone = [key for key in late if not self._scheduler.contains(_id(key))]
        if gone:
            self._expire(gone)
            self._freed()


def _gives_up_at(key: bytes, expires_ms: int) -> int:
    due_ms = int.from_bytes(key[4:10], "big")
    return expires_ms if due_ms < expires_ms else expires_ms + LATE_MS


def _id(key: bytes) -> int:
    return int.from_bytes(key[10:], "big")

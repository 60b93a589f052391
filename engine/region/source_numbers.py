"""Which source a number meant: its place in fleet.yaml, and what is on disk outlives a change of that.

Kept are the names in their order since when, the last `MOST` times that they changed. A change is also an event, for
those who read the numbers in the events log.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import msgpack

from engine.values.clock import Clock

STATE_KEY = "sources"
VERSION = 1
MOST = 64


class NumberStore(Protocol):
    """The part of the spool that is used here."""

    def get_state(self, key: str) -> bytes | None: ...

    def put_state(self, key: str, value: bytes) -> object: ...

    def note_events(self, events: list[tuple[int, str, dict[str, Any]]]) -> object: ...


class SourceNumbers:
    """See the module docstring. `names`: of all sources of the fleet, in their order now."""

    def __init__(self, *, names: Sequence[str], store: NumberStore, clock: Clock) -> None:
        self._names = list(names)
        self._store = store
        self._clock = clock
        self._history: list[tuple[int, list[str]]] = [(0, self._names)]

    def restore(self) -> None:
        """Load what the numbers meant before; if that has changed, note it."""
        data = self._store.get_state(STATE_KEY)
        state = msgpack.unpackb(data) if data is not None else {}
        if state.get("version") == VERSION:
            self._history = [(since_ms, names) for since_ms, names in state["history"]]
            if self._history[-1][1] == self._names:
                return
            now_ms = self._clock.wall_ms()
            fields = {"names": self._names, "before": self._history[-1][1]}
            self._store.note_events([(now_ms, "sources", fields)])
            self._history = [*self._history, (now_ms, self._names)][-MOST:]
        self._store.put_state(STATE_KEY, msgpack.packb({"version": VERSION, "history": self._history}))

    def now(self, number: int, at_ms: int) -> int:
        """The number that the source has now which had `number` at `at_ms` (unix milliseconds); -1: there is none."""
        names = self._history[0][1]
        for since_ms, later in self._history:
            if since_ms > at_ms:
                break
            names = later
        name = names[number] if 0 <= number < len(names) else ""
        return self._names.index(name) if name in self._names else -1

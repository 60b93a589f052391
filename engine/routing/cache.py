"""A bounded cache with expiry, least recently used out first, and one flight per key.

A look-up of a present key costs a few dictionary operations: it is on the per-message path. A failure of the
loader reaches everyone who waits for it, and is not kept.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from engine.values.clock import Clock

V = TypeVar("V")


class ExpiringCache(Generic[V]):
    """Values by name. `loader` returns (value, seconds to keep it)."""

    def __init__(
        self, *, limit: int, clock: Clock, loader: Callable[[str], Awaitable[tuple[V, float]]]
    ) -> None:
        self._limit = limit
        self._clock = clock
        self._loader = loader
        self._entries: dict[str, tuple[V, int]] = {}
        self._flights: dict[str, asyncio.Task[V]] = {}
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> V | None:
        """The value if it is present and fresh."""
        entry = self._entries.get(key)
        if entry is None or entry[1] <= self._clock.monotonic_ns():
            return None
        self._entries[key] = self._entries.pop(key)  # now the youngest
        return entry[0]

    async def fetch(self, key: str) -> V:
        """The value, loaded if need be; concurrent callers share one load."""
        value = self.get(key)
        if value is not None:
            self.hits += 1
            return value
        task = self._flights.get(key)
        if task is None:
            self.misses += 1
            task = asyncio.get_running_loop().create_task(self._load(key))
            self._flights[key] = task
        # shielded: one waiter that is cancelled must not take the answer from the others
        return await asyncio.shield(task)

    async def _load(self, key: str) -> V:
        try:
            value, keep_s = await self._loader(key)
            self._entries.pop(key, None)
            while len(self._entries) >= self._limit:
                del self._entries[next(iter(self._entries))]
            self._entries[key] = value, self._clock.monotonic_ns() + round(keep_s * 1e9)
            return value
        finally:
            del self._flights[key]

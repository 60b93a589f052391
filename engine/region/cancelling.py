"""Messages that are cancelled: taken out of memory, then off the disk, or back into memory if they stay there."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol

from engine.region.awaiting import awaited
from engine.region.windows import Windows
from native.scheduler import Scheduler

RESTORED_AT_ONCE = 200  # each is looked up on disk


class CancelStore(Protocol):
    """The part of the spool that is used here."""

    def cancel(self, ids: Sequence[int]) -> "Future[int]": ...


class Cancelling:
    """See the module docstring. `is_offered`: to another region; `settled`: these need no copy any more."""

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        windows: Windows,
        spool: CancelStore,
        is_offered: Callable[[int], bool],
        settled: Callable[[list[int]], None],
    ) -> None:
        self._scheduler = scheduler
        self._windows = windows
        self._spool = spool
        self._is_offered = is_offered
        self._settled = settled

    async def cancel(self, ids: Sequence[int]) -> int:
        """Cancel queued messages that are not on the wire; returns how many were. SpoolError: none is."""
        ids = list(dict.fromkeys(ids))
        keys = [key for id_ in ids if (key := self._scheduler.key_of(id_)) is not None]
        self._scheduler.remove(b"".join(id_.to_bytes(8, "little") for id_ in ids))
        free = [id_ for id_ in ids if not self._is_elsewhere(id_)]
        cancelled = 0
        self._windows.settling(free)
        try:
            cancelled = await awaited(self._spool.cancel(free))
        finally:
            self._windows.settled(free)
            if cancelled < len(
                free
            ):  # the disk is full, or records are damaged and stay, or were gone before
                for start in range(0, len(keys), RESTORED_AT_ONCE):
                    self._windows.restore(keys[start : start + RESTORED_AT_ONCE])
                    await asyncio.sleep(0)
        self._settled(free)
        return cancelled

    def _is_elsewhere(self, id_: int) -> bool:
        return self._scheduler.contains(id_) or self._windows.is_held(id_) or self._is_offered(id_)

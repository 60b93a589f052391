"""A client's calls about one batch: which regions have it in hand, and what they say."""

import asyncio
import time
from collections.abc import Collection, Coroutine
from typing import Any

from engine.region.ports import RegionDraining
from engine.spool.errors import SpoolFull


class Calls:
    """The calls about one batch that are on their way, at most one to a region."""

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[bytes], tuple[str, float]] = {}
        self.error: Exception = ConnectionError("no region was asked")
        self.refused: set[str] = set()  # these have not accepted it, and will not: they are being drained
        self._full: dict[str, SpoolFull] = {}  # nor have these: they have no room
        self._is_uncertain = False  # some region may have it: it gave neither a receipt nor such a refusal

    def has(self, region: str) -> bool:
        return any(region == called for called, _ in self._tasks.values())

    def begin(self, region: str, call: Coroutine[Any, Any, bytes]) -> None:
        self.refused.discard(region)  # it is asked again, and may have it from now on
        self._full.pop(region, None)
        self._tasks[asyncio.get_running_loop().create_task(call)] = region, time.monotonic()

    async def wait(self, wait_s: float) -> list[tuple[str, float, asyncio.Task[bytes]]]:
        """What is done as soon as something is: region, when it was called, what came of it. [] after that time."""
        if not self._tasks:
            await asyncio.sleep(wait_s)
            return []
        done, _ = await asyncio.wait(self._tasks, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        return [(*self._tasks.pop(task), task) for task in done]

    def failed(self, region: str, error: Exception) -> None:
        """The region gave no receipt."""
        self.error = error
        if isinstance(error, RegionDraining):
            self.refused.add(region)
        elif isinstance(error, SpoolFull):
            self._full[region] = error
        else:
            self._is_uncertain = True

    def full(self, regions: Collection[str]) -> SpoolFull | None:
        """What one of these regions said, if none of them has it, or will have, because there is no room."""
        if self._is_uncertain or not self._full or not self.refused | self._full.keys() >= set(regions):
            return None
        return next(iter(self._full.values()))

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

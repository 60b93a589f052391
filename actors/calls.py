"""A client's calls about one batch: which regions have it in hand, and what they say."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any


class Calls:
    """The calls about one batch that are on their way, at most one to a region."""

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[bytes], tuple[str, float]] = {}
        self.error: Exception = ConnectionError("no region was asked")
        self.refused: set[str] = set()  # these have not accepted it, and will not: they are being drained

    def has(self, region: str) -> bool:
        return any(region == called for called, _ in self._tasks.values())

    def begin(self, region: str, call: Coroutine[Any, Any, bytes]) -> None:
        self.refused.discard(region)  # it is asked again, and may have it from now on
        self._tasks[asyncio.get_running_loop().create_task(call)] = region, time.monotonic()

    async def wait(self, wait_s: float) -> list[tuple[str, float, asyncio.Task[bytes]]]:
        """What is done as soon as something is: region, when it was called, what came of it. [] after that time."""
        if not self._tasks:
            await asyncio.sleep(wait_s)
            return []
        done, _ = await asyncio.wait(self._tasks, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        return [(*self._tasks.pop(task), task) for task in done]

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

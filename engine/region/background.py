"""What a region does in the background: its tasks, who ends them, and what the failure of one means.

A task that fails makes the region fail: whatever it kept true is true no more, and only another start from the spool
helps. The region's supervisor sees to that; until then callers are told.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from engine.region.ports import RegionFailed

log = logging.getLogger(__name__)


class Background:
    """See the module docstring. `region`: its name, for what is said of it."""

    def __init__(self, region: str) -> None:
        self._region = region
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._failed = asyncio.Event()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and self._failure is None:
            self._failure = task.exception()
            self._failed.set()
            log.critical("region %s: a background task failed", self._region, exc_info=self._failure)

    def check(self) -> None:
        """Raise RegionFailed if a task has failed."""
        if self._failure is not None:
            raise RegionFailed(f"region {self._region} has failed: {self._failure!r}") from self._failure

    async def wait_failed(self) -> None:
        """Return when a task has failed."""
        await self._failed.wait()

    async def stop(self) -> None:
        """End all tasks; returns when they have ended."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

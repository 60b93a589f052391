"""Batches at a steady rate, whatever becomes of them: the pace of the loads of drills and of bench/failover.py.

It does not wait for an answer: a batch whose answer is late keeps its own task, up to `MAX_OPEN` of them. What is due
while so many are open is left out and counted in `skipped`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

MAX_OPEN = 200


class Pace:
    """Calls `submit` with 0, 1, 2, … from `start` to `stop`, number n at `began_s` + n * `interval_s`."""

    def __init__(
        self,
        submit: Callable[[int], Awaitable[None]],
        interval_s: float,
        *,
        began_s: float,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._submit = submit
        self._interval_s = interval_s
        self._began_s = began_s
        self._now_s = now_s
        self._open: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._task: asyncio.Task[None] | None = None
        self.skipped = 0

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Begin nothing more; returns when everything has ended. Raises what a `submit` raised first."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.gather(*self._open, return_exceptions=True)
        if self._failure is not None:
            raise self._failure

    async def _run(self) -> None:
        number = 0
        while True:
            due_s = self._began_s + number * self._interval_s
            await asyncio.sleep(max(0.0, due_s - self._now_s()))
            if len(self._open) >= MAX_OPEN:
                self.skipped += 1
            else:
                task = asyncio.get_running_loop().create_task(self._one(number))
                self._open.add(task)
                task.add_done_callback(self._ended)
            number += 1

    async def _one(self, number: int) -> None:
        await self._submit(number)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._open.discard(task)
        if not task.cancelled() and self._failure is None:
            self._failure = task.exception()

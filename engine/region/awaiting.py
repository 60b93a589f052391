"""The spool's futures on the region's event loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from engine.spool.store import Spool

T = TypeVar("T")


class AwaitedDispatch:
    """The dispatch log as awaitables."""

    def __init__(self, spool: Spool, stopped: Callable[[list[int]], None]) -> None:
        self._spool = spool
        self._stopped = stopped

    async def dispatch(self, batch_no: int, ids: bytes, daily: dict[str, int]) -> list[int]:
        stopped = await awaited(self._spool.dispatch(batch_no, ids, daily))
        settled = [
            id_ for id_ in stopped if self._spool.message(id_) is None
        ]  # the others are offered to a peer
        if settled:
            self._stopped(settled)
        return stopped


def deliver_on(loop: asyncio.AbstractEventLoop) -> Callable[[list[Callable[[], None]]], None]:
    """The spool's completions of one group commit, run on the loop by one wake-up."""

    def run(callbacks: list[Callable[[], None]]) -> None:
        for callback in callbacks:
            callback()

    def deliver(callbacks: list[Callable[[], None]]) -> None:
        loop.call_soon_threadsafe(run, callbacks)

    return deliver


async def awaited(future: "Future[T]") -> T:
    """Await a spool future whose completion is already delivered on this loop."""
    if future.done():
        return future.result()
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.add_done_callback(lambda _: None if waiter.done() else waiter.set_result(None))
    await waiter
    return future.result()

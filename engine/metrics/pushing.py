"""Pushes a region's figures to a collector for as long as the gateway runs.

A collector that does not take them is said once, and so is its return. One that neither answers nor hangs up (its
answer may come byte by byte, so that no deadline of a socket ends it) holds one thread, and nothing else is pushed
until it has let go; the thread does not keep the process from ending.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from typing import Protocol

from engine.config.metrics import OtlpConfig
from engine.metrics.catalogue import Point

log = logging.getLogger(__name__)

GRACE_S = 5.0  # beyond the deadline that the push has itself
THREAD = "metrics push"


class Export(Protocol):
    """engine/metrics/otlp.py: whether they were taken; blocks."""

    def push(self, points: Sequence[Point]) -> bool: ...


async def push_for_ever(
    config: OtlpConfig, export: Export, points: Callable[[], Awaitable[Sequence[Point]]], region: str
) -> None:
    """See the module docstring."""
    trouble = ""
    under_way: asyncio.Future[bool] | None = None
    while True:
        before, trouble = trouble, ""
        try:
            if under_way is None:
                under_way = asyncio.wrap_future(_begin(export, await points()))
            done, _ = await asyncio.wait({under_way}, timeout=config.timeout + GRACE_S)
            if not done:
                trouble = f"{config.endpoint} gives no answer and does not hang up"
            else:
                ended, under_way = under_way, None
                if not ended.result():
                    trouble = f"{config.endpoint} does not take them"
        except Exception as error:  # whatever a collector makes its library do: the next push may succeed
            under_way, trouble = None, repr(error)
            if trouble != before:
                log.exception("gateway %s: a push of metrics has failed", region)
                before = trouble
        if trouble and trouble != before:
            log.error("gateway %s: metrics are not pushed: %s", region, trouble)
        elif before and not trouble:
            log.warning("gateway %s: metrics are pushed again", region)
        await asyncio.sleep(config.interval)


def _begin(export: Export, points: Sequence[Point]) -> Future[bool]:
    """Push in a thread of its own."""
    future: Future[bool] = Future()
    future.set_running_or_notify_cancel()  # whoever waits may go away, the push goes on

    def run() -> None:
        try:
            future.set_result(export.push(points))
        except Exception as error:  # noqa: BLE001 - it is raised where the future is waited for
            future.set_exception(error)

    threading.Thread(target=run, name=THREAD, daemon=True).start()
    return future

"""Asks the actors for their figures: engine.metrics.gather.FigurePort over calls by name."""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, Protocol

from actors.names import region_actor, source_actor
from actors.ports import RunningPool
from engine.alerts.monitor import Row
from engine.metrics.catalogue import Point
from engine.metrics.gather import SOURCES

TIMEOUT_S = 2.0


class Call(Protocol):
    """Calls a method of the actor of that name."""

    def __call__(self, actor: str, method: str, *args: Any, timeout_s: float) -> Awaitable[Any]: ...


class ActorFigures:
    """See the module docstring."""

    def __init__(self, call: Call) -> None:
        self._call = call

    async def region_figures(self, region: str) -> list[Point]:
        return list(await self._call(region_actor(region), "figures", timeout_s=TIMEOUT_S))

    async def pool_figures(self, region: str) -> dict[str, list[Point]]:
        running: list[RunningPool] = await self._call(region_actor(region), "pools", timeout_s=TIMEOUT_S)
        pools = [pool for pool in running if pool.name is not None]
        calls = (
            self._call(pool.actor, "figures", f"pool:{pool.name}", timeout_s=TIMEOUT_S) for pool in pools
        )
        answers = await asyncio.gather(*calls, return_exceptions=True)
        found: dict[str, list[Point]] = {}
        for pool, answer in zip(pools, answers, strict=True):
            if isinstance(answer, OSError | RuntimeError):  # it has died: its region says so
                continue
            if isinstance(answer, BaseException):
                raise answer
            found[str(pool.name)] = answer
        return found

    async def note_alerts(self, region: str, rows: Sequence[Row]) -> None:
        await self._call(region_actor(region), "note_alerts", rows, timeout_s=TIMEOUT_S)

    async def source_figures(self, source: str) -> list[Point]:
        return list(await self._call(source_actor(source), "figures", SOURCES, timeout_s=TIMEOUT_S))

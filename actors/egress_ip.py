"""EgressIp: the actor that owns one source's record at every site. A shell around engine.reputation.source.

Its state is kept in its region's spool: loaded before the first summary is judged, written before an answer that
carries news leaves.
"""

import asyncio
import os
from typing import Any

import msgpack

from actors.ports import NodeServices
from engine.config.schema import FleetConfig
from engine.metrics.catalogue import Point
from engine.metrics.process import ProcessFigures
from engine.ops.process import ProcessUsage, process_usage
from engine.reputation.allowance import decode_summary, encode_answer
from engine.reputation.figures import source_points
from engine.reputation.source import SourceOwner
from engine.values.clock import SteadyClock


class EgressIpActor:
    """See the module docstring."""

    def __init__(self, config_json: str, source: str, services: NodeServices) -> None:
        self._config = FleetConfig.model_validate_json(config_json)
        self._source = source
        self._link = services.region_link()
        self._clock = SteadyClock()
        self._lock = asyncio.Lock()
        self._owner: SourceOwner | None = None
        self._process: ProcessFigures | None = None

    @property
    def _key(self) -> str:
        return f"source/{self._source}"

    async def _loaded(self) -> SourceOwner:
        async with self._lock:
            if self._owner is None:
                state = await self._link.get_state(self._key)
                if state is None:
                    self._owner = SourceOwner(self._config, self._source)
                else:
                    self._owner = SourceOwner.from_state(self._config, self._source, msgpack.unpackb(state))
        return self._owner

    async def _save(self, owner: SourceOwner, now_ms: int) -> None:
        if owner.is_due_to_save(now_ms):
            owner.saved(now_ms)
            await self._link.put_state(self._key, msgpack.packb(owner.to_state()))

    async def ping(self) -> int:
        return os.getpid()

    async def usage(self) -> ProcessUsage:
        return process_usage()

    async def figures(self, actor: str) -> list[Point]:
        """Of the source, and of this process under that name."""
        if self._process is None:
            self._process = ProcessFigures(actor, times_loop=False)
        owner = await self._loaded()
        return [*source_points(owner, self._clock.wall_ms()), *self._process.points()]

    async def observe(self, data: bytes) -> bytes:
        """Judge a region's summary; returns the answer."""
        owner = await self._loaded()
        summary = decode_summary(data)
        answer = owner.observe(summary)
        await self._save(owner, summary.at_ms)
        return encode_answer(answer)

    async def order(self, name: str, site: str, argument: Any = None) -> bool:
        """An operator's order: pause, resume, skip (to the stage `argument`), cancel (the rule `argument`).

        Returns whether it changes anything. The region is told after it is on disk; a region that does not answer is
        an error, and the order takes effect at its next report.
        """
        owner = await self._loaded()
        now_ms = self._clock.wall_ms()
        changed = owner.order(now_ms, name, site, argument)
        await self._save(owner, now_ms)
        if changed:
            await self._link.review(self._source, site)
        return changed

    async def snapshot(self) -> dict[str, object]:
        owner = await self._loaded()
        return {**owner.snapshot(self._clock.wall_ms()), "pid": os.getpid()}

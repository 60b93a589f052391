"""Region: the actor that owns a region's spool and scheduler. A shell around engine.region.region.Region.

The constructor opens the spool (never across a fork, never pickled). The engine starts with the first call, on the
actor's event loop; Fleet's pings see to it that there is one after a restart.
"""

import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from actors.ports import NodeServices
from engine.config.schema import FleetConfig
from engine.providers.profiles import load_profiles
from engine.region.outbox import EventLog
from engine.region.region import Region, RegionPorts, deliver_on
from engine.routing.resolver import build_resolver
from engine.routing.router import Router
from engine.spool.store import Spool, SpoolOptions
from engine.values.clock import SteadyClock

SWITCH_INTERVAL_S = 0.0005  # the spool's writer thread and the loop share one interpreter lock


class RegionActor:
    """See the module docstring. Every method is a call of the same name on the engine's Region."""

    def __init__(self, config_json: str, name: str, services: NodeServices) -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._config = FleetConfig.model_validate_json(config_json)
        self._name = name
        self._services = services
        self._clock = SteadyClock()
        self._lock = asyncio.Lock()
        self._region: Region | None = None
        self._spool: Spool | None = None
        self._events: EventLog | None = None

    async def _engine(self) -> Region:
        if self._region is not None:
            return self._region
        async with self._lock:
            if self._region is None:
                self._region = await self._start()
        return self._region

    async def _start(self) -> Region:
        config = self._config
        number = next(region.number for region in config.regions if region.name == self._name)
        path = Path(config.spool.directory) / self._name
        options = SpoolOptions.from_config(config.spool, deliver=deliver_on(asyncio.get_running_loop()))
        self._spool = Spool.open(path, region_number=number, clock=self._clock, options=options)
        profiles = load_profiles(config.providers)
        region = Region(
            config=config,
            name=self._name,
            spool=self._spool,
            router=Router(config, profiles, build_resolver(config.resolver), self._clock),
            ports=RegionPorts(launcher=self._services, sources=self._services),
            clock=self._clock,
            seed=int.from_bytes(os.urandom(8), "big") >> 1,
        )
        await region.start()
        self._events = EventLog(
            self._spool, Path(config.events.directory) / self._name, config.events.max_file
        )
        self._events.start()
        return region

    async def ping(self) -> int:
        """Answers with the process id; raises what made the region fail."""
        (await self._engine()).check()
        return os.getpid()

    async def accept(self, header: bytes, blob: bytes) -> bytes:
        return await (await self._engine()).accept(header, blob)

    async def put_campaign(self, record: bytes) -> int:
        return await (await self._engine()).put_campaign(record)

    async def progress(self, tenant: str, campaign: str) -> list[int]:
        return (await self._engine()).progress(tenant, campaign)

    async def accept_chunk(self, data: bytes) -> bytes:
        return await (await self._engine()).accept_chunk(data)

    async def settle(self, report: bytes) -> int:
        return await (await self._engine()).settle(report)

    async def cancel(self, ids: Sequence[int]) -> int:
        return await (await self._engine()).cancel(ids)

    async def message_status(self, message_id: int) -> dict[str, object] | None:
        return (await self._engine()).status(message_id)

    async def snapshot(self) -> dict[str, object]:
        return (await self._engine()).snapshot()

    async def get_state(self, key: str) -> bytes | None:
        await self._engine()
        assert self._spool is not None
        return self._spool.get_state(key)

    async def put_state(self, key: str, value: bytes) -> None:
        await self._engine()
        assert self._spool is not None
        self._spool.put_state(key, value)

    async def stop(self) -> None:
        """Stop sending and close the spool; everything unsent stays on disk."""
        if self._region is not None and self._spool is not None:
            await self._region.stop()
            if self._events is not None:
                await self._events.stop()
            self._spool.close()

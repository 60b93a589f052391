"""Fleet: the one detached actor that starts regions and sources and keeps the fleet-wide view.

It is not on the mail path: while it is away, regions, pools and sources go on.
"""

import asyncio
import logging
import os

from actors.names import region_actor, source_actor
from actors.ports import FleetServices
from engine.config.schema import FleetConfig

log = logging.getLogger(__name__)

WATCH_S = 0.2
PING_TIMEOUT_S = 2.0
START_TIMEOUT_S = 60.0
SNAPSHOT_TIMEOUT_S = 5.0


class FleetActor:
    """See the module docstring."""

    def __init__(self, config_json: str, services: FleetServices) -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._config = FleetConfig.model_validate_json(config_json)
        self._services = services
        self._lock = asyncio.Lock()
        self._watch: asyncio.Task[None] | None = None
        self._health: dict[str, str] = {}

    async def start(self) -> None:
        """Start what is missing; returns when every region has recovered from its spool and answers."""
        async with self._lock:
            await asyncio.gather(*(self._services.ensure_region(r.name) for r in self._config.regions))
            await asyncio.gather(
                *(self._services.ensure_source(s.name, s.region) for s in self._config.sources)
            )
            await asyncio.gather(
                *(
                    self._services.call(region_actor(r.name), "ping", timeout_s=START_TIMEOUT_S)
                    for r in self._config.regions
                ),
                *(
                    self._services.call(source_actor(s.name), "ping", timeout_s=START_TIMEOUT_S)
                    for s in self._config.sources
                ),
            )
            if self._watch is None:
                self._watch = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while True:
            await asyncio.gather(*(self._ping(region.name) for region in self._config.regions))
            await asyncio.sleep(WATCH_S)

    async def _ping(self, region: str) -> None:
        try:
            await self._services.call(region_actor(region), "ping", timeout_s=PING_TIMEOUT_S)
        except (ConnectionError, TimeoutError, RuntimeError) as error:
            if self._health.get(region) != "down":
                log.warning("region %s does not answer: %s", region, error)
            self._health[region] = "down"
        else:
            if self._health.get(region) == "down":
                log.warning("region %s answers again", region)
            self._health[region] = "up"

    async def ping(self) -> int:
        if self._watch is None:
            await self.start()
        return os.getpid()

    async def snapshot(self) -> dict[str, object]:
        """Every region's snapshot, or why there is none."""
        regions: dict[str, object] = {}
        for region in self._config.regions:
            try:
                regions[region.name] = await self._services.call(
                    region_actor(region.name), "snapshot", timeout_s=SNAPSHOT_TIMEOUT_S
                )
            except (ConnectionError, TimeoutError, RuntimeError) as error:
                regions[region.name] = {"region": region.name, "error": str(error)}
        return {"fleet": self._config.fleet.name, "health": dict(self._health), "regions": regions}

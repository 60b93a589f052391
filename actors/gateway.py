"""Gateway: the actor that listens for the outside world, one per region. A shell around engine.ingress.gateway, and
around engine.metrics.steadfast for those who watch.

Stateless: what it takes in is on a region's disk before it is confirmed. A gateway that cannot start (an address is
taken, a key cannot be read) ends its process and is made again; until then its callers are told why. Only that nobody
can watch does not end it.
"""

import asyncio
import logging
import os

from actors.figures import ActorFigures
from actors.ports import NodeServices
from engine.config.schema import FleetConfig
from engine.ingress.gateway import Gateway, has_ingress
from engine.metrics.serving import serves_metrics
from engine.metrics.steadfast import SteadfastServing
from engine.ops.process import ProcessUsage, process_usage
from engine.values.clock import SteadyClock

log = logging.getLogger(__name__)

START_AGAIN_S = 2.0


class GatewayActor:
    """See the module docstring."""

    def __init__(self, config_json: str, region: str, services: NodeServices) -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._config = FleetConfig.model_validate_json(config_json)
        self._region = region
        self._services = services
        loop = asyncio.get_running_loop()
        self._gateway: Gateway | None = None
        self._metrics: SteadfastServing | None = None
        self._starting = loop.create_task(self._start())
        self._life = loop.create_task(self._live())

    async def _start(self) -> None:
        if has_ingress(self._config, self._region):
            self._gateway = Gateway(self._config, self._region, port=self._services, clock=SteadyClock())
            await self._gateway.start()
        if serves_metrics(self._config, self._region):
            port = ActorFigures(self._services.call)
            self._metrics = SteadfastServing(self._config, self._region, port=port)
            await self._metrics.start()

    async def _live(self) -> None:
        try:
            await asyncio.shield(self._starting)
        except Exception:  # it may be anything, callers get it too; what is left here is to try again
            log.exception("gateway %s does not start; again in %s s", self._region, START_AGAIN_S)
            await asyncio.sleep(START_AGAIN_S)
            os._exit(1)

    async def ping(self) -> int:
        await asyncio.shield(self._starting)
        return os.getpid()

    async def snapshot(self) -> dict[str, object]:
        await asyncio.shield(self._starting)
        found: dict[str, object] = {"region": self._region, "pid": os.getpid()}
        if self._gateway is not None:
            found |= self._gateway.snapshot()
        if self._metrics is not None:
            found["metrics"] = self._metrics.status()
        return found

    async def usage(self) -> ProcessUsage:
        return process_usage()

    async def stop(self) -> None:
        await asyncio.shield(self._starting)
        if self._metrics is not None:
            await self._metrics.stop()
        if self._gateway is not None:
            await self._gateway.stop()

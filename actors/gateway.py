"""Gateway: the actor that listens for the outside world, one per region. A shell around engine.ingress.gateway.

Stateless: what it takes in is on a region's disk before it is confirmed. A gateway that cannot start (an address is
taken, a key cannot be read) ends its process and is made again; until then its callers are told why.
"""

import asyncio
import logging
import os

from actors.ports import NodeServices
from engine.config.schema import FleetConfig
from engine.ingress.gateway import Gateway
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
        self._starting = loop.create_task(self._start())
        self._life = loop.create_task(self._live())

    async def _start(self) -> Gateway:
        gateway = Gateway(self._config, self._region, port=self._services, clock=SteadyClock())
        await gateway.start()
        return gateway

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
        return {**(await asyncio.shield(self._starting)).snapshot(), "pid": os.getpid()}

    async def stop(self) -> None:
        await (await asyncio.shield(self._starting)).stop()

"""Serves a region's figures as soon as that is possible, and tries again until it is.

An address that is taken, or a certificate that cannot be read, must not keep out what else a gateway listens for: mail.
So nothing is raised here; why the figures are not served is in the log and in `status`.
"""

import asyncio
import logging

from engine.config.schema import FleetConfig
from engine.metrics.gather import FigurePort
from engine.metrics.serving import MetricsServing

log = logging.getLogger(__name__)

AGAIN_S = 5.0


class SteadfastServing:
    """See the module docstring. Made in an event loop."""

    def __init__(
        self, config: FleetConfig, region: str, *, port: FigurePort, again_s: float = AGAIN_S
    ) -> None:
        self._config = config
        self._region = region
        self._port = port
        self._again_s = again_s
        self._serving: MetricsServing | None = None
        self._trouble = ""
        self._trying: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns after the first attempt, also if that has failed."""
        if not await self._try():
            self._trying = asyncio.get_running_loop().create_task(self._try_again())

    async def _try_again(self) -> None:
        while True:
            await asyncio.sleep(self._again_s)
            if await self._try():
                log.warning("gateway %s: metrics are served now", self._region)
                return

    async def _try(self) -> bool:
        serving = MetricsServing(self._config, self._region, port=self._port)
        try:
            await serving.start()
        except Exception as error:  # whatever it is: it is said, and mail comes in
            if str(error) != self._trouble:
                log.exception("gateway %s: metrics are not served; tried again for ever", self._region)
            self._trouble = str(error)
            await serving.stop()
            return False
        self._serving, self._trouble = serving, ""
        return True

    def status(self) -> dict[str, object]:
        """`port`, of a listener that there is; `error`: why the figures are not served."""
        if self._serving is None:
            return {"port": 0, "error": self._trouble}
        return {"port": self._serving.port}

    async def stop(self) -> None:
        if self._trying is not None:
            self._trying.cancel()
            await asyncio.gather(self._trying, return_exceptions=True)
        if self._serving is not None:
            await self._serving.stop()

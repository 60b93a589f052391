"""A region's figures for whoever watches: read by Prometheus, pushed to a collector. Part of the region's gateway."""

import asyncio
import hmac
import logging
from importlib import import_module

from engine.config.schema import FleetConfig
from engine.config.types import split_host
from engine.ingress.http import HttpListener, build_metrics_app
from engine.metrics.catalogue import Point
from engine.metrics.gather import FigurePort, Gatherer
from engine.metrics.process import ProcessFigures
from engine.metrics.prometheus import render
from engine.metrics.pushing import push_for_ever

log = logging.getLogger(__name__)


def serves_metrics(config: FleetConfig, region: str) -> bool:
    """Whether there is anything to do in a region."""
    return region in config.metrics.listen or config.metrics.otlp is not None


class MetricsDesk:
    """What the listener asks. `token_file` is read at each request: a token can be changed while this runs."""

    def __init__(self, config: FleetConfig, region: str, port: FigurePort, own: ProcessFigures) -> None:
        self._config = config
        self._region = region
        self._shard_of = config.shard_of(region)
        self._gatherer = Gatherer(config, region, port)
        self._own = own
        self._shown: list[Point] | None = None
        self._page = ""

    async def points(self) -> list[Point]:
        return [*await self._gatherer.gather(), *self._own.points()]

    async def page(self) -> str:
        """Readers that get the same figures get the same page: a large fleet's takes a tenth of a second."""
        found = await self._gatherer.gather()
        if found is not self._shown:
            points = [*found, *self._own.points()]
            self._shown, self._page = found, render({self._region: points}, self._shard_of)
        return self._page

    def may_read(self, authorization: str) -> bool:
        """OSError: the file of the token cannot be read, or is not text."""
        path = self._config.metrics.token_file
        if path is None:
            return True
        try:
            token = path.read_text("utf-8").strip()
        except UnicodeDecodeError:  # it would show what stands there
            raise OSError(f"{path}: allowed is text in UTF-8") from None
        scheme, _, shown = authorization.partition(" ")
        return (
            bool(token)
            and scheme.lower() == "bearer"
            and hmac.compare_digest(shown.strip().encode(), token.encode())
        )


class MetricsServing:
    """See the module docstring. Made in an event loop."""

    def __init__(self, config: FleetConfig, region: str, *, port: FigurePort) -> None:
        self._config = config
        self._region = region
        self._own = ProcessFigures("gateway")
        self._desk = MetricsDesk(config, region, port, self._own)
        self._listener: HttpListener | None = None
        self._pushing: asyncio.Task[None] | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen and push, as configured. OSError: the address cannot be had, or the certificate not be read; `stop`
        then, too."""
        metrics = self._config.metrics
        address = metrics.listen.get(self._region)
        if address is not None:
            self._listener = HttpListener(
                build_metrics_app(self._desk),
                max_connections=metrics.max_connections,
                certificate=metrics.certificate,
                key=metrics.key,
            )
            self.port = await self._listener.start(*split_host(address))
            log.info("gateway %s: metrics are read at %s", self._region, address)
        otlp = metrics.otlp
        if otlp is not None:
            edge = import_module("engine.metrics.otlp")  # heavy: only where it is wanted
            export = edge.OtlpExport(
                otlp,
                fleet=self._config.fleet.name,
                region=self._region,
                shard_of=self._config.shard_of(self._region),
            )
            self._pushing = asyncio.get_running_loop().create_task(
                push_for_ever(otlp, export, self._desk.points, self._region)
            )

    async def stop(self) -> None:
        if self._pushing is not None:
            self._pushing.cancel()
            await asyncio.gather(self._pushing, return_exceptions=True)
        if self._listener is not None:
            await self._listener.stop()
        await self._own.stop()

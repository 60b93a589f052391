"""A region's gateway: builds and runs what listens for the outside world. Keeps nothing that a restart would lose."""

import logging

from engine.bounces.tokens import TokenKeys
from engine.config.schema import FleetConfig
from engine.config.types import split_host
from engine.ingress.mail import MailListener
from engine.ingress.reports import RegionsPort, ReportDesk
from engine.values.clock import Clock

log = logging.getLogger(__name__)


def has_gateway(config: FleetConfig, region: str) -> bool:
    """Whether there is anything to listen for in a region."""
    return region in config.ingress.mail


class Gateway:
    """The gateway of one region."""

    def __init__(self, config: FleetConfig, region: str, *, port: RegionsPort, clock: Clock) -> None:
        """KeyFileError, OSError: a key or certificate cannot be read."""
        self._config = config
        self._region = region
        own_first = sorted(config.regions, key=lambda entry: entry.name != region)
        self._desk = ReportDesk(
            config.bounces,
            TokenKeys.read(config.tokens.keys),
            regions={entry.number: entry.name for entry in own_first},
            port=port,
            clock=clock,
        )
        name = config.ingress.name or next(s.ehlo for s in config.sources if s.region == region)
        self._mail = MailListener(self._desk, config.ingress, name=name)
        self.mail_port = 0

    async def start(self) -> None:
        """Listen. OSError: an address cannot be had."""
        host, port = split_host(self._config.ingress.mail[self._region])
        self.mail_port = await self._mail.start(host, port)
        log.info(
            "gateway %s: bounces and complaints come in at %s port %d", self._region, host, self.mail_port
        )

    async def stop(self) -> None:
        await self._mail.stop()

    def snapshot(self) -> dict[str, object]:
        return {
            "region": self._region,
            "mail": {"port": self.mail_port, **self._mail.counts},
            "reports": dict(self._desk.counts),
        }

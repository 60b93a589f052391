"""A region's gateway: builds and runs what listens for the outside world. Keeps nothing that a restart would lose."""

import logging
from typing import Protocol
from urllib.parse import urlsplit

from engine.bounces.tokens import TokenKeys
from engine.config.schema import FleetConfig
from engine.config.types import split_host
from engine.ingress.http import links_listener
from engine.ingress.mail import MailListener
from engine.ingress.postmaster import Postmaster
from engine.ingress.postmaster import RegionsPort as PostmasterPort
from engine.ingress.reports import RegionsPort as ReportsPort
from engine.ingress.reports import ReportDesk
from engine.ingress.unsubscribe import RegionsPort as UnsubscribePort
from engine.ingress.unsubscribe import UnsubscribeDesk
from engine.metrics.serving import serves_metrics
from engine.values.clock import Clock
from engine.values.stream import Stream

log = logging.getLogger(__name__)


def has_ingress(config: FleetConfig, region: str) -> bool:
    """Whether anything comes in from strangers in a region."""
    return region in config.ingress.mail or region in config.ingress.http


def has_gateway(config: FleetConfig, region: str) -> bool:
    """Whether a region has a gateway: something comes in, or its figures are shown to somebody."""
    return has_ingress(config, region) or serves_metrics(config, region)


class RegionsPort(ReportsPort, UnsubscribePort, PostmasterPort, Protocol):
    """The regions of the fleet, by name."""


class Gateway:
    """The gateway of one region."""

    def __init__(self, config: FleetConfig, region: str, *, port: RegionsPort, clock: Clock) -> None:
        """KeyFileError, OSError: a key or certificate cannot be read."""
        self._region = region
        own_first = config.near_first(region)
        keys = TokenKeys.read(config.tokens)
        ingress = config.ingress
        self._mail_at = ingress.mail.get(region)
        self._http_at = ingress.http.get(region)
        name = ingress.name or next(s.ehlo for s in config.sources if s.region == region)
        self.postmaster = Postmaster(
            config.bounces, name=name, streams=_most_urgent(config, region), port=port, clock=clock
        )
        self.reports = ReportDesk(
            config.bounces,
            keys,
            regions={entry.number: entry.name for entry in own_first},
            port=port,
            clock=clock,
            postmaster=self.postmaster,
        )
        self.unsubscribe = UnsubscribeDesk(
            config.unsubscribe,
            config.suppression,
            keys,
            regions=[entry.name for entry in own_first],
            port=port,
            clock=clock,
        )
        self._mail = MailListener(self.reports, ingress, name=name)
        paths = [urlsplit(link.url).path for link in config.unsubscribe.links]
        self._http = links_listener(self.unsubscribe, ingress, paths)
        self.mail_port = 0
        self.http_port = 0

    async def start(self) -> None:
        """Listen. OSError: an address cannot be had."""
        if self._mail_at is not None:
            self.mail_port = await self._mail.start(*split_host(self._mail_at))
            log.info("gateway %s: bounces and complaints come in at %s", self._region, self._mail_at)
        if self._http_at is not None:
            self.http_port = await self._http.start(*split_host(self._http_at))
            log.info("gateway %s: unsubscribe links lead to %s", self._region, self._http_at)

    async def stop(self) -> None:
        await self._http.stop()
        await self._mail.stop()

    def snapshot(self) -> dict[str, object]:
        return {
            "region": self._region,
            "mail": {"port": self.mail_port, **self._mail.counts},
            "reports": dict(self.reports.counts),
            "postmaster": dict(self.postmaster.counts),
            "http": {"port": self.http_port},
            "unsubscribe": dict(self.unsubscribe.counts),
        }


def _most_urgent(config: FleetConfig, own: str) -> dict[str, Stream]:
    """The most urgent stream of every region that has one for everybody, `own` first."""
    streams: dict[str, list[Stream]] = {own: []}
    for source in config.sources:
        if source.tenancy.kind == "dedicated":
            continue
        streams.setdefault(source.region, []).extend(Stream.parse(name) for name in source.streams)
    return {region: min(served) for region, served in streams.items() if served}

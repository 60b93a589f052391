"""What the commands need of a running fleet, as a Protocol (actors.client.AsyncClient fits it)."""

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from engine.campaign.giving import RegionPort
from engine.config.schema import FleetConfig
from engine.values.message import Message, Receipt
from engine.values.suppression import Suppression


class FleetPort(RegionPort, Protocol):
    """A connected client. ConnectionError and TimeoutError: no answer, the outcome is unknown."""

    config: FleetConfig

    async def submit(self, batch: Sequence[Message], *, key: bytes | None = None) -> Receipt:
        """Submit a batch, once per `key`."""

    async def status(self, message_id: int) -> dict[str, object] | None:
        """What is known of a message; None if its region never accepted it."""

    async def source(self, name: str) -> dict[str, Any]:
        """What the owner of a source knows: {"standings", "warmup", "shaping": [{"site", ...}], "rules"}."""

    async def order(self, source: str, name: str, site: str, argument: int | str | None = None) -> bool:
        """An operator's order to a source's owner; whether it changed anything. ValueError: it makes no sense."""

    async def move_tenant(self, tenant: str, quality: str) -> dict[str, bool]:
        """An operator puts a tenant into a class, in every region; which it changed. ValueError: not allowed."""

    async def trace(
        self, message_id: int, *, recipient: str = "", stream: int = 0, tenant: str = ""
    ) -> dict[str, Any] | None:
        """{"status", "region", "site", "provider", "paths": [{"source", "eligible", "reasons"}]} of a message; None if
        its region never accepted it. What is given is used when the message is not queued any more."""

    async def suppress(self, rows: Sequence[Suppression]) -> int:
        """Put addresses on suppression lists, or off them, in every region; how many rows changed something."""

    def suppressions(self, address: str = "") -> AsyncIterator[Suppression]:
        """The rows of the suppression list, all or those of one address, with those that were taken off."""

    async def drain(self, region: str, *, end: bool = False) -> bool:
        """Have a region hand over what waits there and accept nothing more, or `end` that; whether it changed anything.
        ValueError: there is no such region, or no other."""

    async def figures(self) -> dict[str, Any]:
        """{"regions": {region: [Point, ...]}, "alerts": those that fire, None if nobody looks}."""

    async def snapshot(self) -> dict[str, Any]:
        """{"fleet": name, "health": {region: text}, "regions": {region: {"counts": {...}, ...}}}."""


# path of fleet.yaml -> a client of the fleet that runs with it
PortFactory: TypeAlias = Callable[[Path], FleetPort]

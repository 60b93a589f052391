"""What the commands need of a running fleet, as a Protocol (actors.client.AsyncClient fits it)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from engine.campaign.sender import RegionPort
from engine.config.schema import FleetConfig
from engine.values.message import Message, Receipt


class FleetPort(RegionPort, Protocol):
    """A connected client. ConnectionError and TimeoutError: no answer, the outcome is unknown."""

    config: FleetConfig

    async def submit(self, batch: Sequence[Message], *, key: bytes | None = None) -> Receipt:
        """Submit a batch, once per `key`."""

    async def status(self, message_id: int) -> dict[str, object] | None:
        """What is known of a message; None if its region never accepted it."""

    async def snapshot(self) -> dict[str, Any]:
        """{"fleet": name, "health": {region: text}, "regions": {region: {"counts": {...}, ...}}}."""


# path of fleet.yaml -> a client of the fleet that runs with it
PortFactory: TypeAlias = Callable[[Path], FleetPort]

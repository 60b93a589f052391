"""Regions without copies that hand over to each other, in one process, and faults between their steps."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, Self

from engine.config.schema import FleetConfig
from engine.failover.handover import Reply, Request
from engine.region.region import Region
from engine.spool.store import Spool
from engine.values.message import Message as Mail
from engine.values.message import Receipt
from engine.values.submission import decode_receipt, encode_submission
from tests.support.region import LocalNode, start_region


class Regions(Protocol):
    """A fleet in one process."""

    regions: dict[str, Region]
    fault: Callable[[str, str, Request, bool], None]


class DrainingFleet:
    """An async context manager. `fault(sender, receiver, request, is_before)` is called around every request; if it
    raises ConnectionError the request, or its answer, is lost. It may kill either side: see `kill`, `start`.
    """

    def __init__(self, config: FleetConfig) -> None:
        self.config = config
        self.regions: dict[str, Region] = {}
        self.spools: dict[str, Spool] = {}
        self.nodes: dict[str, LocalNode] = {}
        self.fault: Callable[[str, str, Request, bool], None] = lambda *_: None

    async def __aenter__(self) -> Self:
        for region in self.config.regions:
            await self.start(region.name)
        return self

    async def __aexit__(self, *_: object) -> None:
        for name in list(self.regions):
            await self.kill(name)

    async def start(self, name: str) -> None:
        port = HandoverWay(self, name)
        self.regions[name], self.spools[name], self.nodes[name] = await start_region(
            self.config, name, handover=port
        )

    async def kill(self, name: str) -> None:
        """Tasks end where they wait, pools with what they have on the wire; what is on disk stays."""
        region, spool, node = self.regions.pop(name), self.spools.pop(name), self.nodes.pop(name)
        for pool in list(node.pools):
            node.kill_pool(pool)
        async with asyncio.timeout(60):
            await region.stop()
        spool.close()

    async def submit(self, region: str, mail: list[Mail], key: bytes) -> Receipt:
        header, blob = encode_submission(mail, key)
        return decode_receipt(await self.regions[region].accept(header, blob))

    def status(self, region: str) -> dict[str, object]:
        found = self.regions[region].snapshot()["hand_over"]
        assert isinstance(found, dict)
        return found

    def path(self, region: str) -> Path:
        return Path(self.config.spool.directory) / region


class HandoverWay:
    """How one region reaches the others."""

    def __init__(self, fleet: Regions, sender: str) -> None:
        self._fleet = fleet
        self._sender = sender

    async def hand_over(self, region: str, request: Request) -> Reply | None:
        self._fleet.fault(self._sender, region, request, True)
        receiver = self._fleet.regions.get(region)
        if receiver is None:
            raise ConnectionError(f"{region} is not there")
        reply = await receiver.hand_over(request)
        self._fleet.fault(self._sender, region, request, False)
        return reply

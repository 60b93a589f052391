"""Regions that cover for each other, with their Fleet, in one process and without Ray."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Self

from engine.alerts.monitor import Monitor
from engine.config.schema import FleetConfig
from engine.failover.fleet import FleetMachine, first_epoch_at
from engine.failover.handover import Request
from engine.failover.messages import Message, Standing
from engine.failover.timing import Timing
from engine.metrics.catalogue import Point
from engine.region.ports import RegionAway
from engine.region.region import Region
from engine.spool.store import Spool
from engine.values.clock import SteadyClock
from engine.values.message import Message as Mail
from engine.values.message import Receipt
from engine.values.submission import decode_receipt, encode_submission
from tests.support.clock import BehindClock
from tests.support.draining import HandoverWay
from tests.support.region import LocalNode, start_region, until

TICK_S = 0.02


class CoveredFleet:
    """An async context manager; `kill` ends a region and its pools as a power failure would."""

    def __init__(self, config: FleetConfig) -> None:
        self.config = config
        self.regions: dict[str, Region] = {}
        self.spools: dict[str, Spool] = {}
        self.nodes: dict[str, LocalNode] = {}
        self.cut: set[tuple[str, str]] = set()  # (sender, receiver) whose messages are lost; Fleet is ""
        self.fault: Callable[[str, str, Request, bool], None] = lambda *_: (
            None
        )  # as in tests/support/draining.py
        self.behind_s = 0.0  # by so much the clock of whoever starts has been set back
        self.fleet = self._new_fleet()

    def _new_fleet(self) -> FleetMachine:
        names = tuple(region.name for region in self.config.regions)
        wall_ns = time.time_ns() - round(self.behind_s * 1e9)
        return FleetMachine(
            names,
            incarnation=wall_ns,
            now=time.monotonic_ns(),
            timing=Timing(),
            first_epoch=first_epoch_at(wall_ns),
        )

    def restart_fleet(self) -> None:
        self.fleet = self._new_fleet()

    async def __aenter__(self) -> Self:
        for region in self.config.regions:
            await self.start(region.name)
        self._beating = asyncio.get_running_loop().create_task(self._beat())
        await until(self.all_live)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._beating.cancel()
        for name in list(self.regions):
            await self.kill(name)

    async def start(self, name: str) -> None:
        self.regions[name], self.spools[name], self.nodes[name] = await start_region(
            self.config,
            name,
            link=self,
            clock=BehindClock(SteadyClock(), self.behind_s),
            handover=HandoverWay(self, name),
        )

    async def kill(self, name: str) -> None:
        region, spool, node = self.regions.pop(name), self.spools.pop(name), self.nodes.pop(name)
        for pool in list(node.pools):
            node.kill_pool(pool)
        async with asyncio.timeout(60):
            await region.stop()
        spool.close()

    async def tell(self, region: str, sender: str, messages: Sequence[Message]) -> None:
        await asyncio.sleep(0)
        if (sender, region) in self.cut or region not in self.regions:
            raise ConnectionError(f"{region} is not there")
        self.regions[region].hear(sender, messages)

    async def _beat(self) -> None:
        while True:
            if self.fleet.is_superseded:
                self.restart_fleet()
            for name, beat in self.fleet.tick(time.monotonic_ns()):
                region = self.regions.get(name)
                if region is not None and ("", name) not in self.cut:
                    reply = region.beat(beat)
                    if reply is not None:
                        self.fleet.receive(name, reply, time.monotonic_ns())
            await asyncio.sleep(TICK_S)

    def standing(self, name: str) -> Standing:
        return next(v.standing for v in self.fleet.view(time.monotonic_ns()) if v.name == name)

    def standby(self, name: str) -> str:
        """Who has the copies of a region."""
        cover = self.regions[name].parts.cover
        return "" if cover is None else cover.machine.standby_name

    def all_live(self) -> bool:
        return all(
            self.standing(name) is Standing.LIVE
            and (cover := region.parts.cover) is not None
            and cover.machine.link.is_complete()
            for name, region in self.regions.items()
        )

    def snapshot(self) -> dict[str, Any]:
        """What of Fleet's snapshot says how the regions cover for each other."""
        view = self.fleet.view(time.monotonic_ns())
        return {
            "standing": {v.name: {"standing": v.standing.name.lower()} for v in view},
            "regions": {
                v.name: self.regions[v.name].snapshot() if v.name in self.regions else {"error": "it is away"}
                for v in view
            },
        }

    # -- what Fleet's watch asks: engine.alerts.monitor.AlertPort

    async def region_figures(self, region: str) -> list[Point]:
        if region not in self.regions:
            raise ConnectionError(f"{region} is not there")
        return self.regions[region].figures()

    async def pool_figures(self, region: str) -> dict[str, list[Point]]:
        return {}

    async def source_figures(self, source: str) -> list[Point]:
        return []

    async def note_alerts(self, region: str, rows: Sequence[tuple[int, str, dict[str, Any]]]) -> None:
        if region not in self.regions:
            raise ConnectionError(f"{region} is not there")
        await self.regions[region].note_alerts(rows)

    async def until_alerts(self, monitor: Monitor, *expected: tuple[str, str, str]) -> None:
        """Look until exactly these of regions and copies fire, as (alert, region, where)."""
        async with asyncio.timeout(60):
            while True:
                await monitor.look()
                rows = monitor.listing()
                found = {tuple(str(row[field]) for field in ("alert", "region", "where")) for row in rows}
                if {row for row in found if row[0] in ("region", "replication", "degraded")} == set(expected):
                    return
                await asyncio.sleep(TICK_S)

    async def submit(self, region: str, mail: list[Mail], key: bytes, *, again: bool = False) -> Receipt:
        header, blob = encode_submission(mail, key)
        return decode_receipt(await self.regions[region].accept(header, blob, again=again))

    async def submit_when_live(self, region: str, mail: list[Mail], key: bytes) -> Receipt:
        """Ask one region until it answers: on a busy machine it may be taken for dead for a while."""
        async with asyncio.timeout(60):
            while True:
                with suppress(RegionAway):
                    return await self.submit(region, mail, key, again=True)
                await asyncio.sleep(0.05)

    async def submit_anywhere(self, mail: list[Mail], key: bytes) -> Receipt:
        """As a client does: ask one region after the other until one gives a receipt."""
        turn = 0
        async with asyncio.timeout(60):
            while True:
                for name in list(self.regions):
                    with suppress(ConnectionError, TimeoutError):
                        async with asyncio.timeout(0.3):
                            return await self.submit(name, mail, key, again=turn > 0)
                    turn += 1
                await asyncio.sleep(0.05)

"""IspPool: the actor that holds the sessions to one provider. A shell around engine.delivery.pool.PoolEngine.

It is a spare until its region tells it, once, which pool it is (actors/pool_processes.py).

Reports go to the region one after the other and are kept until it has them on disk; while the region restarts, or its
disk is full, they wait here. A pool that has failed sends its last reports and ends its process: the region sees that
at once.
"""

import asyncio
import logging
import os
import random
import sys
import time
from collections import deque
from pathlib import Path

from actors.ports import NodeServices
from engine.bounces.wire_records import WireRecords
from engine.campaign.record import RecordRenderer
from engine.config.schema import FleetConfig
from engine.delivery.pool import PoolEngine
from engine.dkim.signer import signer_of
from engine.metrics.catalogue import Point
from engine.metrics.process import ProcessFigures
from engine.ops.garbage import collect_seldom
from engine.ops.process import ProcessUsage, process_usage
from engine.providers.profiles import load_profiles
from engine.region.lease_file import LeaseView
from engine.region.ports import PoolName
from engine.routing.resolver import build_resolver
from engine.smtp.opener import SessionOpener
from engine.spool.errors import SpoolError
from engine.spool.reader import SpoolReader
from engine.tls.routes import SecureRoutes, build_routes
from engine.values.clock import SteadyClock

log = logging.getLogger(__name__)

REPEAT_DELAY_S = 0.05
FULL_DELAY_S = 0.5
LAST_REPORTS_S = 2.0
SWITCH_INTERVAL_S = 0.0005  # threads that sign and the loop share one interpreter lock


class IspPoolActor:
    """See the module docstring."""

    def __init__(self, config_json: str, region: str, services: NodeServices) -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._config = FleetConfig.model_validate_json(config_json)
        self._region = region
        self._incarnation = ""
        self._name: PoolName | None = None
        self._clock = SteadyClock()
        self._profiles = load_profiles(self._config.providers)
        self._routes: SecureRoutes | None = None
        self._link = services.region_link()
        self._engine: PoolEngine | None = None
        self._reports: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._process: ProcessFigures | None = None

    def _built_routes(self) -> SecureRoutes:
        if self._routes is None:
            self._routes = build_routes(
                self._config,
                self._profiles,
                build_resolver(self._config.resolver),
                self._clock,
                directory=Path(self._config.spool.directory) / self._region,
            )
        return self._routes

    def _pool(self) -> PoolEngine:
        if self._name is None:
            raise RuntimeError(f"process {os.getpid()} of region {self._region} is a spare, and no pool yet")
        if self._engine is None:
            if self._config.dkim.domains:
                sys.setswitchinterval(SWITCH_INTERVAL_S)
            reader = SpoolReader(Path(self._config.spool.directory) / self._region)
            records = WireRecords(reader, self._config, self._clock)
            render = RecordRenderer(reader, records.links.url)
            self._engine = PoolEngine(
                profile=self._profiles[self._name.provider],
                reader=records,
                router=self._built_routes(),
                opener=SessionOpener(self._config.tls.authorities),
                sources={n: s for n, s in enumerate(self._config.sources) if s.region == self._region},
                clock=self._clock,
                report=self._report,
                render=lambda _, record: render(record),
                rng=random.Random(),
                signer=signer_of(self._config.dkim, time.monotonic),
                signing=self._config.dkim,
                on_failure=self._fail,
                lease=LeaseView(Path(self._config.spool.directory) / self._region)
                if self._config.fleet.replicas
                else None,
            )
            self._sender = asyncio.get_running_loop().create_task(self._send_reports())
            self._sender.add_done_callback(lambda _: self._fail())
            collect_seldom()
        return self._engine

    def _fail(self) -> None:
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._end())

    async def _end(self) -> None:
        deadline = asyncio.get_running_loop().time() + LAST_REPORTS_S
        await asyncio.sleep(REPEAT_DELAY_S)
        while self._reports and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(REPEAT_DELAY_S)
        log.critical("pool %s: ends itself", self._name)
        os._exit(1)

    def _report(self, report: bytes) -> None:
        if report not in self._reports:  # the engine repeats what is not acknowledged
            self._reports.append(report)
            self._wake.set()

    async def _send_reports(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._reports:
                report = self._reports[0]
                try:
                    sequence = await self._link.settle(report)
                except (ConnectionError, TimeoutError) as error:
                    log.warning("pool %s: region %s does not answer: %s", self._name, self._region, error)
                    await asyncio.sleep(REPEAT_DELAY_S)
                    continue
                except SpoolError as error:
                    # a full disk: what was delivered must be told when there is room, not be sent again
                    log.error("pool %s: region %s cannot settle: %s", self._name, self._region, error)
                    await asyncio.sleep(FULL_DELAY_S)
                    continue
                if self._reports and self._reports[0] is report:
                    self._reports.popleft()
                await self._pool().acknowledge(sequence)

    async def introduce(self, incarnation: str) -> tuple[int, PoolName | None]:
        """A new incarnation of the region has come, and no other decides any more which pool this is. The answer: the
        process id, and which pool it is."""
        self._incarnation = incarnation
        return os.getpid(), self._name

    async def ping(self) -> int:
        return os.getpid()

    async def warm(self) -> None:
        """Do now what would cost time when this becomes a pool."""
        self._built_routes()
        collect_seldom()

    async def take(self, incarnation: str, name: PoolName) -> None:
        """Be this pool from now on. ConnectionError: it is another, or who asks is not the region any more."""
        if incarnation != self._incarnation or self._name not in (None, name):
            raise ConnectionError(f"process {os.getpid()} does not become pool {name}; it is {self._name}")
        self._name = name

    async def name(self) -> PoolName | None:
        """Which pool this is; None: a spare."""
        return self._name

    async def figures(self, actor: str) -> list[Point]:
        """Of the pool, and of this process under that name."""
        if self._process is None:
            self._process = ProcessFigures(actor)
        return [*self._pool().figures(), *self._process.points()]

    async def usage(self) -> ProcessUsage:
        return process_usage()

    async def resume(self, epoch: int) -> bytes:
        """A new incarnation of the region attaches: what it is told now need not be reported again."""
        state = await self._pool().resume(epoch)
        self._reports.clear()
        return state

    async def assign(self, assignment: bytes) -> bytes:
        return await self._pool().assign(assignment)

    async def load(self) -> tuple[int, int]:
        return await self._pool().load()

    async def deliver(self, header: bytes, entries: bytes) -> None:
        await self._pool().deliver(header, entries)

    async def acknowledge(self, sequence: int) -> None:
        await self._pool().acknowledge(sequence)

    async def stats(self) -> dict[str, object]:
        return {**self._pool().stats(), "pid": os.getpid(), "unsettled_reports": len(self._reports)}

    async def stop(self, deadline_s: float) -> None:
        """Finish what is on the wire and wait until the region has settled it."""
        if self._name is None:
            return
        await self._pool().drain(deadline_s)
        while self._reports:
            await asyncio.sleep(REPEAT_DELAY_S)

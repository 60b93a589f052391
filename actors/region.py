"""Region: the actor that owns a region's spool and scheduler. A shell around engine.region.region.Region.

The spool is opened in the actor's own process (never across a fork, never pickled), as soon as the actor is made:
after a crash Ray makes it again, and it goes on from the spool without being called. A region that cannot start, or
whose engine has failed, ends its process, so that Ray makes it again; until then its callers are told why.
"""

import asyncio
import logging
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.partition import IN, OUT, PartedLink, Partition
from actors.peer_messages import unpacked
from actors.ports import NodeServices, RunningPool
from actors.refused import refusing
from engine.bounces.tokens import TokenKeys
from engine.config.schema import FleetConfig
from engine.failover.handover import Reply, Request
from engine.failover.messages import Beat, BeatReply, Behind
from engine.metrics.catalogue import Point
from engine.metrics.process import ProcessFigures, machine_points
from engine.ops.garbage import collect_seldom
from engine.ops.process import ProcessUsage, process_usage
from engine.providers.profiles import load_profiles
from engine.region.awaiting import deliver_on
from engine.region.leaving import Rest
from engine.region.outbox import EventLog
from engine.region.region import Region
from engine.region.wiring import RegionPorts
from engine.routing.resolver import build_resolver
from engine.routing.router import Router
from engine.spool.errors import SpoolInUse
from engine.spool.store import Spool, SpoolOptions
from engine.tls.reporter import TlsReporter
from engine.tls.sts_fetch import https_context
from engine.values.clock import SteadyClock

log = logging.getLogger(__name__)

OWNER_TIMEOUT_S = 15.0
OWNER_RETRY_S = 0.1
START_AGAIN_S = 2.0
SWITCH_INTERVAL_S = 0.0005  # the spool's writer thread and the loop share one interpreter lock


class RegionActor:
    """See the module docstring. Every method is a call of the same name on the engine's Region; to be called through
    actors/ray_calls.py."""

    def __init__(self, config_json: str, name: str, services: NodeServices) -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._config = FleetConfig.model_validate_json(config_json)
        self._name = name
        self._services = services
        self._clock = SteadyClock()
        self._spool: Spool | None = None
        self._events: EventLog | None = None
        self._reporter: TlsReporter | None = None
        self._reporting: asyncio.Task[None] | None = None
        self._stopping = False
        self._partition = Partition(time.monotonic)
        self._process = ProcessFigures("region")
        loop = asyncio.get_running_loop()
        self._starting = loop.create_task(self._start())
        self._life = loop.create_task(self._live())

    async def _engine(self) -> Region:
        return await asyncio.shield(self._starting)

    async def _live(self) -> None:
        """End the process when the region is no good any more."""
        try:
            region = await asyncio.shield(self._starting)
        except Exception:  # it may be anything, callers get it too; what is left here is to try again
            log.exception("region %s does not start; again in %s s", self._name, START_AGAIN_S)
            await asyncio.sleep(START_AGAIN_S)
        else:
            await region.wait_failed()
        if not self._stopping:
            log.critical("region %s: ends itself, to be made again from its spool", self._name)
            os._exit(1)

    async def _open_spool(self) -> Spool:
        """Wait for a former process of this region, if it is still ending."""
        config = self._config
        number = next(region.number for region in config.regions if region.name == self._name)
        path = Path(config.spool.directory) / self._name
        loop = asyncio.get_running_loop()
        options = SpoolOptions.from_config(config.spool, deliver=deliver_on(loop))
        deadline = loop.time() + OWNER_TIMEOUT_S
        while True:
            try:
                return Spool.open(path, region_number=number, clock=self._clock, options=options)
            except SpoolInUse:
                if loop.time() > deadline:
                    raise
                await asyncio.sleep(OWNER_RETRY_S)

    async def _start(self) -> Region:
        config = self._config
        if config.tokens.keys:
            TokenKeys.read(config.tokens)  # what its pools will need: said now, not when mail is due
        self._spool = await self._open_spool()
        profiles = load_profiles(config.providers)
        router = Router(config, profiles, build_resolver(config.resolver), self._clock)
        link = PartedLink(self._services, self._partition)
        region = Region(
            config=config,
            name=self._name,
            spool=self._spool,
            router=router,
            ports=RegionPorts(
                self._services,
                self._services,
                self._services,
                resolver=build_resolver(config.resolver),
                link=link,
                handover=link,
            ),
            clock=self._clock,
            seed=int.from_bytes(os.urandom(8), "big") >> 1,
            cores=len(os.sched_getaffinity(0)),
        )
        await region.start()
        self._events = EventLog(
            self._spool, Path(config.events.directory) / self._name, config.events.max_file
        )
        self._events.start()
        self._reporter = TlsReporter(
            config=config.tls.reports,
            region=self._name,
            streams=frozenset(
                s for source in config.sources if source.region == self._name for s in source.streams
            ),
            ledger=region.tls,
            resolver=build_resolver(config.resolver),
            accept=region.accept,
            addresses=router.stranger_addresses,
            context=https_context(config.tls.authorities),
            clock=self._clock,
            rng=random.Random(),
        )
        self._reporting = asyncio.get_running_loop().create_task(self._reporter.run())
        collect_seldom()
        return region

    async def ping(self) -> int:
        """Answers with the process id; raises what made the region fail."""
        (await self._engine()).check()
        return os.getpid()

    @refusing
    async def accept(self, header: bytes, blob: bytes, again: bool = False) -> bytes:
        return await (await self._engine()).accept(header, blob, again=again)

    async def beat(self, beat: Beat) -> BeatReply | Behind | None:
        engine = await self._engine()
        self._partition.check(IN)
        reply = engine.beat(beat)
        self._partition.check(OUT)
        return reply

    async def hear(self, sender: str, messages: bytes) -> None:
        """Several at once, packed as actors/peer_messages.py does it."""
        engine = await self._engine()
        self._partition.check(IN)
        engine.hear(sender, unpacked(messages))

    async def cut(self, seconds: float, way: str) -> None:
        """For drills: from now on, for so long (60 s at most), lose what Fleet and the other regions say to this one
        (`way` "in"), what it says to them ("out"), or both ("both"). 0 seconds end it. ValueError: not possible."""
        self._partition.cut(seconds, way)
        log.warning("region %s: a drill cuts it off (%s) for %g s", self._name, way, seconds)

    async def condition(self) -> str:
        """As of the engine's Region; raises what made the region fail."""
        region = await self._engine()
        region.check()
        return region.condition

    async def drain(self, on: bool) -> bool:
        return await (await self._engine()).drain(on)

    @refusing
    async def hand_over(self, request: Request) -> Reply | None:
        engine = await self._engine()
        self._partition.check(IN)
        reply = await engine.hand_over(request)
        self._partition.check(OUT)
        return reply

    @refusing
    async def put_campaign(self, record: bytes) -> int:
        return await (await self._engine()).put_campaign(record)

    @refusing
    async def progress(self, tenant: str, campaign: str) -> dict[int, bytes]:
        return (await self._engine()).progress(tenant, campaign)

    @refusing
    async def accept_chunk(self, data: bytes, again: bool = False) -> bytes:
        return await (await self._engine()).accept_chunk(data, again=again)

    @refusing
    async def settle(self, report: bytes) -> int:
        return await (await self._engine()).settle(report)

    async def report(self, signal: bytes) -> str:
        return await (await self._engine()).report(signal)

    async def unsubscribe(self, rows: bytes) -> int:
        return await (await self._engine()).unsubscribe(rows)

    async def suppress(self, rows: bytes, spread: bool) -> int:
        return await (await self._engine()).suppress(rows, spread=spread)

    async def repeat_suppressions(self, to: str) -> None:
        await (await self._engine()).repeat_suppressions(to)

    async def suppressions(self, after: bytes, limit: int) -> tuple[bytes, bytes]:
        return (await self._engine()).suppressions(after, limit)

    async def suppressions_of(self, address: str) -> bytes:
        return (await self._engine()).suppressions_of(address)

    @refusing
    async def cancel(self, ids: Sequence[int]) -> int:
        return await (await self._engine()).cancel(ids)

    async def message_status(self, message_id: int) -> dict[str, object] | None:
        return (await self._engine()).status(message_id)

    async def trace(
        self, message_id: int, recipient: str, stream: int, tenant: str
    ) -> dict[str, object] | None:
        return await (await self._engine()).trace(message_id, recipient, stream, tenant)

    async def snapshot(self) -> dict[str, object]:
        found = {**(await self._engine()).snapshot(), "pid": os.getpid()}
        found["spare_pools"] = sum(pool.name is None for pool in self._services.pools())
        if self._reporter is not None:
            found["tls_reports"] = dict(self._reporter.counts)
        return found

    async def review(self, source: str, site: str) -> None:
        (await self._engine()).review(source, site)

    async def move_tenant(self, tenant: str, quality: str) -> bool:
        return (await self._engine()).move_tenant(tenant, quality)

    async def figures(self) -> list[Point]:
        """Of the region, of this process, and of the machine."""
        region = await self._engine()
        return [*region.figures(), *self._process.points(), *machine_points()]

    async def note_alerts(self, rows: Sequence[tuple[int, str, dict[str, Any]]]) -> None:
        await (await self._engine()).note_alerts(rows)

    async def pools(self) -> list[RunningPool]:
        """The processes of its pools, and the spares."""
        await self._engine()
        return self._services.pools()

    async def usage(self) -> ProcessUsage:
        return process_usage()

    async def get_state(self, key: str) -> bytes | None:
        await self._engine()
        assert self._spool is not None
        return self._spool.get_state(key)

    async def put_state(self, key: str, value: bytes) -> None:
        """Returns when the value is on disk; raises what the spool does if it could not be written."""
        await self._engine()
        assert self._spool is not None
        await asyncio.wrap_future(self._spool.put_state(key, value))

    async def pause(self) -> None:
        """Hand nothing more to pools; returns when nothing is on its way to one."""
        await (await self._engine()).pause()

    async def rest(self) -> Rest:
        return (await self._engine()).rest()

    async def drop_copies(self) -> None:
        await (await self._engine()).drop_copies()

    async def begin_alone(self) -> None:
        await (await self._engine()).begin_alone()

    async def stop(self, rest: int = 0) -> None:
        """Stop sending and close the spool; everything unsent stays on disk. `rest`: as of the engine's Region."""
        self._stopping = True
        await self._services.launch_no_more()
        region = await self._engine()
        if self._reporting is not None:
            self._reporting.cancel()
        await region.stop(rest)
        if self._events is not None:
            await self._events.stop()
        if self._spool is not None:
            self._spool.close()

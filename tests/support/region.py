"""A region with its pools in one process, without Ray: the same engine objects, joined directly."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgpack

from engine.bounces.wire_records import WireRecords
from engine.campaign.record import RecordRenderer
from engine.config.load import parse_fleet
from engine.config.schema import FleetConfig
from engine.delivery.pool import PoolEngine
from engine.dkim.signer import signer_of
from engine.metrics.catalogue import Point
from engine.providers.profiles import load_profiles
from engine.region.awaiting import deliver_on
from engine.region.handing import HandoverPort, NoHandover
from engine.region.lease_file import LeaseView
from engine.region.outgoing import PeerLink
from engine.region.ports import PoolName
from engine.region.region import Region
from engine.region.wiring import RegionPorts
from engine.reputation.allowance import decode_summary, encode_answer
from engine.reputation.figures import source_points
from engine.reputation.source import SourceOwner
from engine.routing.resolver import build_resolver
from engine.routing.router import Router
from engine.smtp.opener import SessionOpener
from engine.spool.store import Spool, SpoolOptions
from engine.tls.routes import build_routes
from engine.values.clock import Clock, SteadyClock

CORES = 4


def fleet(directory: Path, port: int, **sections: Any) -> FleetConfig:
    """A fleet of one region with two sources, everything routed to one port of this machine."""
    data: dict[str, Any] = {
        "spool": {"directory": str(directory / "spool"), "map_size": "1GiB", "min_free": "1MiB"},
        "events": {"directory": str(directory / "events")},
        "regions": [{"name": "eu", "number": 1}],
        "sources": [
            {
                "name": f"eu-{n}",
                "region": "eu",
                "ip": f"127.0.0.{10 + n}",
                "ehlo": f"mta{n}.example.com",
                "streams": ["transactional", "notification", "marketing"],
                "netblock": f"127.0.0.{8 * n}/29",
            }
            for n in (1, 2)
        ],
        "routes": [{"domains": ["*"], "hosts": [f"127.0.0.1:{port}"]}],
        "providers": {"default": {"rate": "unlimited"}},
        "tls": {"exceptions": [{"provider": "default", "mode": "disabled", "reason": "loopback test"}]},
        "retry": {
            stream: {"first": "1s", "factor": 1, "max": "1s", "jitter": 0.1, "expire": "1h"}
            for stream in ("transactional", "notification", "marketing")
        },
    }
    return parse_fleet({**data, **sections})


class Meter:
    """Processor time of a process that always uses the same share of a core."""

    def __init__(self, share: float) -> None:
        self.share = share
        self._used = 0.0
        self._at_ns = time.monotonic_ns()

    def __call__(self) -> int:
        now_ns = time.monotonic_ns()
        self._used += (now_ns - self._at_ns) * self.share
        self._at_ns = now_ns
        return round(self._used)


class LocalNode:
    """Pools and source records as plain objects; `kill_pool` ends one as a crash would. `meters`: how busy each is."""

    def __init__(self, config: FleetConfig, region: str, spool: Spool, clock: Clock | None = None) -> None:
        self.config = config
        self.clock = clock or SteadyClock()
        self._spool = spool
        self.region_name = region
        self.region: Region | None = None
        self.link: PeerLink | None = None
        self.handover: HandoverPort = NoHandover()
        self.pools: dict[PoolName, PoolEngine] = {}
        self.meters: dict[PoolName, Meter] = {}
        self._deaths: dict[PoolName, Callable[[PoolName], None]] = {}
        self.owners: dict[str, SourceOwner] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def launch(self, name: PoolName, on_death: Callable[[PoolName], None]) -> PoolEngine:
        self._deaths[name] = on_death
        if name not in self.pools or self.pools[name].stopping:
            self.pools[name] = self._make(name)
        return self.pools[name]

    def _make(self, name: PoolName) -> PoolEngine:
        profiles = load_profiles(self.config.providers)
        reader = self._spool.reader()
        clock = self.clock
        records = WireRecords(reader, self.config, clock)
        render = RecordRenderer(reader, records.links.url)
        return PoolEngine(
            profile=profiles[name.provider],
            reader=records,
            opener=SessionOpener(self.config.tls.authorities),
            router=build_routes(
                self.config,
                profiles,
                build_resolver(self.config.resolver),
                clock,
                directory=Path(self.config.spool.directory) / self.region_name,
            ),
            sources={n: s for n, s in enumerate(self.config.sources) if s.region == self.region_name},
            clock=clock,
            report=lambda report: self._report(name, report),
            render=lambda _, record: render(record),
            rng=random.Random(1),
            signer=signer_of(self.config.dkim, time.monotonic),
            signing=self.config.dkim,
            cpu_ns=self.meters.setdefault(name, Meter(0.0)),
            lease=LeaseView(self._spool.path) if self.config.fleet.replicas else None,
        )

    def kill_pool(self, name: PoolName) -> None:
        """What it has not reported is never heard of; its connections are cut."""
        pool = self.pools.pop(name)
        pool.reports.send = lambda _: None
        pool.stopping = True
        for lane in pool._lanes.values():
            for session in list(lane.sessions):
                session.machine.abort()
        for task in [*pool._tasks, *([pool._ticker] if pool._ticker is not None else [])]:
            task.cancel()
        self._deaths[name](name)

    def _report(self, name: PoolName, report: bytes) -> None:
        task = asyncio.get_running_loop().create_task(self._settle(name, report))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _settle(self, name: PoolName, report: bytes) -> None:
        assert self.region is not None
        sequence = await self.region.settle(report)
        if name in self.pools:
            await self.pools[name].acknowledge(sequence)

    async def survivors(self) -> list[PoolName]:
        return list(self.pools)

    async def observe(self, source: str, summary: bytes) -> bytes:
        """As actors/egress_ip.py does it, through the same bytes and the same state on disk."""
        key = f"source/{source}"
        owner = self.owners.get(source)
        if owner is None:
            state = self._spool.get_state(key)
            if state is None:
                owner = SourceOwner(self.config, source)
            else:
                owner = SourceOwner.from_state(self.config, source, msgpack.unpackb(state))
            self.owners[source] = owner
        decoded = decode_summary(summary)
        answer = owner.observe(decoded)
        if owner.is_due_to_save(decoded.at_ms):
            owner.saved(decoded.at_ms)
            self._spool.put_state(key, msgpack.packb(owner.to_state()))
        return encode_answer(answer)

    async def region_figures(self, region: str) -> list[Point]:
        """engine.metrics.gather.FigurePort, as actors/figures.py has it."""
        assert self.region is not None
        return self.region.figures()

    async def pool_figures(self, region: str) -> dict[str, list[Point]]:
        return {str(name): pool.figures() for name, pool in self.pools.items()}

    async def note_alerts(self, region: str, rows: Sequence[tuple[int, str, dict[str, Any]]]) -> None:
        assert self.region is not None
        await self.region.note_alerts(rows)

    async def source_figures(self, source: str) -> list[Point]:
        if source not in self.owners:
            return []
        return source_points(self.owners[source], self.clock.wall_ms())

    async def stop(self) -> None:
        for pool in self.pools.values():
            await pool.stop(5.0)


async def start_region(
    config: FleetConfig,
    name: str = "eu",
    *,
    link: PeerLink | None = None,
    clock: Clock | None = None,
    handover: HandoverPort | None = None,
) -> tuple[Region, Spool, LocalNode]:
    clock = clock or SteadyClock()
    number = next(region.number for region in config.regions if region.name == name)
    options = SpoolOptions.from_config(config.spool, deliver=deliver_on(asyncio.get_running_loop()))
    spool = Spool.open(config.spool.directory / name, region_number=number, clock=clock, options=options)
    node = LocalNode(config, name, spool, clock)
    node.link = link
    node.handover = handover or NoHandover()
    return await region_on(node, spool), spool, node


async def region_on(node: LocalNode, spool: Spool) -> Region:
    """Another incarnation of the region on the same node, whose pools go on meanwhile, if there are any."""
    config, clock = node.config, node.clock
    region = Region(
        config=config,
        name=node.region_name,
        spool=spool,
        router=Router(config, load_profiles(config.providers), build_resolver(config.resolver), clock),
        ports=RegionPorts(
            launcher=node,
            sources=node,
            resolver=build_resolver(config.resolver),
            link=node.link,
            handover=node.handover,
        ),
        clock=clock,
        seed=1,
        cores=CORES,
    )
    node.region = region
    await region.start()
    return region


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for a condition; the deadline is for a broken engine, not a promise about speed."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError("the condition did not come true")
        await asyncio.sleep(0.01)

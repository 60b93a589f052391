"""Fleet: the one detached actor that starts regions and sources and keeps the fleet-wide view.

It is not on the mail path: while it is away, regions, pools and sources go on. It begins its watch as soon as it is
made, so also after Ray has restarted it, and makes again what is missing.
"""

import asyncio
import itertools
import logging
import os
import time
from collections.abc import Awaitable, Collection
from typing import Any

from actors.figures import ActorFigures
from actors.head_calls import HeadSilent
from actors.names import gateway_actor, region_actor, source_actor
from actors.ports import FleetServices
from actors.silence import Silence
from actors.witness import Witness
from engine.alerts.monitor import Monitor
from engine.config.schema import FleetConfig
from engine.failover.dns_keeper import DnsKeeper
from engine.failover.dns_zone import DnsZone
from engine.failover.fleet import FleetMachine, first_epoch_at
from engine.failover.messages import Beat, Standing
from engine.failover.region_health import RegionHealth, region_health
from engine.failover.timing import Timing
from engine.ingress.gateway import has_gateway, has_ingress
from engine.ops.process import ProcessUsage, process_usage
from engine.region.leaving import Leaving
from engine.routing.resolver import build_resolver
from engine.spool.errors import SpoolError
from engine.values.clock import SystemClock

log = logging.getLogger(__name__)

WATCH_S = 0.2
SOURCES_EVERY = 5  # rounds of the watch
PING_TIMEOUT_S = 2.0
START_TIMEOUT_S = 60.0
ENSURE_TIMEOUT_S = 2.0  # of one that is missing; while Ray's head is away nothing is made
SNAPSHOT_TIMEOUT_S = 5.0
BEAT_TICK_S = 0.025
BEAT_TIMEOUT_S = 1.0
DRAINED_DOWN = "drained, down"
DOWN = ("down", DRAINED_DOWN)


class FleetActor:
    """See the module docstring."""

    def __init__(self, config_json: str, services: FleetServices, witness: Witness | None = None) -> None:
        """`witness`: ends this process if it hangs."""
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._config = FleetConfig.model_validate_json(config_json)
        self._config_json = config_json
        self._services = services
        self._gateways = [
            region.name for region in self._config.regions if has_gateway(self._config, region.name)
        ]
        self._health: dict[str, str] = {}
        self._gateway_answers: dict[str, bool] = {}
        self._is_starting = self._has_started = False
        self._unmade: set[str] = set()  # missing, and not made again yet
        self._silence = Silence()
        self._watch = asyncio.get_running_loop().create_task(self._run())
        self._leaving = Leaving([region.name for region in self._config.regions], self._call_region)
        self._failover: FleetMachine | None = None
        if not self._config.fleet.replicas:
            self._leave = asyncio.get_running_loop().create_task(self._leaving.run())
        else:
            self._failover = FleetMachine(
                tuple(region.name for region in self._config.regions),
                incarnation=time.time_ns(),
                now=time.monotonic_ns(),
                timing=Timing(),
                first_epoch=first_epoch_at(time.time_ns()),
            )
            self._calls: set[asyncio.Task[None]] = set()
            self._beating = asyncio.get_running_loop().create_task(self._beat())
            self._beating.add_done_callback(self._ended)
        self._monitor = Monitor(self._config, ActorFigures(services.call))
        if self._config.alerts.enabled:
            self._monitoring = asyncio.get_running_loop().create_task(self._monitor.run())
        if witness is not None:
            self._witnessed = asyncio.get_running_loop().create_task(witness.run())
            self._witnessed.add_done_callback(_unwitnessed)
        self._dns: DnsKeeper | None = None
        if self._config.dns_failover is not None:
            zone = DnsZone(self._config.dns_failover, build_resolver(self._config.resolver))
            self._dns = DnsKeeper(self._config.dns_failover, zone, SystemClock())
            self._dns_task = asyncio.get_running_loop().create_task(self._dns.run(self))

    async def start(self, missing: Collection[str] = ()) -> None:
        """Return when every region has recovered from its spool and answers, and every source does.

        `missing`: regions that have no node; the watch makes them as soon as they have one.
        The first time, nothing is known of anybody's health until then: what is not there yet is not down.
        """
        self._is_starting, self._has_started = not self._has_started, True
        try:
            await self._start(missing)
            await asyncio.gather(*(self._watch_region(r.name) for r in self._config.regions))
            for region in self._gateways:
                self._gateway_answers[region] = region not in missing
        finally:
            self._is_starting = False

    async def _start(self, missing: Collection[str]) -> None:
        regions = [r.name for r in self._config.regions if r.name not in missing]
        sources = [s for s in self._config.sources if s.region not in missing]
        gateways = [region for region in self._gateways if region not in missing]
        await asyncio.gather(
            *(self._services.ensure_region(region) for region in regions),
            *(self._services.ensure_source(s.name, s.region) for s in sources),
            *(self._services.ensure_gateway(region) for region in gateways),
        )
        await asyncio.gather(
            *(
                self._services.call(region_actor(region), "ping", timeout_s=START_TIMEOUT_S)
                for region in regions
            ),
            *(self._services.call(source_actor(s.name), "ping", timeout_s=START_TIMEOUT_S) for s in sources),
            *(
                self._services.call(gateway_actor(region), "ping", timeout_s=START_TIMEOUT_S)
                for region in gateways
            ),
        )

        await self._until_live(regions)
        if self._failover is None:
            await self._leaving.attempt(missing)

    async def _call_region(self, region: str, method: str) -> Any:
        return await self._services.call(region_actor(region), method, timeout_s=START_TIMEOUT_S)

    # -- leases

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Without beats there are no leases: another Fleet must take over."""
        if not task.cancelled():
            log.critical("the heartbeat has failed: ends itself", exc_info=task.exception())
            os._exit(1)

    async def _beat(self) -> None:
        assert self._failover is not None
        while True:
            if self._failover.is_superseded:
                raise RuntimeError("the regions obey another Fleet, which was started later")
            for region, beat in self._failover.tick(time.monotonic_ns()):
                task = asyncio.get_running_loop().create_task(self._beat_one(region, beat))
                self._calls.add(task)
                task.add_done_callback(self._calls.discard)
            for change in self._failover.take_changes():
                log.warning("region %s is %s, epoch %d", change.region, change.standing.name, change.epoch)
            await asyncio.sleep(BEAT_TICK_S)

    async def _beat_one(self, region: str, beat: Beat) -> None:
        assert self._failover is not None
        try:
            reply = await self._services.call(region_actor(region), "beat", beat, timeout_s=BEAT_TIMEOUT_S)
        except (OSError, RuntimeError, SpoolError) as error:
            log.debug("region %s: no answer to a beat: %s", region, error)
            return
        if reply is not None:
            self._failover.receive(region, reply, time.monotonic_ns())

    async def _until_live(self, regions: Collection[str]) -> None:
        """Return when each of these regions has its lease."""
        if self._failover is None:
            return
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while waiting := [
            view.name
            for view in self._failover.view(time.monotonic_ns())
            if view.name in regions and view.standing is not Standing.LIVE
        ]:
            if time.monotonic() > deadline_s:
                raise TimeoutError(
                    f"after {START_TIMEOUT_S:.0f} s these regions are not live yet: {', '.join(waiting)}; they go on: "
                    "see `sendfleet status`"
                )
            await asyncio.sleep(BEAT_TICK_S)

    # -- the watch

    async def _run(self) -> None:
        for turn in itertools.count():
            watches = [self._watch_region(region.name) for region in self._config.regions]
            if turn % SOURCES_EVERY == 0:
                watches += [self._watch_source(s.name, s.region) for s in self._config.sources]
                watches += [self._watch_gateway(region) for region in self._gateways]
            for error in await asyncio.gather(*watches, return_exceptions=True):
                if error is not None:
                    log.error("the watch goes on after an error", exc_info=error)
            await asyncio.sleep(WATCH_S)

    async def _watch_region(self, region: str) -> None:
        condition = await self._ask(region_actor(region), "condition")
        before = self._health.get(region)
        if condition is not None:
            if before in DOWN:
                log.warning("region %s answers again", region)
            self._health[region] = condition
            return
        if before not in DOWN:
            log.warning("region %s does not answer", region)
        # what was drained before accepts nothing when it answers again either: that is on its disk
        self._health[region] = DRAINED_DOWN if before in ("drained", DRAINED_DOWN) else "down"
        await self._make_again(region_actor(region), self._services.ensure_region(region))

    async def _watch_source(self, source: str, region: str) -> None:
        if not await self._answers(source_actor(source), region):
            await self._make_again(source_actor(source), self._services.ensure_source(source, region))

    async def _watch_gateway(self, region: str) -> None:
        self._gateway_answers[region] = await self._answers(gateway_actor(region), region)
        if not self._gateway_answers[region]:
            await self._make_again(gateway_actor(region), self._services.ensure_gateway(region))

    async def _make_again(self, actor: str, making: Awaitable[None]) -> None:
        """Without Ray's head, or a node, this has to wait, and the watch over the others has not."""
        try:
            async with asyncio.timeout(ENSURE_TIMEOUT_S):
                await making
            self._unmade.discard(actor)
        except (ConnectionError, TimeoutError) as error:
            if actor not in self._unmade:
                log.warning("%s is not made again yet: %s", actor, error)
            self._unmade.add(actor)

    async def _answers(self, actor: str, region: str) -> bool:
        """Whether it answers. If it hangs it is ended; not while its region is silent, too, which is on the same node:
        then it may be the network."""
        try:
            await self._services.call(actor, "ping", timeout_s=PING_TIMEOUT_S)
        except (OSError, RuntimeError, ValueError, SpoolError) as error:
            log.info("%s: no answer to a ping: %s", actor, error)
            if isinstance(error, TimeoutError) and not isinstance(error, HeadSilent):
                self._silence.unanswered(actor)
            else:
                self._silence.away(actor)
            if self._silence.hangs(actor) and await self._ask(region_actor(region), "condition") is not None:
                log.error("%s lives and answers nothing: it is ended, and made again", actor)
                self._silence.ended(actor)
                await self._make_again(actor, self._services.end(actor))
            return False
        self._silence.answered(actor)
        return True

    async def _ask(self, actor: str, method: str) -> Any:
        """None: no answer."""
        try:
            return await self._services.call(actor, method, timeout_s=PING_TIMEOUT_S)
        except (OSError, RuntimeError, ValueError, SpoolError) as error:
            log.info("%s: no answer to a %s: %s", actor, method, error)
            return None

    def regions_health(self) -> dict[str, RegionHealth] | None:
        """For the submission host name (engine/failover/dns_keeper.py); None until each was asked once, and the leases
        of a Fleet before this one have run out, and while the fleet is started."""
        if (
            self._is_starting
            or len(self._health) < len(self._config.regions)
            or len(self._gateway_answers) < len(self._gateways)
        ):
            return None
        standings: dict[str, Standing] = {}
        if self._failover is not None:
            if not self._failover.ready:
                return None
            standings = {v.name: v.standing for v in self._failover.view(time.monotonic_ns())}
        return {
            name: region_health(
                condition,
                standings.get(name),
                has_gateway=not has_ingress(self._config, name) or self._gateway_answers[name],
            )
            for name, condition in self._health.items()
        }

    async def health(self) -> dict[str, str]:
        """The regions as the watch sees them: up, draining, drained, returning, refusing, waiting, down, or
        drained and down.
        Answered without asking anybody."""
        return dict(self._health)

    def _standings(self) -> dict[str, dict[str, object]]:
        """By region: its standing, epoch and share of new mail; empty in a fleet without copies. A Fleet that has just
        started does not know the standings yet."""
        if self._failover is None:
            return {}
        is_ready = self._failover.ready
        return {
            v.name: {
                "standing": v.standing.name.lower() if is_ready else "unknown",
                "epoch": v.epoch,
                "weight": v.weight,
            }
            for v in self._failover.view(time.monotonic_ns())
        }

    async def shares(self) -> dict[str, int]:
        """How much of the new mail each region is to be given, 0 to 100; empty in a fleet without copies. Answered
        without asking anybody."""
        if self._failover is None:
            return {}
        return {view.name: view.weight for view in self._failover.view(time.monotonic_ns())}

    async def transitions(self) -> list[tuple[int, str, str, int]]:
        """What became of the regions: (ns of Fleet's monotonic clock, region, standing, epoch), the oldest first."""
        if self._failover is None:
            return []
        return [(t.at, t.region, t.standing.name.lower(), t.epoch) for t in self._failover.transitions]

    def _alerts(self) -> list[dict[str, object]] | None:
        """What fires; None if nobody looks."""
        return self._monitor.listing() if self._config.alerts.enabled else None

    async def figures(self) -> dict[str, object]:
        """Every region's figures for metrics, and the alerts that fire."""
        return {"regions": await self._monitor.figures(), "alerts": self._alerts()}

    async def ping(self) -> int:
        return os.getpid()

    async def configuration(self) -> str:
        """As it was given when the fleet was started."""
        return self._config_json

    async def usage(self) -> ProcessUsage:
        return process_usage()

    async def snapshot(self) -> dict[str, object]:
        """Every region's snapshot, or why there is none."""
        regions: dict[str, object] = {}
        for region in self._config.regions:
            try:
                regions[region.name] = await self._services.call(
                    region_actor(region.name), "snapshot", timeout_s=SNAPSHOT_TIMEOUT_S
                )
            except (ConnectionError, TimeoutError, RuntimeError) as error:
                regions[region.name] = {"region": region.name, "error": str(error)}
        gateways: dict[str, object] = {}
        for name in self._gateways:
            try:
                gateways[name] = await self._services.call(
                    gateway_actor(name), "snapshot", timeout_s=SNAPSHOT_TIMEOUT_S
                )
            except (OSError, RuntimeError) as error:
                gateways[name] = {"region": name, "error": str(error)}
        return {
            "fleet": self._config.fleet.name,
            "health": dict(self._health),
            "shard_of": {r.name: r.shard_of for r in self._config.regions if r.shard_of is not None},
            "standing": self._standings(),
            "without_copies": self._leaving.why,
            "dns": None if self._dns is None else self._dns.status(),
            "alerts": self._alerts(),
            "regions": regions,
            "gateways": gateways,
            "pid": os.getpid(),
        }


def _unwitnessed(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        log.critical("if Fleet hangs, nobody ends it any more", exc_info=task.exception())

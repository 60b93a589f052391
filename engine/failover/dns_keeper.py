"""Keeps the submission host name to the healthy regions: asks who is healthy, decides (dns_plan), acts (dns_zone).

One task of the Fleet; a slow or dead name server holds up nothing else. It never raises for what others do wrong: that
is logged once and stands in `status`.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Protocol

from engine.config.dns_failover import DnsFailoverConfig
from engine.failover.dns_plan import DnsPlan, Published, Records, Step
from engine.failover.region_health import RegionHealth
from engine.values.clock import Clock

log = logging.getLogger(__name__)

TICK_S = 0.2


class Watch(Protocol):
    """Whoever knows the fleet: how its regions are now. None: not known yet, so nothing is changed."""

    def regions_health(self) -> Mapping[str, RegionHealth] | None: ...


class Zone(Protocol):
    """engine/failover/dns_zone.py, or a zone in memory."""

    async def look(self) -> tuple[Records | str, Mapping[str, Records | str]]: ...

    async def publish(self, records: Records) -> tuple[Published, str]: ...


class DnsKeeper:
    """See the module docstring."""

    def __init__(self, config: DnsFailoverConfig, zone: Zone, clock: Clock) -> None:
        self._name = config.name
        self._plan = DnsPlan(config)
        self._zone = zone
        self._clock = clock
        self._said = ""

    async def run(self, watch: Watch) -> None:
        """Until cancelled."""
        while True:
            for error in await asyncio.gather(self.tick(watch), return_exceptions=True):
                if isinstance(error, Exception):
                    log.error("%s: goes on after an error", self._name, exc_info=error)
            await asyncio.sleep(TICK_S)

    async def tick(self, watch: Watch) -> Step:
        """One step; returns which it was."""
        found = watch.regions_health()
        if found is not None:
            healthy = [name for name, health in found.items() if health is RegionHealth.HEALTHY]
            idle = [name for name, health in found.items() if health is RegionHealth.IDLE]
            self._plan.observe(self._now_s(), healthy, idle)
        step = self._plan.step(self._now_s())
        if step is Step.LOOK:
            primary, authorities = await self._zone.look()
            self._plan.looked(self._now_s(), primary, authorities)
        elif step is Step.PUBLISH:
            wanted = self._plan.wanted()
            log.warning("%s: publishing %s", self._name, ", ".join(sorted(wanted.addresses)))
            result, reason = await self._zone.publish(wanted)
            self._plan.published(self._now_s(), result, reason)
        self._say()
        return step

    def status(self) -> dict[str, Any]:
        """For the fleet's snapshot."""
        return {"name": self._name, **asdict(self._plan.status)}

    def _now_s(self) -> float:
        return self._clock.monotonic_ns() / 1e9

    def _say(self) -> None:
        """Log a change of what is wrong."""
        status = self._plan.status
        lagging = "; ".join(f"{server} {why}" for server, why in sorted(status.lagging.items()))
        said = status.problem or (f"not everywhere yet: {lagging}" if lagging else "")
        if said != self._said:
            if said:
                log.warning("%s: %s", self._name, said)
            else:
                log.info("%s: every authoritative server gives %s", self._name, ", ".join(status.wanted))
            self._said = said

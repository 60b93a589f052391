"""A region's process is stopped for a while (SIGSTOP)."""

import asyncio
import time
from collections.abc import Callable

from actors.drill.fault import RETURN_S, Fault
from engine.drill.load import until
from engine.drill.scenarios import DrillRefused
from engine.failover.dns_plan import Records, why_it_stays
from engine.failover.dns_zone import DnsZone
from engine.routing.resolver import build_resolver

LATE_S = 10.0  # after the end that was meant, a freeze ends by itself
AGAIN_S = 1.0


class RegionFreeze(Fault):
    """Noticed when Fleet calls the region dead; without copies when the watch calls it down. It ends with this command,
    and by itself (actors/drill/freeze.py)."""

    has_share = True
    _longest_s = 0.0
    _seen_s: float | None = None

    async def find(self) -> None:
        self._pid = await self.region_pid()

    async def make(self) -> None:
        await self.until_covered()
        self._longest_s = max(self.scenario.hold_s, self.scenario.bounds.detection_s or 0.0) + LATE_S
        await self.fleet.machines.aim(self.region, self._pid, self._longest_s)
        with self.making():
            self.made_s = await self.fleet.machines.freeze(self.region)

    async def is_detected(self) -> bool:
        if self.has_copies():
            self._seen_s = await self._dead_s()
            return self._seen_s is not None
        return (await self.running.health()).get(self.region) == "down"

    def noticed_s(self, seen_s: float) -> float:
        return seen_s if self._seen_s is None else self._seen_s

    async def heal(self) -> None:
        await asyncio.sleep(max(0.0, self.made_s + self.scenario.hold_s - time.monotonic()))
        await self.resume()
        await self.find_whether_it_goes_on()

    async def resume(self) -> None:
        """Its machine is asked until it answers, or the process goes on by itself."""
        while True:
            try:
                told = await self.fleet.machines.resume(self.region)
            except (ConnectionError, TimeoutError) as error:
                if time.monotonic() > self.made_s + self._longest_s:
                    self.notes.append(
                        f"{self.target} was to be continued, but its machine does not answer ({error}): it goes on by "
                        f"itself after {self._longest_s:g} s; see whether it has, or kill -CONT there"
                    )
                    return
                await asyncio.sleep(AGAIN_S)
                continue
            if told:
                self.notes.append(told)
            self.mark("continued")
            return


class Dns(RegionFreeze):
    """Noticed when the server that takes updates does not give the region's addresses any more."""

    async def make(self) -> None:
        section = self.fleet.config.dns_failover
        assert section is not None
        reason = why_it_stays(section, self.region)
        if reason:
            raise DrillRefused(f"dns: the region would not leave {section.name}: {reason}")
        self._zone = DnsZone(section, build_resolver(self.fleet.config.resolver))
        self._own = set(section.addresses[self.region])
        if await until(self._has_all, deadline_s=RETURN_S) is None:
            raise DrillRefused(f"dns: {section.name} does not lead to region {self.region} to begin with")
        await super().make()

    async def _has_all(self) -> bool:
        return await self._everywhere(lambda records: self._own <= records.addresses)

    async def _has_none(self) -> bool:
        return await self._everywhere(lambda records: not self._own & records.addresses)

    async def _everywhere(self, holds: Callable[[Records], bool]) -> bool:
        primary, authorities = await self._zone.look()
        answers = [primary, *authorities.values()]
        return all(
            not isinstance(answer, str) and bool(answer.addresses) and holds(answer) for answer in answers
        )

    async def is_detected(self) -> bool:
        return await self._has_none()

    async def heal(self) -> None:
        held_s = time.monotonic() - self.made_s
        left_s = await until(self._has_none, deadline_s=max(0.0, self.scenario.hold_s - held_s))
        self.extra["the region's addresses leave every authoritative server"] = left_s is not None
        await self.resume()
        section = self.fleet.config.dns_failover
        assert section is not None
        back_s = await until(self._has_all, deadline_s=RETURN_S + section.up_after)
        self.extra["they come back"] = back_s is not None
        if back_s is not None:
            self.mark("back in the DNS")
        await self.find_whether_it_goes_on()

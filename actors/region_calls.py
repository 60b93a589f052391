"""The regions as a client calls them: in which order, and until one answers."""

import asyncio
import hashlib
import math
import os
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Protocol

from actors.fleet import DRAINED_DOWN
from engine.config.schema import FleetConfig
from engine.failover.rendezvous import keep_together, rank
from engine.region.ports import RegionDraining
from engine.spool.errors import SpoolError

ANSWER_TIMEOUT_S = 30.0
ANY_TIMEOUT_S = 5.0  # of what another region can do as well
GIVE_UP_S = 120.0
AVOID_S = 2.0
BUSY_TIMES = 2
FIRST_DELAY_S = 0.05
MAX_DELAY_S = 2.0
HEALTH_TIMEOUT_S = 2.0


class Actor(Protocol):
    """An actor that is called by its name (actors/ray_calls.py). ConnectionError, TimeoutError: no answer."""

    async def call(self, method: str, *args: Any, timeout_s: float = ...) -> Any: ...

    async def ask(self, method: str, *args: Any, timeout_s: float = ...) -> Any:
        """Call a method that changes nothing."""


class RegionCalls:
    """See the module docstring. `actors`: the regions by name; `fleet` knows which of them are drained."""

    def __init__(self, config: FleetConfig, actors: Mapping[str, Actor], fleet: Actor) -> None:
        self.actors = actors
        self.fleet = fleet
        self._names = [region.name for region in config.regions]
        self._region_of = {entry.name: entry.region for entry in config.regions}
        self._silent_until: dict[str, float] = {}  # regions that did not answer lately are asked last
        self._open: dict[str, int] = {}  # calls on their way, by region
        self._quiet_since: dict[str, float] = {}  # since when a region has answered none of them
        self._next = int.from_bytes(os.urandom(4), "big")

    def order(self, key: bytes | None, first: Sequence[str]) -> list[str]:
        """The regions as they are to be asked, `first` before the others. A key has always the same order."""
        names = list(self._names)
        if key is not None:
            names.sort(key=lambda name: hashlib.sha256(key + name.encode()).digest(), reverse=True)
            return keep_together(names, self._region_of, first)
        self._next += 1
        turn = self._next % len(names)
        near = keep_together(names[turn:] + names[:turn], self._region_of, first)
        return self.silent_last(near)

    def from_first(self, first: str) -> list[str]:
        """All regions, this one before the others."""
        return [first, *(name for name in self.actors if name != first)]

    def ranked(self, key: bytes, first: Sequence[str], shares: Mapping[str, int] | None = None) -> list[str]:
        """The regions in the order in which they are asked for a key, in a fleet with copies."""
        return keep_together(rank(key, self._names, shares), self._region_of, first)

    def idle_first(self, names: Sequence[str]) -> list[str]:
        """That order, but the second one first if it has far fewer calls of this client to answer than the first."""
        order = list(names)
        if len(order) > 1:
            busy, other = (self._open.get(name, 0) for name in order[:2])
            if busy > BUSY_TIMES * (other + 1):
                order[:2] = order[1::-1]
        return order

    def silent_last(self, names: Sequence[str], *, quiet_s: float = math.inf) -> list[str]:
        """That order, but those that did not answer lately at its end, nor any of several calls for `quiet_s`: what is
        given to a region that proves to be dead waits until that is certain."""
        now = time.monotonic()
        return sorted(
            names,
            key=lambda name: self._silent_until.get(name, 0.0) > now or self._is_quiet(name, now - quiet_s),
        )

    def _is_quiet(self, name: str, since: float) -> bool:
        return bool(self._open.get(name)) and self._quiet_since[name] < since

    async def watched(self, name: str, call: Coroutine[Any, Any, bytes]) -> bytes:
        """That call of the region: whether it answers tells other callers whether it lives."""
        if not self._open.get(name):
            self._quiet_since[name] = time.monotonic()
        self._open[name] = self._open.get(name, 0) + 1
        try:
            answer = await call
        finally:
            self._open[name] -= 1
        self.heard(name)
        return answer

    def heard(self, name: str) -> None:
        self._silent_until.pop(name, None)
        self._quiet_since[name] = time.monotonic()

    def avoid(self, name: str) -> None:
        """It is asked last for a while."""
        self._silent_until[name] = time.monotonic() + AVOID_S

    async def persist(self, region: str, method: str, *args: Any) -> Any:
        """Call one region until it answers: its calls are idempotent, another region's would not be.

        RegionDraining: it has not done it and will not.
        """
        deadline = time.monotonic() + GIVE_UP_S
        delay_s = FIRST_DELAY_S
        while True:
            try:
                answer = await self.actors[region].call(method, *args, timeout_s=ANSWER_TIMEOUT_S)
                self.heard(region)
                return answer
            except RegionDraining:
                raise
            except (ConnectionError, TimeoutError) as error:
                self.avoid(region)
                if method == "accept" and await self._is_drained_and_down(region):
                    raise RegionDraining(f"region {region} is drained, and down") from error
                if time.monotonic() > deadline:
                    raise ConnectionError(
                        f"region {region} gave no answer for {GIVE_UP_S:.0f} s; the outcome of {method} is unknown"
                    ) from error
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, MAX_DELAY_S)

    async def persist_in_any(self, method: str, *args: Any, first: str = "") -> tuple[str, Any]:
        """Call one region after the other, `first` before the others, until one answers; which one, and its answer. For
        what any region can do, and two of them may.

        ConnectionError: none has for GIVE_UP_S. SpoolError: each says that.
        """
        deadline = time.monotonic() + GIVE_UP_S
        delay_s = FIRST_DELAY_S
        timeout_s = ANY_TIMEOUT_S if len(self.actors) > 1 else ANSWER_TIMEOUT_S
        while True:
            errors: list[Exception] = []
            for region in self.order(None, (first,) if first else ()):
                try:
                    answer = await self.actors[region].call(method, *args, timeout_s=timeout_s)
                except (ConnectionError, TimeoutError, SpoolError) as error:
                    self.avoid(region)
                    errors.append(error)
                else:
                    self.heard(region)
                    return region, answer
            if all(isinstance(error, SpoolError) for error in errors):
                raise errors[0]
            if time.monotonic() > deadline:
                raise ConnectionError(
                    f"no region gave an answer for {GIVE_UP_S:.0f} s; the outcome of {method} is unknown"
                ) from errors[-1]
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, MAX_DELAY_S)

    async def _is_drained_and_down(self, region: str) -> bool:
        """Whether a region does not answer that was drained before: the others know what it has accepted."""
        try:
            health = await self.fleet.call("health", timeout_s=HEALTH_TIMEOUT_S)
        except (ConnectionError, TimeoutError):
            return False
        return bool(health.get(region) == DRAINED_DOWN)

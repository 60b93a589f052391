"""What a region needs from the outside world: pools to deliver with, and somebody who starts them.

In production these are Ray actors (actors/), in one process plain objects; the region cannot tell the difference.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from engine.routing.answers import AddressAnswer


class RegionFailed(ConnectionError):
    """The region cannot go on and is about to be started again from its spool: ask it again."""


class RegionAway(ConnectionError):
    """The region cannot take a batch now, and has promised nothing: ask it again, or another region."""


class RegionDraining(RegionAway):
    """The region is being drained: it has not accepted this and will not; any other region may."""


class AddressQuestions(Protocol):
    """The part of a resolver that asks for addresses (engine/routing/resolver.py)."""

    async def addresses(self, host: str, *, ipv6: bool) -> AddressAnswer: ...


class PoolPort(Protocol):
    """One process of a provider's pool, as the region that feeds it sees it."""

    async def resume(self, epoch: int) -> bytes:
        """Attach this incarnation of the region; the answer lists what is on the wire and what is unreported."""

    async def assign(self, assignment: bytes) -> bytes:
        """Carry these sources from now on; the answer says what is still there of others (engine/delivery/wire.py)."""

    async def load(self) -> tuple[int, int]:
        """Processor time used so far by its event loop, and its monotonic clock, in nanoseconds."""

    async def deliver(self, header: bytes, entries: bytes) -> None:
        """Take a batch over. An error means that it is unknown whether the pool took it."""

    async def acknowledge(self, sequence: int) -> None:
        """Reports up to `sequence` are settled on disk."""

    async def stop(self, deadline_s: float) -> None:
        """Finish what is on the wire, report, and end."""


@dataclass(frozen=True, slots=True)
class PoolName:
    """A pool of one region: the provider it serves and its shard."""

    provider: str
    shard: int = 0

    def __str__(self) -> str:
        return f"{self.provider}.{self.shard}"


class PoolLauncher(Protocol):
    """Starts pools and watches over them."""

    def launch(self, name: PoolName, on_death: Callable[[PoolName], None]) -> Awaitable[PoolPort]:
        """Return the running pool of that name, started if there is none; `on_death` is called once, promptly."""

    def survivors(self) -> Awaitable[list[PoolName]]:
        """Pools of this region that are running now, started by an earlier incarnation."""


class SourcePort(Protocol):
    """The owners of the sources (one actor each): they judge, the region enforces."""

    async def observe(self, source: str, summary: bytes) -> bytes:
        """Report what happened since the last report; the answer is the source's allowances (engine/reputation)."""

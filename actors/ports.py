"""What the actor shells need from Ray, as Protocols: only actors/deploy.py, ray_calls.py and client.py know Ray itself.

Calls raise ConnectionError when the other side cannot be reached or died: the outcome of the call is then unknown.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from engine.failover.handover import Reply, Request
from engine.failover.messages import Message
from engine.region.ports import PoolName, PoolPort


class ActorDied(ConnectionError):
    """The actor is dead for good; another may have its name by now."""


@dataclass(frozen=True, slots=True)
class RunningPool:
    """A process of a pool for whoever looks in; `name` is None for a spare."""

    name: PoolName | None
    actor: str
    pid: int


class PoolProcess(PoolPort, Protocol):
    """A process that is, or may become, one of a pool (actors/isp_pool.py)."""

    async def introduce(self, incarnation: str) -> tuple[int, PoolName | None]: ...

    async def ping(self) -> int:
        """A sign of life, at once."""

    async def warm(self) -> None: ...

    async def take(self, incarnation: str, name: PoolName) -> None: ...


class PoolStarter(Protocol):
    """Starts the processes of one region's pools, which have numbers."""

    def actor(self, number: int) -> str:
        """The name of that actor."""

    async def numbers(self) -> list[int]:
        """Those that live, or are being started."""

    async def find(self, number: int) -> PoolProcess:
        """ActorDied: there is none of that number."""

    async def start(self, number: int) -> PoolProcess:
        """Start it, or find it: its name is known when this returns, and calls to it wait until it runs."""

    async def end(self, number: int) -> None:
        """Have it killed, whatever it does."""


class RegionLink(Protocol):
    """What a pool and a source need from their region."""

    async def settle(self, report: bytes) -> int: ...

    async def get_state(self, key: str) -> bytes | None: ...

    async def put_state(self, key: str, value: bytes) -> None: ...

    async def review(self, source: str, site: str) -> None: ...


class NodeServices(Protocol):
    """Given to every actor of a region when it is made; picklable."""

    def region_link(self) -> RegionLink: ...

    async def launch(self, name: PoolName, on_death: Callable[[PoolName], None]) -> PoolPort: ...

    async def survivors(self) -> list[PoolName]: ...

    def pools(self) -> list[RunningPool]: ...

    async def launch_no_more(self) -> None: ...

    async def observe(self, source: str, summary: bytes) -> bytes: ...

    async def suppress(self, region: str, rows: bytes) -> int: ...

    async def repeat_suppressions(self, region: str, to: str) -> None: ...

    async def accept(self, region: str, header: bytes, blob: bytes, again: bool) -> bytes: ...

    async def report(self, region: str, signal: bytes) -> str: ...

    async def unsubscribe(self, region: str, rows: bytes) -> int: ...

    async def tell(self, region: str, sender: str, messages: Sequence[Message]) -> None: ...

    async def hand_over(self, region: str, request: Request) -> Reply | None: ...

    async def call(self, actor: str, method: str, *args: Any, timeout_s: float) -> Any: ...


class FleetServices(Protocol):
    """What the Fleet actor needs: start an actor if it is not there, call it with a deadline, end one that hangs."""

    async def ensure_region(self, region: str) -> None: ...

    async def ensure_source(self, source: str, region: str) -> None: ...

    async def ensure_gateway(self, region: str) -> None: ...

    async def end(self, actor: str) -> None:
        """Have an actor that was called before killed and made again."""

    async def call(self, actor: str, method: str, *args: Any, timeout_s: float) -> Any: ...

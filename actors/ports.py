"""What the actor shells need from Ray, as Protocols: only actors/deploy.py and actors/client.py know Ray itself.

Calls raise ConnectionError when the other side cannot be reached or died: the outcome of the call is then unknown.
"""

from collections.abc import Callable
from typing import Any, Protocol

from engine.failover.messages import Message
from engine.region.ports import PoolName, PoolPort


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

    async def observe(self, source: str, summary: bytes) -> bytes: ...

    async def suppress(self, region: str, rows: bytes) -> int: ...

    async def report(self, region: str, signal: bytes) -> str: ...

    async def unsubscribe(self, region: str, rows: bytes) -> int: ...

    async def tell(self, region: str, sender: str, message: Message) -> None: ...


class FleetServices(Protocol):
    """What the Fleet actor needs: start an actor if it is not there, call it with a deadline."""

    async def ensure_region(self, region: str) -> None: ...

    async def ensure_source(self, source: str, region: str) -> None: ...

    async def ensure_gateway(self, region: str) -> None: ...

    async def call(self, actor: str, method: str, *args: Any, timeout_s: float) -> Any: ...

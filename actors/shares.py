"""How much of the new mail each region is to be given, as Fleet says: none while it is not live, and after its return a
share that grows for a while (engine/failover/fleet.py). Clients look while they submit, and wait for nothing.
"""

import asyncio
import logging
import time
from collections.abc import Mapping

from actors.region_calls import Actor

log = logging.getLogger(__name__)

LOOK_S = 1.0
OLD_S = 10.0  # what Fleet said so long ago is not believed any more
TIMEOUT_S = 2.0


class Shares:
    """See the module docstring. `fleet` is asked at most once per LOOK_S."""

    def __init__(self, fleet: Actor) -> None:
        self._fleet = fleet
        self._known: dict[str, int] = {}
        self._known_s = self._looked_s = float("-inf")
        self._look: asyncio.Task[None] | None = None

    def now(self) -> Mapping[str, int]:
        """0 to 100 by region; {} if nothing is known, and all have the same. To be called on a running loop."""
        now_s = time.monotonic()
        if now_s - self._looked_s >= LOOK_S and (self._look is None or self._look.done()):
            self._looked_s = now_s
            self._look = asyncio.get_running_loop().create_task(self._ask())
        return self._known if now_s - self._known_s < OLD_S else {}

    async def _ask(self) -> None:
        try:
            self._known = dict(await self._fleet.ask("shares", timeout_s=TIMEOUT_S))
        except (OSError, RuntimeError, AttributeError) as error:  # it is away, or of an earlier release
            log.debug("Fleet does not say who is to have how much: %s", error)
            return
        self._known_s = time.monotonic()

    async def end(self) -> None:
        if self._look is not None:
            self._look.cancel()
            await asyncio.gather(self._look, return_exceptions=True)

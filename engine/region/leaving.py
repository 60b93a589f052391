"""From `replicas: 1` back to 0, seen from Fleet: regions that have kept copies go on without, all or none of them.

What each of them has on its disk: engine/spool/rest.py. What it does when it is told to: engine/region/resting.py.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.spool.errors import SpoolError

log = logging.getLogger(__name__)

RETRY_S = 1.0

# asks a region by one of its methods: `rest`, `drop_copies`, `begin_alone`
Ask = Callable[[str, str], Awaitable[Any]]

DO_INSTEAD = (
    "set 1, `sendfleet down` and `up`, wait until `sendfleet status` shows every region live, "
    "`sendfleet down`, then set 0"
)


DO_INSTEAD_WITHOUT = "set 1, `sendfleet down`, and `up --without` again (docs/operations.md)"


@dataclass(frozen=True, slots=True)
class Rest:
    """How a region stands to the copies that it has kept.

    `number`: of the stop in order after which it waits to go on without; 0: it does not wait. `has_kept`: whether it
    ever kept copies on this disk. `copies`: of messages of others that it holds, by owner; of one that waits only.
    """

    number: int = 0
    has_kept: bool = False
    copies: tuple[tuple[str, int], ...] = ()


def obstacle(rests: Mapping[str, Rest]) -> str:
    """Why the regions that wait may not go on; "" if they may."""
    waiting = {region: rest for region, rest in rests.items() if rest.number}
    if len({rest.number for rest in waiting.values()}) > 1:
        return (
            f"fleet.replicas: 0: the regions {', '.join(waiting)} have covered for each other, and were not "
            f"stopped together: they send nothing. To mend it, {DO_INSTEAD} (docs/failover.md)"
        )
    held: dict[str, list[str]] = defaultdict(list)
    for region, rest in waiting.items():
        for owner, count in rest.copies:
            if owner not in rests or not rests[owner].has_kept:
                held[owner].append(f"{region} holds copies of {count} of its messages")
    if not held:
        return ""
    reasons = {
        owner: "begins on an empty disk" if owner in rests else "is not in fleet.yaml" for owner in held
    }
    lost = "; ".join(
        f"{owner} {reasons[owner]}, and {' and '.join(holders)}" for owner, holders in sorted(held.items())
    )
    return (
        f"fleet.replicas: 0: region {lost}: there may be no others of these. The regions {', '.join(waiting)} send "
        f"nothing. To have them sent, with every region of before in fleet.yaml, {DO_INSTEAD}. "
        "To drop these copies: `sendfleet forget-copies` (docs/failover.md)"
    )


class CopiesNeeded(RuntimeError):
    """The regions that wait may not go on without copies."""


class Leaving:
    """See the module docstring."""

    def __init__(self, regions: Sequence[str], ask: Ask) -> None:
        self._regions = tuple(regions)
        self._ask = ask
        self._lock = asyncio.Lock()
        self.why = ""  # regions wait, as of the last attempt

    async def attempt(self, missing: Collection[str] = ()) -> None:
        """Returns when no region waits. All have dropped their copies before one of them sends.

        `missing`: regions that cannot be asked now: if one of the others waits, it waits for them.
        CopiesNeeded: they may not go on; those that wait send nothing. What `ask` raises: a region does not answer.
        """
        async with self._lock:
            asked = [region for region in self._regions if region not in missing]
            answers: list[Rest] = await asyncio.gather(*(self._ask(region, "rest") for region in asked))
            rests = dict(zip(asked, answers, strict=True))
            if missing and (waiting := [region for region, rest in rests.items() if rest.number]):
                raise CopiesNeeded(
                    f"fleet.replicas: 0: the regions {', '.join(waiting)} have covered for {', '.join(missing)}, and "
                    f"send nothing before that is there, too. To have it sent without: {DO_INSTEAD_WITHOUT}"
                )
            if why := obstacle(rests):
                raise CopiesNeeded(why)
            waiting = [region for region, rest in rests.items() if rest.number]
            for method in ("drop_copies", "begin_alone"):
                await asyncio.gather(*(self._ask(region, method) for region in waiting))

    async def run(self) -> None:
        """Attempt it until no region waits: one may recover slowly, and Fleet may have died in the middle."""
        while True:
            before = self.why
            try:
                await self.attempt()
            except CopiesNeeded as error:
                self.why = str(error)
                if self.why != before:
                    log.error("%s", error)
            except (OSError, RuntimeError, ValueError, SpoolError) as error:
                self.why = str(error)
                log.info("not every region says whether it may go on without copies: %s", error)
            except Exception as error:  # a fault of one region's: the others wait for it
                self.why = repr(error)
                log.exception("not every region says whether it may go on without copies")
            else:
                self.why = ""
                return
            await asyncio.sleep(RETRY_S)

"""A region that was called dead comes back: it finds out what others own of its messages before it sends anything.

Under the slot, in rounds: adopt what is to be adopted, list what is queued, ask every live region, give up what they
own. A round starts again when the view changes. Regions that are dead meanwhile are not asked: they will have to ask
this one. What remains then may have been sent by one of them, or by one that has lost its disk since, and is marked.
"""

from dataclasses import dataclass, field
from enum import IntEnum

from engine.failover.messages import RegionView, Standby, Standing, Told
from engine.failover.spans import Spans, union

AWAY = (Standing.DEAD, Standing.RETURNING)


class Phase(IntEnum):
    ADOPTING = 1
    LISTING = 2
    ASKING = 3
    SAVING = 4


def sight_of(view: tuple[RegionView, ...], name: str) -> tuple[tuple[str, bool, int], ...]:
    """What of a view matters to a round."""
    return tuple((v.name, v.standing in AWAY, v.epoch) for v in view if v.name != name)


@dataclass(slots=True)
class Round:
    """One attempt to return."""

    nonce: int
    sight: tuple[tuple[str, bool, int], ...]
    phase: Phase = Phase.ADOPTING
    queued: Spans = ()
    told: dict[str, Told] = field(default_factory=dict)
    asked_at: int = 0

    def away(self) -> dict[str, int]:
        """Regions that are not asked, with their epochs."""
        return {name: epoch for name, away, epoch in self.sight if away}

    def open(self) -> list[str]:
        """Regions whose answer is wanted still."""
        return [
            name
            for name, away, _ in self.sight
            if not away and (name not in self.told or self.told[name].standby is Standby.WAIT)
        ]

    def lost(self) -> Spans:
        return union(*(told.mine for told in self.told.values()))

    def highest(self) -> int:
        return max((told.highest for told in self.told.values()), default=0)

    def has_new_disk_since(self, lived: int) -> bool:
        """Whether one that was asked has lost its disk since the asker was live, in epoch `lived`."""
        return any(told.first > lived for told in self.told.values())

    def with_verdict(self, verdict: Standby) -> list[str]:
        return [name for name, told in self.told.items() if told.standby is verdict]

"""Which sources a pool's process carries, and what part of the shared limits it has: what `assign` says.

A pool may be several processes (engine/region/resizing.py). A source belongs to one of them, with its sessions and its
pace; it goes to another only when this one has nothing of it any more. Being told the same again only looks again.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from engine.delivery.job import Job
from engine.delivery.lane import Lane
from engine.delivery.pacing import Gate, Together, part
from engine.delivery.wire import Assignment, Holding


class Tenure:
    """What the process was told last; before that it carries every source."""

    __slots__ = ("_at", "_of", "_shard", "sources")

    def __init__(self) -> None:
        self._at = (0, 0)
        self._shard = 0
        self._of = 1
        self.sources: frozenset[int] | None = None

    def update(self, told: Assignment) -> None:
        """An assignment older than the last one is passed over."""
        if (told.epoch, told.number) >= self._at:
            self._at = told.epoch, told.number
            self._shard, self._of = told.shard, told.of
            self.sources = frozenset(told.sources)

    def carries(self, source: int) -> bool:
        return self.sources is None or source in self.sources

    def part_of(self, total: int) -> int:
        """Our part of a limit of all sources together."""
        return part(total, self._shard, self._of)


def give_up(tenure: Tenure, lanes: Mapping[tuple[int, str, Any], Lane]) -> None:
    """Give back what has not begun of sources that are another's now, and end their sessions after what they are doing;
    end idle sessions that are too many."""
    for (source, _, _), lane in lanes.items():
        if not tenure.carries(source):
            lane.give_back_all()
            for session in list(lane.sessions):
                session.machine.quit()
        elif lane.gate.total.is_over():
            for session in list(lane.sessions):
                if session.machine.is_idle:
                    session.machine.quit()


def holding(
    tenure: Tenure,
    *,
    jobs: Iterable[Job],
    lanes: Mapping[tuple[int, str, Any], Lane],
    gates: Mapping[tuple[int, str], Gate],
    totals: Iterable[Together],
    now_ns: int,
) -> Holding:
    """What is still here of other processes' sources."""
    left = {job.source for job in jobs}
    left.update(source for (source, _, _), lane in lanes.items() if lane.sessions or lane.opening)
    return Holding(
        left=tuple(source for source in left if not tenure.carries(source)),
        is_over=any(total.is_over() for total in totals),
        paces=tuple(
            (source, site, gate.next_ns)
            for (source, site), gate in gates.items()
            if gate.next_ns > now_ns and not tenure.carries(source)
        ),
    )

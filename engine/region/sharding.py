"""How many processes a provider's pool should have, and which sources each of them carries. Decisions only.

A process more is worth it when the busiest one has no processor time left for a while, and sharing its sources would
help. One fewer, when all together would fit well into that many for a long while: starting a process costs seconds, and
moving a source costs its sessions.
"""

from collections.abc import Mapping, Sequence

GROW_AFTER_NS = 3_000_000_000
SHRINK_AFTER_NS = 60_000_000_000
SPARE = (
    0.5  # of what the remaining processes may use, all together must fit in so much before one of them ends
)
WORTH = 0.9  # the busiest process must get down to this part of its load
MAX_SHARDS = 32  # native/scheduler: one bit each


class Sizing:
    """The number of processes of one pool, from how busy each has been. `busy`: the share of a core above which one is
    full."""

    def __init__(self, *, busy: float) -> None:
        self._busy = busy
        self._full_since: int | None = None
        self._spare_since: int | None = None

    def look(self, now_ns: int, shares: Sequence[float], most: int) -> int:
        """The number wanted now, at most one more or less than there are. `shares`: of a core, per process, lately."""
        count = len(shares)
        if count > most:
            return count - 1
        full = max(shares) >= self._busy
        spare = count > 1 and not full and sum(shares) <= SPARE * self._busy * (count - 1)
        self._full_since = _since(full, self._full_since, now_ns)
        self._spare_since = _since(spare, self._spare_since, now_ns)
        if self._full_since is not None and now_ns - self._full_since >= GROW_AFTER_NS and count < most:
            return count + 1
        if self._spare_since is not None and now_ns - self._spare_since >= SHRINK_AFTER_NS:
            return count - 1
        return count

    def reset(self) -> None:
        """The number has changed, or cannot: what was seen before says nothing any more."""
        self._full_since = self._spare_since = None


def _since(holds: bool, before: int | None, now_ns: int) -> int | None:
    if not holds:
        return None
    return now_ns if before is None else before


def spread(owners: Mapping[int, int | None], weights: Mapping[int, float], count: int) -> dict[int, int]:
    """Which of `count` processes carries each source: what has an owner stays, as far as that leaves nobody idle.

    Sources without an owner, or with one that is to end, go to whoever has least; an owner without any gets some of the
    busiest one's. `weights`: how much each source sends; every source counts a little besides.
    """
    weight = {source: weights.get(source, 0.0) + 1.0 for source in owners}
    placed = {source: owner for source, owner in owners.items() if owner is not None and owner < count}
    loads = [0.0] * count
    for source, owner in placed.items():
        loads[owner] += weight[source]
    idle = [shard for shard in range(count) if shard not in placed.values()]
    homeless = sorted(owners.keys() - placed.keys(), key=lambda source: (-weight[source], source))
    for source in homeless:
        lightest = loads.index(min(loads))
        placed[source] = lightest
        loads[lightest] += weight[source]
    for shard in idle:
        _fill(placed, weight, loads, shard)
    return placed


def _fill(placed: dict[int, int], weight: Mapping[int, float], loads: list[float], shard: int) -> None:
    """Move sources to `shard` from the busiest as long as that makes the busier of the two less busy."""
    while True:
        busiest = loads.index(max(loads))
        its = [source for source, owner in placed.items() if owner == busiest]
        if busiest == shard or len(its) < 2:
            return
        after, source = min(
            (max(loads[busiest] - weight[source], loads[shard] + weight[source]), source) for source in its
        )
        if after >= loads[busiest]:
            return
        placed[source] = shard
        loads[busiest] -= weight[source]
        loads[shard] += weight[source]


def is_worth(owners: Mapping[int, int], plan: Mapping[int, int], weights: Mapping[int, float]) -> bool:
    """Whether the busiest process would have clearly less to do under the plan."""
    return _heaviest(plan, weights) <= WORTH * _heaviest(owners, weights)


def _heaviest(owners: Mapping[int, int], weights: Mapping[int, float]) -> float:
    loads: dict[int, float] = {}
    for source, owner in owners.items():
        loads[owner] = loads.get(owner, 0.0) + weights.get(source, 0.0) + 1.0
    return max(loads.values())

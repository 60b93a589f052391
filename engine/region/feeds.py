"""What a region knows of each of its pools: their processes, what each may carry, how fast they have been."""

import asyncio
from collections.abc import Iterable

from engine.delivery.wire import ENTRY
from engine.region.ports import PoolName, PoolPort

MIN_INTERVAL_S = 0.002
# A call between actors costs as much as many messages, so batches gather while a pool has work: it is fed again when a
# quarter of what it holds should be done, at the latest after BUSY_INTERVAL_S.
BUSY_SHARE = 0.25
BUSY_INTERVAL_S = 0.05
RATE_SPAN_NS = 100_000_000
SOURCE_AT = 20  # of an entry: its source, two bytes


class Shard:
    """One process of a pool. `port` is None while it does not run or has not been told what to carry.

    `told`: the sources and the division of the shared limits that it was told last; `left` and `is_over` as in its
    answer (engine/delivery/wire.py, Holding).
    """

    __slots__ = (
        "batches",
        "busy",
        "cpu",
        "deaths",
        "index",
        "is_ending",
        "is_over",
        "left",
        "name",
        "port",
        "starting",
        "told",
    )

    def __init__(self, provider: str, index: int) -> None:
        self.index = index
        self.name = PoolName(provider, index)
        self.port: PoolPort | None = None
        self.starting: asyncio.Task[None] | None = None
        self.deaths = 0
        self.batches = 0
        self.told: tuple[frozenset[int], int] | None = None
        self.left: frozenset[int] = frozenset()
        self.is_over = False
        self.is_ending = False
        self.cpu: tuple[int, int] | None = None
        self.busy = 0.0

    def has_died_since(self, deaths: int) -> bool:
        """Whether a process of it has died since there were so many deaths."""
        return self.deaths != deaths

    def ended(self) -> None:
        """Its process is gone, and with it its sessions."""
        self.port = None
        self.told = None
        self.left = frozenset()
        self.is_over = False
        self.cpu = None
        self.busy = 0.0


class PoolFeed:
    """One pool as its region sees it.

    `owners`: the shard that may have sessions of each source, None for not known; `plan`: where it should be; `held`:
    those on their way; `of`: by how many shards the shared limits are divided.
    """

    __slots__ = (
        "_finished",
        "_rate",
        "_since_ns",
        "closed",
        "held",
        "number",
        "of",
        "owners",
        "plan",
        "provider",
        "shards",
        "taken_ns",
        "task",
        "wake",
        "watcher",
    )

    def __init__(self, number: int, provider: str, sources: Iterable[int]) -> None:
        self.number = number
        self.provider = provider
        self.shards = [Shard(provider, 0)]
        self.owners: dict[int, int | None] = dict.fromkeys(sources, 0)
        self.plan: dict[int, int] = dict.fromkeys(self.owners, 0)
        self.of = 1
        self.held: set[int] = set()
        self.closed = 0
        self.wake = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.watcher: asyncio.Task[None] | None = None
        self.taken_ns = 0
        self._finished = 0
        self._rate = 0.0
        self._since_ns = 0

    def shard(self, index: int) -> Shard | None:
        return self.shards[index] if index < len(self.shards) else None

    def carried_by(self, shard: Shard) -> frozenset[int]:
        """The sources that are the shard's and stay there."""
        return frozenset(
            source for source, owner in self.owners.items() if owner == shard.index == self.plan[source]
        )

    def split(self, entries: bytes) -> list[tuple[Shard, bytes]]:
        """A take's entries by the shard that carries each one's source."""
        if len(self.shards) == 1:
            return [(self.shards[0], entries)]
        parts: dict[int, list[bytes]] = {}
        for at in range(0, len(entries), ENTRY.size):
            entry = entries[at : at + ENTRY.size]
            owner = self.owners[int.from_bytes(entry[SOURCE_AT : SOURCE_AT + 2], "little")]
            assert owner is not None, "a source that nobody carries is held"
            parts.setdefault(owner, []).append(entry)
        return [(self.shards[index], b"".join(part)) for index, part in parts.items()]

    def finished(self, count: int) -> None:
        self._finished += count

    def interval_s(self, now_ns: int, outstanding: int) -> float:
        """How long to let messages gather, by what the pool holds and how fast it has lately been."""
        span_ns = now_ns - self._since_ns
        if span_ns >= RATE_SPAN_NS:
            self._rate = (self._rate + self._finished * 1e9 / span_ns) / 2
            self._finished = 0
            self._since_ns = now_ns
        if self._rate <= 0.0:
            return MIN_INTERVAL_S
        return min(BUSY_INTERVAL_S, max(MIN_INTERVAL_S, BUSY_SHARE * outstanding / self._rate))

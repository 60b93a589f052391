"""The limits of one source at one site, as the pool keeps them: connections, and the pace of transactions.

The scheduler decides when a message may go and says so in `send_at_ns`; the gate adds what only the pool can
know, that the previous transaction really started when it did. Two transactions of the same source and site
never start closer together than the rate's interval, whatever the batches say. The same holds for all sources of the
site together, where they have a rate.
"""

from dataclasses import dataclass, field

from engine.delivery.pulse import Meter

LONG_AGO_NS = -(1 << 62)


@dataclass(slots=True)
class Together:
    """What one site allows to all sources together: connections (`limit` 0: any number) and time between transactions
    (`interval_ns` 0: no rate)."""

    limit: int
    interval_ns: int = 0
    open: int = 0
    next_ns: int = 0
    users: set[object] = field(default_factory=set)

    def has_room(self) -> bool:
        return self.limit == 0 or self.open < self.limit

    def is_over(self) -> bool:
        """The limit was lowered below what is open."""
        return 0 < self.limit < self.open


def part(total: int, shard: int, of: int) -> int:
    """What process number `shard` of `of` may use of a limit that they share; the parts add up to it. 0: no limit.

    ValueError: nothing would be left for it.
    """
    share = total * (shard + 1) // of - total * shard // of
    if total and not share:
        raise ValueError(f"{of} processes cannot share {total} connections")
    return share


@dataclass(slots=True)
class Gate:
    """One (source, site). `interval_ns` 0: no rate. It may change at any time: the next transaction keeps the new
    distance from the last one, as in the scheduler, so that what that grants does not wait here for the old one.

    `refused`: how often a session that was wanted had no room.
    """

    limit: int
    interval_ns: int
    total: Together
    open: int = 0
    started_ns: int = LONG_AGO_NS
    refused: int = 0
    users: set[object] = field(default_factory=set)
    meter: Meter = field(default_factory=Meter)

    def join(self, user: object) -> None:
        self.users.add(user)
        self.total.users.add(user)

    def leave(self, user: object) -> None:
        self.users.discard(user)
        self.total.users.discard(user)

    def rivals(self) -> set[object]:
        """Those that hold what we wait for when there is no room: all of the site if only its limit is reached."""
        return self.users if self.open >= self.limit else self.total.users

    def has_room(self) -> bool:
        return self.open < self.limit and self.total.has_room()

    def acquire(self) -> None:
        self.open += 1
        self.total.open += 1

    def release(self) -> None:
        self.open -= 1
        self.total.open -= 1

    @property
    def next_ns(self) -> int:
        """The next transaction begins at this time at the earliest, as far as this source alone is concerned."""
        return self.started_ns + self.interval_ns

    def earliest_ns(self, send_at_ns: int) -> int:
        return max(send_at_ns, self.next_ns, self.total.next_ns)

    def has_rate(self) -> bool:
        return self.interval_ns > 0 or self.total.interval_ns > 0

    def started(self, now_ns: int) -> None:
        """A transaction begins now; the interval counts from here, so lateness never turns into a burst."""
        self.started_ns = now_ns
        if self.total.interval_ns:
            self.total.next_ns = now_ns + self.total.interval_ns

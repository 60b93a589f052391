"""Whether this region may dispatch now: by Fleet's lease, or, while Fleet is silent, by every peer's promise.

Fleet alone can have a region's copies adopted, and only by its peers. So as long as every peer has promised to adopt
nothing, the region may go on although nobody renews its lease: Fleet restarts, or the head node is away, and mail
flows. With one peer missing as well it stops, because that peer may have been told to adopt.
"""

from collections.abc import Iterable

from engine.failover.timing import Timing


class Lease:
    """One region's leases, held and given. All times are of the region's own monotonic clock."""

    def __init__(self, peers: Iterable[str], *, now: int, timing: Timing) -> None:
        self._timing = timing
        self._granted_until = -1
        self._promised: dict[str, int] = {}  # by peers, to us
        self._given = dict.fromkeys(peers, now + timing.expiry)  # by us, perhaps in an earlier life

    def granted(self, stamp: int) -> None:
        """Fleet has answered what this region said at `stamp`."""
        if stamp >= 0:
            self._granted_until = max(self._granted_until, stamp + self._timing.lease)

    def promised(self, peer: str, stamp: int) -> None:
        if peer in self._given:
            self._promised[peer] = max(self._promised.get(peer, -1), stamp + self._timing.lease)

    def give(self, peer: str, now: int) -> None:
        """Promise a peer not to adopt its copies for a lease."""
        self._given[peer] = now + self._timing.expiry

    def may_adopt(self, peer: str, now: int) -> bool:
        """Only under Fleet's own lease, and after the last promise to that peer."""
        return now < self._granted_until and now >= self._given[peer]

    def given_until(self, peer: str) -> int:
        """The end of the last promise to that peer."""
        return self._given[peer]

    def is_granted(self, now: int) -> bool:
        """Whether Fleet's own lease runs: it had heard this region too lately to call it dead."""
        return now < self._granted_until

    def until(self) -> int:
        """Nothing may be dispatched from then on."""
        if not self._given or len(self._promised) < len(self._given):
            return self._granted_until
        return max(self._granted_until, min(self._promised.values()))

    def holds(self, now: int) -> bool:
        return now < self.until()

    def drop(self) -> None:
        """Superseded: whatever was granted belonged to an older epoch."""
        self._granted_until = -1
        self._promised.clear()

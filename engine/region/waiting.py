"""What of a region's mail only waits, so that it may be handed over: found in the due index, a little at a time.

A message waits if no pool has it, nothing about it is being written, and it is not offered to a peer already. To a peer
goes what one of its sources may carry at all; without draining also only what waits now on certain paths
(engine/region/need.py), and what this region has accepted itself.
"""

from collections.abc import Container, Mapping
from itertools import islice

from engine.config.schema import FleetConfig
from engine.failover.spans import Spans, of_ids
from engine.region.need import Path
from engine.region.sites import Sites
from engine.region.windows import SpoolQueue, Windows
from engine.spool.records import Record, u48
from engine.spool.store import Spool
from engine.values.ids import region_of
from engine.values.stream import Stream
from native.scheduler import Scheduler

OFFER_MESSAGES = 500
OFFER_BYTES = 4 << 20  # of bodies; one message may be larger
OFFER_CAMPAIGNS = 4  # templates that travel with one offer
LOOKED_AT = 2000  # due keys of a spool queue per look
QUEUES_PER_LOOK = 200  # spool queues
QUEUES_WITH_PATHS = 20_000  # of which the paths are known
FOR_EVER = 1 << 47
END_OF_QUEUE = b"\xff" * 14


class Gathered:
    """The messages of an offer: at most so many, of so many bytes and templates."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.ids: list[int] = []
        self.is_full = False
        self._size = 0
        self._campaigns: set[int] = set()

    def add(self, record: Record) -> bool:
        """False: there is no room for it."""
        if len(record.content) == 4:
            self._size += record.content[2]
        else:
            self._campaigns.add(record.content[0])
        if self.ids and (self._size > OFFER_BYTES or len(self._campaigns) > OFFER_CAMPAIGNS):
            self.is_full = True
            return False
        self.ids.append(record.id)
        self.is_full = len(self.ids) >= self._most
        return True


class WaitingMail:
    """See the module docstring. `offered`: ids that are on offer."""

    def __init__(
        self,
        *,
        config: FleetConfig,
        name: str,
        spool: Spool,
        scheduler: Scheduler,
        windows: Windows,
        sites: Sites,
        offered: Container[int],
    ) -> None:
        self._spool = spool
        self._scheduler = scheduler
        self._windows = windows
        self._sites = sites
        self._offered = offered
        peers = [region.name for region in config.regions if region.name != name]
        self._number = next(region.number for region in config.regions if region.name == name)
        self._served = {peer: _served_by(config, peer) for peer in peers}
        self._cursors = dict.fromkeys(peers, b"")
        self._found = dict.fromkeys(peers, 0)  # so many looks since the first due key have found something

    def paths(self) -> set[Path]:
        """The paths of what waits, of the queues whose site is known."""
        return {self._path_of(queue) for queue in islice(self._windows.routed_queues(), QUEUES_WITH_PATHS)}

    def full_sites(self) -> set[str]:
        """Sites for which more is ready here than there is room for in memory."""
        numbers = {self._scheduler.site_of(flow) for flow in self._windows.backlogged_flows()}
        return {self._sites.site(number).name for number in numbers}

    def _path_of(self, queue: SpoolQueue) -> Path:
        site = self._sites.site(self._scheduler.site_of(queue.flow))
        return site.name, queue.stream, queue.tenant

    def look(
        self, peer: str, only: Mapping[Path, int] | None, *, most: int = OFFER_MESSAGES
    ) -> tuple[Spans, bool]:
        """Messages for one offer, at most `most`, taken off the scheduler, from where the last look for this peer has
        ended.

        `only`: on these paths, what was due before that time (unix ms); None if the region is being drained. The second
        result: from the first due key to the last nothing was found.
        """
        start = self._cursors[peer]
        ids, following = self._find(peer, start, only, most)
        self._scheduler.remove(b"".join([id_.to_bytes(8, "little") for id_ in ids]))
        found = [id_ for id_ in ids if not self._scheduler.contains(id_)]  # the others are at a pool
        self._found[peer] = (self._found[peer] if start else 0) + bool(found)
        self._cursors[peer] = following
        return of_ids(found), not following and not self._found[peer]

    def _find(
        self, peer: str, after: bytes, only: Mapping[Path, int] | None, most: int
    ) -> tuple[list[int], bytes]:
        """Ids behind a due key, and where to go on; b"" at the end."""
        offer = Gathered(most)
        for _ in range(QUEUES_PER_LOOK):
            rows = self._spool.due_rows(after, 1)
            if not rows:
                return offer.ids, b""
            number = rows[0][0][:4]
            until_ms = self._until(peer, int.from_bytes(number, "big"), only)
            if until_ms:
                after = self._gather(offer, number, after, None if only is None else u48(until_ms))
            else:
                after = number + END_OF_QUEUE
            if offer.is_full:
                break
        return offer.ids, after

    def _gather(self, offer: Gathered, number: bytes, after: bytes, until: bytes | None) -> bytes:
        """Messages of one queue, of the next `LOOKED_AT` due keys; the one behind which to go on.

        `until`: what is due at that time or later may have a way of its own by then, and stays.
        """
        end = number + (END_OF_QUEUE if until is None else until)
        for key, _ in self._spool.due_rows(after, LOOKED_AT):
            if key >= end:
                return number + END_OF_QUEUE
            id_ = int.from_bytes(key[10:], "big")
            if self._is_waiting(id_) and (until is None or region_of(id_) == self._number):
                record = self._spool.message(id_)
                if record is not None and not offer.add(record):  # a damaged one stays
                    return after
            after = key
            if offer.is_full:
                break
        return after

    def _until(self, peer: str, number: int, only: Mapping[Path, int] | None) -> int:
        """Until which due time (unix ms) mail of a spool queue goes to this peer; 0: none does."""
        try:
            _, stream, tenant, _ = self._spool.queue(number)
        except KeyError:  # its row is damaged: what is in it stays
            return 0
        if (stream, "") not in self._served[peer] and (stream, tenant) not in self._served[peer]:
            return 0
        if only is None:
            return FOR_EVER
        queue = self._windows.get(number)
        return 0 if queue is None or queue.flow < 0 else only.get(self._path_of(queue), 0)

    def _is_waiting(self, id_: int) -> bool:
        """Whether nothing about a message is being written, and no pool of an earlier incarnation has it."""
        is_busy = self._windows.is_held(id_) or self._windows.is_settling(id_)
        return not is_busy and id_ not in self._offered


def _served_by(config: FleetConfig, region: str) -> set[tuple[int, str]]:
    """(stream, tenant) whose mail a region has sources for; the tenant "" stands for every one."""
    found = set()
    for source in config.sources:
        if source.region != region:
            continue
        kind, owner = source.tenancy_of()
        for stream in source.streams:
            found.add((int(Stream.parse(str(stream))), owner if kind == "dedicated" else ""))
    return found

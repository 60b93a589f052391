"""What a personality remembers between commands: greylist, rates, open connections, drops already made.

Pure: time comes in as monotonic nanoseconds. Every table is bounded; the oldest entry is forgotten
first, which only makes the simulated provider forgetful. Nothing here survives a restart of the sink,
except through its log.
"""

import re
from collections import OrderedDict, deque
from hashlib import blake2b
from typing import TypeVar

from engine.sink.personality import Personality

TABLE_LIMIT = 1_000_000
_SCALE = 2.0**64
_K = TypeVar("_K")


def share(address: str, salt: bytes) -> float:
    """A stable number in [0, 1) for an address: the same in every run, independent between salts."""
    digest = blake2b(address.lower().encode("utf-8", "surrogateescape"), digest_size=8, person=salt).digest()
    return int.from_bytes(digest, "little") / _SCALE


class ProviderState:
    """The memory of one personality."""

    __slots__ = (
        "_blocked",
        "_crowded",
        "_dropped",
        "_had",
        "_personality",
        "_seen",
        "_transactions",
        "connections",
    )

    def __init__(self, personality: Personality) -> None:
        self._personality = personality
        self._seen: OrderedDict[tuple[str, str, str], int] = OrderedDict()
        self._dropped: OrderedDict[str, int] = OrderedDict()
        self._transactions: dict[str, deque[int]] = {}
        self._had: dict[str, int] = {}  # transactions accepted from clients that are to be blocked
        self._blocked: dict[str, int] = {}  # when the first was refused
        self._crowded = 0  # how often it was
        self.connections: dict[str, int] = {}

    def connect(self, client: str) -> bool:
        """Count a connection in; False when the client has too many (it is counted even so, until
        `disconnect`).
        """
        count = self.connections.get(client, 0) + 1
        self.connections[client] = count
        limit = self._personality.connections
        return limit is None or count <= limit.limit

    def disconnect(self, client: str) -> None:
        count = self.connections[client] - 1
        if count:
            self.connections[client] = count
        else:
            del self.connections[client]

    def is_crowded(self, client: str) -> bool:
        """Whether the client has more connections open than the personality's `crowded` bears; counts it if so."""
        crowded = self._personality.crowded
        if crowded is None or self.connections[client] <= crowded.connections:
            return False
        if crowded.times is not None and self._crowded >= crowded.times:
            return False
        self._crowded += 1
        return True

    def charge(self, client: str, now_ns: int) -> bool:
        """Count a transaction against the client's rate; False, and not counted, when the window is full."""
        rate = self._personality.rate
        if rate is None:
            return True
        times = self._transactions.setdefault(client, deque())
        begin = now_ns - int(rate.limit.period_s * 1e9)
        while times and times[0] <= begin:
            times.popleft()
        if len(times) >= rate.limit.count:
            return False
        times.append(now_ns)
        return True

    def is_blocked(self, client: str, now_ns: int) -> bool:
        """Whether a transaction of this client is refused by the personality's `block`; counts it if not."""
        block = self._personality.block
        if block is None or client not in block.clients:
            return False
        had = self._had.get(client, 0)
        if had < block.after:
            self._had[client] = had + 1
            return False
        first = self._blocked.setdefault(client, now_ns)
        return block.lasts is None or now_ns - first < block.lasts * 1e9

    def is_unknown(self, recipient: str) -> bool:
        """Whether there is no such user: the same answer for an address in every run."""
        unknown = self._personality.unknown
        if unknown is None:
            return False
        if unknown.pattern is not None and re.search(unknown.pattern, recipient) is not None:
            return True
        return unknown.ratio > 0 and share(recipient, b"unknown") < unknown.ratio

    def is_greylisted(self, client: str, sender: str, recipient: str, now_ns: int) -> bool:
        """Keyed as greylists are in the wild: by the client's /24, sender and recipient."""
        greylist = self._personality.greylist
        if greylist is None or (greylist.ratio < 1 and share(recipient, b"greylist") >= greylist.ratio):
            return False
        key = (client.rpartition(".")[0] or client, sender, recipient)
        first = self._seen.get(key)
        if first is None:
            _remember(self._seen, key, now_ns)
            return True
        return now_ns - first < greylist.after * 1e9

    def is_dropped(self, recipient: str) -> bool:
        """Whether to cut the connection this time; each chosen recipient is cut `times` times."""
        drop = self._personality.drop
        if drop is None or (drop.ratio < 1 and share(recipient, b"drop") >= drop.ratio):
            return False
        count = self._dropped.get(recipient, 0)
        if count >= drop.times:
            return False
        _remember(self._dropped, recipient, count + 1)
        return True


def _remember(table: OrderedDict[_K, int], key: _K, value: int) -> None:
    table[key] = value
    if len(table) > TABLE_LIMIT:
        table.popitem(last=False)

"""How much of what waits too long goes to a peer at a time: little at first, more as long as it has room for it.

A portion for each word of the peer, and none within a second of the one before. A word that still names every path of
the last portion doubles the next one; one that does not names a path whose mail waits at the peer now, too: the next
portion is a first one again, as it is after ten seconds without any. So a peer gets what it sends, not what it would
take.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

from engine.region.need import Path

FIRST = 16
EVERY_NS = 1_000_000_000
FORGET_NS = 10_000_000_000


@dataclass(slots=True)
class _Peer:
    size: int
    is_open: bool = False
    given_ns: int | None = None
    given: frozenset[Path] = frozenset()
    paths: frozenset[Path] = field(default_factory=frozenset)


class Portions:
    """See the module docstring. `most`: messages in one portion."""

    def __init__(self, most: int) -> None:
        self._first = min(FIRST, most)
        self._most = most
        self._peers: dict[str, _Peer] = {}

    def heard(self, peer: str, asked: Collection[Path], granted: Collection[Path], now_ns: int) -> None:
        """A peer has said for which of these paths it has room."""
        row = self._peers.setdefault(peer, _Peer(self._first))
        asked, granted = frozenset(asked), frozenset(granted)
        if row.given & asked - granted or _is_long_ago(row.given_ns, now_ns):
            row.size = self._first
        elif row.given:
            row.size = min(row.size * 2, self._most)
        row.given = frozenset()
        row.paths = granted
        row.is_open = bool(granted)

    def next(self, peer: str, now_ns: int) -> tuple[frozenset[Path], int]:
        """On which paths a peer may be given to now, and how much; nothing if it has had its portion."""
        row = self._peers.get(peer)
        if row is None or not row.is_open:
            return frozenset(), 0
        if row.given_ns is not None and now_ns - row.given_ns < EVERY_NS:
            return frozenset(), 0
        return row.paths, row.size

    def gave(self, peer: str, now_ns: int) -> None:
        """A portion is on its way."""
        row = self._peers[peer]
        row.is_open, row.given_ns, row.given = False, now_ns, row.paths


def _is_long_ago(given_ns: int | None, now_ns: int) -> bool:
    return given_ns is None or now_ns - given_ns > FORGET_NS

"""Mail that its region cannot send for long, so that a peer should have it: which paths, with hysteresis.

A path is (site, stream, tenant). It is blocked until some time if until then no source of the region may carry its mail
there: all are suspended, out of the rotation, or have used up their caps. It is in need when it has been blocked for a
while without a break, and will be for at least `after_ms` longer; it stays so until less than half of that is left.

`NeedWatch` looks at the paths that have mail, a few at a time: a region may have thousands.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

Path: TypeAlias = tuple[str, int, str]

STEADY_MS = 60_000
MAX_PATHS = (
    1000  # of those that are blocked; the others of a larger number are looked at when these are free again
)
PER_LOOK = 20
ASKED_AT_ONCE = 64  # paths that the peers are asked about; then the next ones


@dataclass(slots=True)
class _Blocked:
    since_ms: int
    is_in_need: bool = False


class Need:
    """Which paths are in need, of those that were seen to be blocked."""

    def __init__(self, after_ms: int) -> None:
        self._after_ms = after_ms
        self._steady_ms = min(STEADY_MS, after_ms)
        self._blocked: dict[Path, _Blocked] = {}

    def observe(self, blocked: Mapping[Path, int], now_ms: int) -> None:
        """All paths with waiting mail that are blocked now, with until when (unix milliseconds)."""
        for path in [path for path in self._blocked if path not in blocked]:
            del self._blocked[path]
        for path, until_ms in blocked.items():
            row = self._blocked.get(path)
            if row is None:
                if len(self._blocked) >= MAX_PATHS:
                    continue
                row = self._blocked[path] = _Blocked(now_ms)
            left_ms = until_ms - now_ms
            if row.is_in_need:
                row.is_in_need = left_ms * 2 >= self._after_ms
            else:
                row.is_in_need = left_ms >= self._after_ms and now_ms - row.since_ms >= self._steady_ms

    def paths(self) -> tuple[Path, ...]:
        """Those in need."""
        return tuple(sorted(path for path, row in self._blocked.items() if row.is_in_need))


class BlockedPaths(Protocol):
    """engine/region/paths.py"""

    def may_carry(self, stream: int, tenant: str) -> list[int]: ...

    def blocked_until(self, site: str, sources: Iterable[int], now_ms: int) -> int: ...


class NeedWatch:
    """See the module docstring. `waiting`: the paths that have mail now."""

    def __init__(self, after_ms: int, *, paths: BlockedPaths, waiting: Callable[[], Iterable[Path]]) -> None:
        self._need = Need(after_ms)
        self._paths = paths
        self._waiting = waiting
        self._left: list[Path] = []
        self._blocked: dict[Path, int] = {}
        self._sources: dict[tuple[int, str], list[int]] = {}
        self._first = 0

    def look(self, now_ms: int) -> None:
        """Look at the next few; when all have been looked at, it is decided what is in need."""
        for _ in range(min(PER_LOOK, len(self._left))):
            site, stream, tenant = path = self._left.pop()
            sources = self._sources.get((stream, tenant))
            if sources is None:
                sources = self._sources[stream, tenant] = self._paths.may_carry(stream, tenant)
            until_ms = self._paths.blocked_until(site, sources, now_ms)
            if until_ms > now_ms:
                self._blocked[path] = until_ms
        if not self._left:
            self._need.observe(self._blocked, now_ms)
            self._blocked = {}
            self._sources = {}
            self._left = sorted(set(self._waiting()), reverse=True)
            self._first += ASKED_AT_ONCE

    def asked(self) -> tuple[Path, ...]:
        """Paths in need that the peers are to be asked about now."""
        paths = self._need.paths()
        if len(paths) <= ASKED_AT_ONCE:
            return paths
        start = self._first % len(paths)
        return (paths + paths)[start : start + ASKED_AT_ONCE]

"""Mail that its region cannot send for long, so that a peer should have it: which paths, with hysteresis.

A path is (site, stream, tenant). There are two reasons:

blocked     until some time no source of the region may carry its mail there: all are suspended, out of the rotation, or
            have used up their caps. In need if it is so for at least `blocked_ms` longer.
overloaded  what goes next there has been ready for long, whatever it waits for: connections, a rate, its turn, the
            pool. In need if it has been so for `overloaded_ms`.

Either must have been so for a while without a break; it stays in need until less than half of that time is left, or
has passed.

`NeedWatch` looks at the paths that have mail, a few at a time: a region may have thousands.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeAlias

Path: TypeAlias = tuple[str, int, str]

STEADY_MS = 60_000
MAX_PATHS = (
    1000  # of those that are in question; the others of a larger number are looked at when these are not
)
PER_LOOK = 20
FLOWS_PER_LOOK = 500  # or as many as one path has
ASKED_AT_ONCE = 64  # paths that the peers are asked about; then the next ones


class Reason(StrEnum):
    BLOCKED = "blocked"
    OVERLOADED = "overloaded"


@dataclass(frozen=True, slots=True)
class Change:
    """A path is in need from now on, or not any more. `ms`: until it is free, or that it has waited; 0 at the end."""

    path: Path
    reason: Reason
    is_in_need: bool
    ms: int


@dataclass(slots=True)
class _Row:
    since_ms: int
    ms: int
    is_in_need: bool = False


class Need:
    """Which paths are in need, for one reason, of those that were seen to be in question."""

    def __init__(self, reason: Reason, after_ms: int) -> None:
        self.reason = reason
        self.after_ms = after_ms
        self._steady_ms = min(STEADY_MS, after_ms)
        self._rows: dict[Path, _Row] = {}

    def observe(self, paths: Mapping[Path, int], now_ms: int) -> list[Change]:
        """All paths in question now: for how many milliseconds longer they are blocked, or that they have waited."""
        changes: list[Change] = []
        for path in [path for path in self._rows if path not in paths]:
            if self._rows.pop(path).is_in_need:
                changes.append(Change(path, self.reason, False, 0))
        for path, ms in paths.items():
            row = self._rows.get(path)
            if row is None:
                if len(self._rows) >= MAX_PATHS:
                    continue
                row = self._rows[path] = _Row(now_ms, ms)
            row.ms = ms
            was_in_need = row.is_in_need
            if was_in_need:
                row.is_in_need = ms * 2 >= self.after_ms
            else:
                row.is_in_need = ms >= self.after_ms and now_ms - row.since_ms >= self._steady_ms
            if row.is_in_need is not was_in_need:
                changes.append(Change(path, self.reason, row.is_in_need, ms))
        return changes

    def paths(self) -> dict[Path, int]:
        """Those in need, as they were observed."""
        return {path: row.ms for path, row in self._rows.items() if row.is_in_need}


class BlockedPaths(Protocol):
    """engine/region/paths.py"""

    def may_carry(self, stream: int, tenant: str) -> list[int]: ...

    def blocked_until(self, site: str, sources: Iterable[int], now_ms: int) -> int: ...


class ReadyMail(Protocol):
    """engine/region/waits.py"""

    def waited_ms(self, path: Path, now_ms: int) -> int: ...

    def take_cost(self) -> int: ...


class NeedWatch:
    """See the module docstring. `waiting`: the paths that have mail now; without `overloaded_ms` none is overloaded."""

    def __init__(
        self,
        *,
        blocked_ms: int,
        overloaded_ms: int | None,
        paths: BlockedPaths,
        ready: ReadyMail,
        waiting: Callable[[], Iterable[Path]],
    ) -> None:
        self._blocked = Need(Reason.BLOCKED, blocked_ms)
        self._overloaded = None if overloaded_ms is None else Need(Reason.OVERLOADED, overloaded_ms)
        self._paths = paths
        self._ready = ready
        self._waiting = waiting
        self._left: list[Path] = []
        self._left_ms: dict[Path, int] = {}
        self._waited_ms: dict[Path, int] = {}
        self._sources: dict[tuple[int, str], list[int]] = {}
        self._first = 0

    def look(self, now_ms: int) -> list[Change]:
        """Look at the next few; when all have been looked at, it is decided what is in need."""
        cost = 0
        for _ in range(min(PER_LOOK, len(self._left))):
            self._look_at(self._left.pop(), now_ms)
            cost += self._ready.take_cost()
            if cost >= FLOWS_PER_LOOK:
                break
        if self._left:
            return []
        changes = self._blocked.observe(self._left_ms, now_ms)
        if self._overloaded is not None:
            changes += self._overloaded.observe(self._waited_ms, now_ms)
        self._left_ms, self._waited_ms, self._sources = {}, {}, {}
        self._left = sorted(set(self._waiting()), reverse=True)
        self._first += ASKED_AT_ONCE
        return changes

    def _look_at(self, path: Path, now_ms: int) -> None:
        site, stream, tenant = path
        sources = self._sources.get((stream, tenant))
        if sources is None:
            sources = self._sources[stream, tenant] = self._paths.may_carry(stream, tenant)
        left_ms = self._paths.blocked_until(site, sources, now_ms) - now_ms
        if left_ms > 0:
            self._left_ms[path] = left_ms
        if self._overloaded is not None:
            waited_ms = self._ready.waited_ms(path, now_ms)
            if waited_ms * 2 >= self._overloaded.after_ms:
                self._waited_ms[path] = waited_ms

    def blocked(self) -> tuple[Path, ...]:
        """Paths in need for being blocked that the peers are to be asked about now."""
        paths = tuple(sorted(self._blocked.paths()))
        if len(paths) <= ASKED_AT_ONCE:
            return paths
        start = self._first % len(paths)
        return (paths + paths)[start : start + ASKED_AT_ONCE]

    def overloaded(self) -> tuple[tuple[Path, int], ...]:
        """Paths in need for being overloaded, and for no other reason, with how long each has waited (ms); the longest
        first, as many as the peers are asked about."""
        if self._overloaded is None:
            return ()
        blocked = self._blocked.paths()
        rows = [(path, ms) for path, ms in self._overloaded.paths().items() if path not in blocked]
        return tuple(sorted(rows, key=lambda row: (-row[1], row[0]))[:ASKED_AT_ONCE])

"""The sink's log, read: who got what, when, from which client, and how often.

`SinkLog` reads the file that `engine.sink.journal` writes (see there for the records), also while it is
being written: `refresh()` takes in the whole lines that were added. It is what demos, tests, benches and
drills count with, in the sink's own time: monotonic nanoseconds, comparable between the processes of one
host.

A torn line (the sink's disk was full, or it was killed in a write) is skipped and counted in `torn`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Acceptance:
    """One message accepted for one recipient. `session` is unique over all runs of the sink."""

    id: str
    recipient: str
    personality: str
    client: str
    session: int
    at_ms: int
    at_ns: int
    size: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refusal (code > 0) or a connection cut on purpose (code 0) at a stage of the dialogue."""

    personality: str
    client: str
    stage: str
    code: int
    recipient: str
    at_ns: int


@dataclass(frozen=True, slots=True)
class Connection:
    """Opened and closed; `closed_ns` is None while open, and for those that died with the sink."""

    personality: str
    client: str
    session: int
    opened_ns: int
    closed_ns: int | None


class SinkLog:
    """A growing view of one log file. Counts are those of the last `refresh`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.acceptances: list[Acceptance] = []
        self.refusals: list[Refusal] = []
        self.torn = 0
        self.runs = 0
        self._connections: dict[int, Connection] = {}
        self._offset = 0
        self._base = 0
        self._counts: Counter[tuple[str, str]] = Counter()
        self.refresh()

    def refresh(self) -> int:
        """Take in what was added since; returns the number of new records."""
        count = 0
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return 0
        with file:
            file.seek(self._offset)
            rest = b""
            while chunk := file.read(_CHUNK):
                lines = (rest + chunk).split(b"\n")
                rest = lines.pop()
                for line in lines:
                    self._offset += len(line) + 1
                    if line:
                        count += self._take(line)
        return count

    def _take(self, line: bytes) -> int:
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:
            self.torn += 1
            return 0
        kind = record["k"]
        if kind == "b":
            self.runs += 1
            self._base = self.runs << 40
            return 1
        session = self._base + record["s"]
        if kind == "a":
            for recipient in record["r"]:
                self.acceptances.append(
                    Acceptance(
                        record["id"],
                        recipient,
                        record["p"],
                        record["c"],
                        session,
                        record["t"],
                        record["n"],
                        record["z"],
                    )
                )
                self._counts[(record["id"], recipient)] += 1
        elif kind in ("x", "d"):
            code = record.get("code", 0)
            self.refusals.append(
                Refusal(record["p"], record["c"], record["at"], code, record["r"], record["n"])
            )
        elif kind == "o":
            self._connections[session] = Connection(record["p"], record["c"], session, record["n"], None)
        elif kind == "e":
            opened = self._connections[session]
            self._connections[session] = Connection(
                opened.personality, opened.client, session, opened.opened_ns, record["n"]
            )
        return 1

    @property
    def total(self) -> int:
        """Acceptances, duplicates included."""
        return len(self.acceptances)

    @property
    def unique(self) -> int:
        """Different (message id, recipient) pairs accepted."""
        return len(self._counts)

    def counts(self) -> Counter[tuple[str, str]]:
        """How often each (message id, recipient) was accepted."""
        return self._counts.copy()

    def recipients(self) -> Counter[str]:
        """How many messages each recipient got, duplicates included."""
        return Counter(row.recipient for row in self.acceptances)

    def duplicates(self) -> dict[tuple[str, str], list[Acceptance]]:
        """Every acceptance of each (message id, recipient) that was accepted more than once."""
        twice: dict[tuple[str, str], list[Acceptance]] = {
            key: [] for key, count in self._counts.items() if count > 1
        }
        for row in self.acceptances:
            rows = twice.get((row.id, row.recipient))
            if rows is not None:
                rows.append(row)
        return twice

    def select(self, *, client: str | None = None, personality: str | None = None) -> Iterator[Acceptance]:
        """Acceptances of a client IP, a personality, both, or all."""
        for row in self.acceptances:
            if client in (None, row.client) and personality in (None, row.personality):
                yield row

    def timestamps(self, *, client: str | None = None, personality: str | None = None) -> list[int]:
        """Monotonic ns of each accepted transaction, ascending; one per message, whatever its recipients."""
        seen: dict[tuple[int, int, str], int] = {}
        for row in self.select(client=client, personality=personality):
            seen[(row.session, row.at_ns, row.id)] = row.at_ns
        return sorted(seen.values())

    def max_in_window(
        self, window_s: float, *, client: str | None = None, personality: str | None = None
    ) -> int:
        """The most transactions accepted in any half-open window of that length."""
        return max_in_window(self.timestamps(client=client, personality=personality), int(window_s * 1e9))

    def clients(self) -> set[tuple[str, str]]:
        """The (client IP, personality) pairs that had a message accepted."""
        return {(row.client, row.personality) for row in self.acceptances}

    def connections(self) -> list[Connection]:
        return list(self._connections.values())

    def max_connections(self, *, client: str | None = None, personality: str | None = None) -> int:
        """The most connections open at once. One that died with the sink ends where the next run begins to
        matter: it is counted only against connections of its own run.
        """
        peak = 0
        runs: dict[int, list[tuple[int, int]]] = {}
        for row in self._connections.values():
            if client in (None, row.client) and personality in (None, row.personality):
                steps = runs.setdefault(row.session >> 40, [])
                steps.append((row.opened_ns, 1))
                if row.closed_ns is not None:
                    steps.append((row.closed_ns, -1))
        for steps in runs.values():
            level = 0
            for _, step in sorted(steps):
                level += step
                peak = max(peak, level)
        return peak

    def max_messages_per_connection(self, *, personality: str | None = None) -> int:
        """The most transactions accepted on one connection."""
        messages = {(row.session, row.at_ns, row.id) for row in self.select(personality=personality)}
        return max(Counter(session for session, _, _ in messages).values(), default=0)

    def refused(self) -> Counter[tuple[str, str, int]]:
        """Refusals by (personality, stage, code); code 0 is a connection cut on purpose."""
        return Counter((row.personality, row.stage, row.code) for row in self.refusals)


def max_in_window(times_ns: Iterable[int], window_ns: int) -> int:
    """The most of the ascending `times_ns` that lie in any half-open window [t, t + window_ns)."""
    times = list(times_ns)
    most = first = 0
    for last, time_ns in enumerate(times):
        while times[first] <= time_ns - window_ns:
            first += 1
        most = max(most, last - first + 1)
    return most

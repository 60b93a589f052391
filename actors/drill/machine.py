"""One machine of a fleet, as a drill sees it: its clock, its processes of the fleet, its events and spools.

Of a fleet on one machine the drill has it in its own process; of a fleet on a cluster it is an actor on each node
(actors/drill/machines.py). Only processes of the fleet are hit: those that have the token of its Ray cluster in their
environment. Times are this machine's own monotonic seconds. Does not import Ray.
"""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from actors.drill.freeze import TOKEN_PATH, Freeze
from actors.head_keeper import GCS
from engine.config.schema import FleetConfig
from engine.drill.events import EventLogs
from engine.drill.scenarios import DrillRefused
from engine.spool.audit import AuditReport, audit

EVENT_LINES = 20_000  # of one answer


class Settled(NamedTuple):
    """An event about a message: its id, its place in the list of sources, whether it was delivered, and if so perhaps
    twice."""

    at_s: float
    message: str
    source: int
    is_delivered: bool
    is_marked: bool


class DrillMachine:
    """`regions`: those whose events and spools are read here. `token`: the path that the fleet's processes have in
    their environment; None: that of this process. DrillRefused: it has none.
    """

    def __init__(self, config_json: str, regions: Sequence[str], token: str | None = None) -> None:
        self._config = FleetConfig.model_validate_json(config_json)
        self._regions = tuple(regions)
        found = token or os.environ.get(TOKEN_PATH)
        if found is None:
            raise DrillRefused(
                f"the Ray node of {' and '.join(regions) or 'the head'} runs without {TOKEN_PATH}: processes of the "
                "fleet cannot be told from others there (docs/operations.md)"
            )
        self._token = found
        directory = Path(self._config.events.directory)
        self._logs = {region: EventLogs(directory, region) for region in regions}
        self._freeze: Freeze | None = None

    def clock(self) -> float:
        return time.monotonic()

    def processes(self) -> dict[int, str]:
        """All processes of this fleet on this machine, by their ids, except this one."""
        found = {}
        for process in psutil.process_iter():
            try:
                if process.environ().get(TOKEN_PATH) == self._token and process.pid != os.getpid():
                    found[process.pid] = process.name()
            except psutil.Error:
                continue
        return found

    def head(self) -> int | None:
        """The process of Ray's head; None if it does not run here."""
        return next((pid for pid, name in self.processes().items() if name == GCS), None)

    def own_pid(self, pid: int) -> int:
        """The pid, if it is a process of this fleet on this machine; DrillRefused."""
        if pid not in self.processes():
            raise DrillRefused(f"process {pid} is none of this fleet's on this machine")
        return pid

    def kill(self, pid: int) -> float:
        """SIGKILL; when it was sent. DrillRefused: it is none of the fleet's."""
        self.own_pid(pid)
        at_s = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        return at_s

    def freeze(self, pid: int, limit_s: float) -> float:
        """SIGSTOP until `resume`, or the end of this process, for `limit_s` at most; when it was sent. DrillRefused: it
        is none of the fleet's, or another is frozen."""
        if self._freeze is not None:
            raise DrillRefused("another process of this machine is frozen by this drill")
        self.own_pid(pid)
        self._freeze = Freeze(pid, limit_s)
        at_s = time.monotonic()
        self._freeze.begin()
        return at_s

    def resume(self) -> str:
        """Let the frozen process go on. What is to be told of it, "" if there is nothing."""
        freeze, self._freeze = self._freeze, None
        if freeze is None:
            return "nothing was frozen"
        told = ""
        if freeze.has_ended():
            told = f"it was continued before the drill did, at the latest after {freeze.limit_s:g} s"
        try:
            freeze.end()
        except ProcessLookupError:
            told = "the frozen process was replaced before it was continued"
        return told

    def begin(self) -> None:
        """Events from now on count; those of before are not even read."""
        since_ms = round(time.time() * 1000)
        for logs in self._logs.values():
            logs.begin(since_ms)

    def settled(self) -> tuple[list[Settled], bool]:
        """What is new in the events logs, and whether there may be more."""
        offset_s = time.monotonic() - time.time()
        found: list[Settled] = []
        is_more = False
        for logs in self._logs.values():
            events, more = logs.more_of_messages(EVENT_LINES)
            is_more = is_more or more
            found += [
                Settled(
                    event["at_ms"] / 1e3 + offset_s,
                    event["id"],
                    event["source"],
                    event["event"] == "delivered",
                    bool(event["possible_duplicate"]),
                )
                for event in events
            ]
        return found, is_more

    def audits(self) -> list[AuditReport]:
        root = Path(self._config.spool.directory)
        return [audit(root / region) for region in self._regions if (root / region).is_dir()]

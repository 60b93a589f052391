"""One machine of a fleet, as a drill sees it: its clock, its processes of the fleet, its events and spools.

Of a fleet on one machine the drill has it in its own process; of a fleet on a cluster it is an actor on each node
(actors/drill/nodes.py), whose answers can be lost. Only processes of the fleet are hit: those that have the token of
its Ray cluster in their environment. Times are this machine's own monotonic seconds. Does not import Ray.
"""

import os
import signal
import threading
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


class Answer(NamedTuple):
    """Events, the number of this answer (from 1), and whether there may be more."""

    number: int
    rows: list[Settled]
    is_more: bool


class DrillMachine:
    """`regions`: those whose events and spools are read here. `token`: the path that the fleet's processes have in
    their environment; None: that of this process.
    """

    def __init__(self, config_json: str, regions: Sequence[str], token: str | None = None) -> None:
        self._config = FleetConfig.model_validate_json(config_json)
        self._regions = tuple(regions)
        self._token = token or os.environ.get(TOKEN_PATH)
        directory = Path(self._config.events.directory)
        self._logs = {region: EventLogs(directory, region) for region in regions}
        self._answer = Answer(0, [], is_more=False)
        self._unix_offset_s = time.monotonic() - time.time()
        self._freeze: Freeze | None = None
        self._lock = threading.Lock()

    def ready(self) -> None:
        """DrillRefused: no drill is possible here."""
        if self._token is None:
            raise DrillRefused(
                f"the Ray node runs without {TOKEN_PATH}: processes of the fleet cannot be told from others there "
                "(docs/operations.md)"
            )

    def clock(self) -> float:
        return time.monotonic()

    def clock_step_s(self) -> float:
        """By how much the unix clock was set since `begin`; what was settled is told by the clock of before."""
        return abs(time.monotonic() - time.time() - self._unix_offset_s)

    def own_pid(self, pid: int) -> int:
        """The pid, if it is a process of this fleet on this machine; DrillRefused."""
        if pid == os.getpid() or not self._is_own(pid):
            raise DrillRefused(f"process {pid} is none of this fleet's on this machine")
        return pid

    def _is_own(self, pid: int) -> bool:
        self.ready()
        try:
            return psutil.Process(pid).environ().get(TOKEN_PATH) == self._token
        except psutil.Error:
            return False

    def head(self) -> int | None:
        """The process of Ray's head; None if it does not run here."""
        self.ready()
        for process in psutil.process_iter(["name"]):
            if process.info["name"] == GCS and self._is_own(process.pid):
                return process.pid
        return None

    def kill(self, pid: int) -> float:
        """SIGKILL; when it was sent. DrillRefused: it is none of the fleet's."""
        self.own_pid(pid)
        at_s = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        return at_s

    def aim(self, pid: int, limit_s: float) -> None:
        """Make ready to freeze a process, for `limit_s` from now at most. DrillRefused: it is none of the fleet's, or
        another is aimed at."""
        if self._freeze is not None:
            raise DrillRefused("a process of this machine is frozen by this drill already")
        self._freeze = Freeze(self.own_pid(pid), limit_s)

    def freeze(self) -> float:
        """SIGSTOP until `resume`, or the end of this process, of what was aimed at; when it was sent. DrillRefused:
        `resume` was quicker."""
        with self._lock:
            if self._freeze is None:
                raise DrillRefused("nothing is aimed at any more")
            at_s = time.monotonic()
            self._freeze.begin()
            return at_s

    def resume(self) -> str:
        """Let the process go on. What is to be told of it, "" if there is nothing, also if it goes on already."""
        with self._lock:
            freeze, self._freeze = self._freeze, None
            return "" if freeze is None else freeze.end()

    def begin(self) -> None:
        """Events from now on count; those of before are not even read."""
        self._unix_offset_s = time.monotonic() - time.time()
        since_ms = round(time.time() * 1000)
        for logs in self._logs.values():
            logs.begin(since_ms)

    def settled(self, known: int) -> Answer:
        """What is new in the events logs. `known`: the number of the last answer that has arrived; the one after it is
        given again until it has."""
        if known == self._answer.number:
            rows: list[Settled] = []
            is_more = False
            for logs in self._logs.values():
                events, is_more_of_it = logs.more_of_messages(EVENT_LINES)
                is_more = is_more or is_more_of_it
                rows += [
                    Settled(
                        event["at_ms"] / 1e3 + self._unix_offset_s,
                        event["id"],
                        event["source"],
                        event["event"] == "delivered",
                        bool(event["possible_duplicate"]),
                    )
                    for event in events
                ]
            self._answer = Answer(known + 1, rows, is_more)
        return self._answer

    def audits(self) -> list[AuditReport]:
        root = Path(self._config.spool.directory)
        return [audit(root / region) for region in self._regions if (root / region).is_dir()]

"""The figures of a process and of the machine it runs on.

The figures of a process come from itself (`ProcessFigures`), those of the machine from whoever gathers, once per node.
"""

import asyncio
import os
import resource
import time
from collections import deque
from pathlib import Path

import psutil

from engine.metrics.catalogue import Point
from engine.ops.process import process_usage

STEP_S = 0.5
SLOT_S = 5.0
SLOTS = 12  # together a minute


class LoopLag:
    """How late the event loop wakes a task that sleeps: the longest lateness of about the last minute."""

    def __init__(self) -> None:
        self._slots: deque[float] = deque([0.0], maxlen=SLOTS)
        self._slot_ends = 0.0

    async def run(self) -> None:
        """Measure for ever, twice a second."""
        while True:
            wanted = time.monotonic() + STEP_S
            await asyncio.sleep(STEP_S)
            self.note(wanted, time.monotonic())

    def note(self, wanted_s: float, woken_s: float) -> None:
        if woken_s >= self._slot_ends:
            self._slots.append(0.0)
            self._slot_ends = woken_s + SLOT_S
        self._slots[-1] = max(self._slots[-1], woken_s - wanted_s)

    def longest_s(self) -> float:
        return max(self._slots)


class ProcessFigures:
    """Of this process. Made in its event loop, whose lateness it measures if `times_loop`: twice a second."""

    def __init__(self, actor: str, *, times_loop: bool = True) -> None:
        self._actor = actor
        self._lag = LoopLag()
        self._task: asyncio.Task[None] | None = None
        if times_loop:
            self._task = asyncio.get_running_loop().create_task(self._lag.run())

    def points(self) -> list[Point]:
        used = process_usage()
        files = len(os.listdir("/proc/self/fd"))  # thousands in a pool: names only
        values: dict[str, float] = {
            "process.cpu.time": used["cpu_s"],
            "process.memory.usage": used["resident_bytes"],
            "sendfleet.memory.anonymous": used["anonymous_bytes"],
            "process.unix.file_descriptor.count": files,
            "sendfleet.file_descriptor.limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        }
        if self._task is not None:
            values["sendfleet.loop.lag"] = self._lag.longest_s()
        return [Point(name, (self._actor,), value) for name, value in values.items()]

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


def machine_points(root: Path = Path("/sys/fs/cgroup")) -> list[Point]:
    """Of the node. `root`: the control group of this process (cgroup v2), if it is limited."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    memory = psutil.virtual_memory()
    limit, used = memory.total, memory.total - memory.available
    allowed = _number(root / "memory.max")
    charged = _number(root / "memory.current")
    if allowed is not None and charged is not None and allowed < limit:
        limit, used = allowed, charged - min(charged, _inactive_file(root / "memory.stat"))
    return [
        Point("system.cpu.time", ("idle",), idle),
        Point("system.cpu.time", ("busy",), sum(times[:8]) - idle),  # guests are in user and nice already
        Point("system.memory.usage", (), used),
        Point("system.memory.limit", (), limit),
    ]


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:  # no control group of version 2
        return None
    return int(text) if text.isdigit() else None


def _inactive_file(path: Path) -> int:
    """Pages of files that the kernel drops before it refuses memory."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)

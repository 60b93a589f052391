"""Faults of a disk, from below: diskfault.c preloaded into a process (`environment`), and its switches.

In a process that was started with that environment, `watch` names the directory tree whose durable steps count, and
`arm` chooses the step at which the process is killed or told that a call failed. LMDB's own calls count too.
"""

import ctypes
import os
import subprocess
from enum import IntEnum
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
EVER = 1 << 40


class Mode(IntEnum):
    """What happens at the armed step; see diskfault.c."""

    KILL = 0
    TORN = 1
    POWER = 2
    FAIL = 3


def environment(directory: Path) -> dict[str, str]:
    """Compile the library into `directory`; the environment for a process that is to have it."""
    library = directory / "diskfault.so"
    command = [
        os.environ.get("CC", "cc"),
        "-O1",
        "-shared",
        "-fPIC",
        "-o",
        library,
        SOURCE,
        "-ldl",
        "-lpthread",
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return {**os.environ, "LD_PRELOAD": str(library)}


class DiskFault:
    """The switches of the library in this process."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        self._library.diskfault_steps.restype = ctypes.c_long

    def watch(self, directory: Path) -> None:
        self._library.diskfault_watch(os.fsencode(directory))

    def arm(self, step: int, mode: Mode, *, seed: int = 0, error: int = 0, times: int = 1) -> None:
        """Count steps from 1 again; at number `step` it happens."""
        self._library.diskfault_arm(
            ctypes.c_long(step), int(mode), ctypes.c_uint(seed), error, ctypes.c_long(times)
        )

    def disarm(self) -> None:
        self.arm(-1, Mode.KILL)

    def steps(self) -> int:
        return int(self._library.diskfault_steps())

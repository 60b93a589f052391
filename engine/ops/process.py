"""What a process has used so far, by its own account: every actor and the client tell it the same way."""

import os
import resource
from pathlib import Path
from typing import TypedDict

PROC = Path("/proc")


class ProcessUsage(TypedDict):
    """`resident_bytes` has the pages of memory-mapped files in it, which the kernel may drop at any time;
    `anonymous_bytes` has not."""

    pid: int
    cpu_s: float
    resident_bytes: int
    anonymous_bytes: int


def process_usage() -> ProcessUsage:
    """CPU seconds of all threads, user and system, and memory by proc_pid_status(5)."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    fields = {}
    with open("/proc/self/status") as status:
        for line in status:
            name, _, value = line.partition(":")
            if name in ("VmRSS", "RssAnon"):
                fields[name] = int(value.split()[0]) * 1024
    return ProcessUsage(
        pid=os.getpid(),
        cpu_s=used.ru_utime + used.ru_stime,
        resident_bytes=fields["VmRSS"],
        anonymous_bytes=fields["RssAnon"],
    )


def waits_for_disk(pid: int) -> bool:
    """Whether a thread of that process is in uninterruptible sleep (state D of proc_pid_stat(5)): it waits for a disk,
    or for memory that has been swapped out. False if there is no such process."""
    try:
        threads = list(PROC.joinpath(str(pid), "task").iterdir())
    except FileNotFoundError:
        return False
    return any(_state(thread) == "D" for thread in threads)


def _state(thread: Path) -> str:
    try:
        return thread.joinpath("stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return ""

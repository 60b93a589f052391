"""Clears away what a command leaves on this machine that was killed: a second process, which outlives the command.

    with Undertaker() as undertaker:
        undertaker.take(directory)
        ...  # whatever is started here, and below it, is killed if this process is

Everything that is started within the block inherits a mark in its environment. The undertaker holds the end of a pipe;
if the pipe closes without a word, the command is dead: it kills what has the mark, unmounts what is mounted below the
directories, and removes them. At the orderly end of the block it does nothing. It reads the mark, not parentage: Ray's
processes leave their parents.
"""

import os
import secrets
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from actors.local_cluster import end_at_once, processes_with
from engine.ops.own_module import own_module

MARK = "SENDFLEET_TEMPORARY"
DONE = b"\n"
CLEAR_S = 30.0
LOOK_S = 0.1
LOOKS = 3
END_S = 10.0


class Undertaker:
    """A context manager, once per block; blocks may lie within each other, also across processes."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._former: str | None = None

    def __enter__(self) -> Self:
        mark = secrets.token_hex(16)
        self._former = os.environ.pop(MARK, None)
        self._process = subprocess.Popen(  # without a mark: that of an outer block would have it killed
            [*own_module("actors.undertaker"), mark], stdin=subprocess.PIPE, start_new_session=True
        )
        os.environ[MARK] = mark
        return self

    def take(self, directory: Path) -> None:
        """Have a directory removed, too, if it comes to that."""
        self._say(os.fsencode(directory.absolute()) + b"\n")

    def _say(self, line: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        os.environ.pop(MARK, None)
        if self._former is not None:
            os.environ[MARK] = self._former
        with suppress(BrokenPipeError):  # it was killed itself, and is not needed any more
            self._say(DONE)
        self._process.communicate(timeout=END_S)


def clear_away(mark: str, directories: list[Path]) -> None:
    """Kill what has the mark until nothing has, then unmount and remove the directories."""
    deadline = time.monotonic() + CLEAR_S
    looks_without = 0
    while looks_without < LOOKS:  # a process that is just being started shows its environment a moment later
        left = list(processes_with(MARK, mark))
        looks_without = 0 if left else looks_without + 1
        end_at_once(left)
        if time.monotonic() > deadline:
            print(f"sendfleet: these processes do not end: {[p.pid for p in left]}", file=sys.stderr)
            break
        time.sleep(LOOK_S)
    for directory in directories:
        for mount in _mounts_below(directory):
            subprocess.run(["umount", "-l", mount], check=False)
        shutil.rmtree(directory, ignore_errors=True)


def _mounts_below(directory: Path) -> list[str]:
    """Mount points, the inner ones first (proc(5): the fifth field of a line, with octal escapes)."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    plain = [point.encode("latin-1").decode("unicode_escape") for point in points]
    return [point for point in reversed(plain) if point.startswith(f"{directory}/")]


def main() -> None:
    mark, directories = sys.argv[1], []
    for line in sys.stdin.buffer:
        if line == DONE:
            return
        directories.append(Path(os.fsdecode(line.rstrip(b"\n"))))
    clear_away(mark, directories)


if __name__ == "__main__":
    main()

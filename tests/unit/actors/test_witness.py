"""A process that hangs is killed by its witness, one that goes on is not. Real processes, no Ray."""

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from actors import witness
from actors.witness import SILENT_LOOKS, Witness, watch

# answers a line as long as its loop goes on; at "loop" that ends
PROGRAM = """
import asyncio, sys, time
from actors import witness
witness.PAUSE_S = 0.01

async def main():
    task = asyncio.create_task(witness.Witness(float(sys.argv[1])).run())
    while line := await asyncio.to_thread(sys.stdin.readline):
        if line == "loop\\n":
            time.sleep(600)
        print(task.done(), flush=True)

asyncio.run(main())
"""
SOON_S = 0.05
NEVER_S = 1000.0
PATIENCE_S = 60

Start = Callable[[float], subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    processes = []

    def started(look_s: float) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(look_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        )
        processes.append(process)
        return process

    yield started
    for process in processes:
        process.kill()
        process.communicate()


def say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def goes_on(process: subprocess.Popen[str]) -> bool:
    assert process.stdout is not None
    say(process, "")
    return process.stdout.readline() == "False\n"


def witness_of(process: subprocess.Popen[str], former: psutil.Process | None = None) -> psutil.Process | None:
    """As soon as there is one; None: the process has ended."""
    while process.poll() is None:
        for child in psutil.Process(process.pid).children():
            with suppress(psutil.Error):
                if child != former and "actors.witness" in child.cmdline():
                    return child
    return None


def test_a_process_that_is_stopped_is_killed(start: Start) -> None:
    process = start(SOON_S)
    child = witness_of(process)
    process.send_signal(signal.SIGSTOP)
    assert process.wait(PATIENCE_S) == -signal.SIGKILL
    assert child is None or child.wait(PATIENCE_S) is None
    assert process.stderr is not None
    assert f"process {process.pid} hangs" in process.stderr.read()


def test_a_process_whose_loop_does_not_go_on_is_killed(start: Start) -> None:
    process = start(SOON_S)
    witness_of(process)
    say(process, "loop")
    assert process.wait(PATIENCE_S) == -signal.SIGKILL


def test_a_witness_that_dies_is_replaced_and_ends_with_its_process(
    start: Start,
) -> None:
    process = start(1.0)
    first = witness_of(process)
    assert first is not None
    first.kill()
    second = witness_of(process, first)
    assert second is not None
    assert goes_on(process)
    process.kill()
    second.wait(PATIENCE_S)


def test_a_witness_that_does_not_read_is_replaced() -> None:
    process = subprocess.Popen(["sleep", "600"], stdin=subprocess.PIPE, bufsize=0)
    try:
        asyncio.run(asyncio.wait_for(Witness(look_s=0.0)._sign(process), PATIENCE_S))
    finally:
        witness._end(process)
    assert process.returncode == -signal.SIGKILL


class Looks:
    """What a witness of this process's parent sees: by look, whether there was a sign."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, waits: bool = False) -> None:
        self.killed_after: int | None = None
        self._looks = 0
        monkeypatch.setattr(select, "select", self._select)
        monkeypatch.setattr(signal, "pidfd_send_signal", self._killed)
        monkeypatch.setattr(witness, "waits_for_disk", lambda pid: waits)

    def watch(self, signs: Sequence[bool], monkeypatch: pytest.MonkeyPatch) -> int | None:
        """After which look it kills; None: never, and it ends with the pipe."""
        self._signs = signs
        reader, self._writer = os.pipe()
        with os.fdopen(reader) as pipe:
            monkeypatch.setattr(sys, "stdin", pipe)
            watch(os.getppid(), NEVER_S)
        return self.killed_after

    def _select(self, readers: object, *_: object) -> tuple[object, list[int], list[int]]:
        if self._looks == len(self._signs):
            os.close(self._writer)
            return readers, [], []
        sign = self._signs[self._looks]
        self._looks += 1
        if sign:
            os.write(self._writer, witness.SIGN)
        return readers if sign else [], [], []

    def _killed(self, descriptor: int, number: int) -> None:
        os.close(descriptor)
        os.close(self._writer)
        assert number == signal.SIGKILL
        self.killed_after = self._looks


def test_only_so_many_looks_in_a_row_without_a_sign_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    almost = [True, *[False] * (SILENT_LOOKS - 1)]
    assert Looks(monkeypatch).watch(3 * almost, monkeypatch) is None
    assert Looks(monkeypatch).watch([*almost, *[False] * 5], monkeypatch) == SILENT_LOOKS + 1


def test_one_that_waits_for_its_disk_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Looks(monkeypatch, waits=True).watch([False] * 3 * SILENT_LOOKS, monkeypatch) is None


def test_one_that_has_ended_before_is_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number may be another's by now."""
    looks = Looks(monkeypatch)
    watch(os.getpid(), NEVER_S)  # not the parent of this process
    watch(2**22 + 1, NEVER_S)  # there is none
    assert looks.killed_after is None

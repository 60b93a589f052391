"""`kill -9` of a command that runs a temporary fleet: the fleet goes with it, and so do its files."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.crash]

MARK = "SENDFLEET_TEST"
PATIENCE_S = 180
COMMANDS = {
    "bench": ["bench", "--temporary", "--messages", "1000000", "--rate", "100"],
    # all scenarios: each is a command of its own below the one that is killed
    "drill": ["drill", "--before", "60", "--after", "60"],
}


def below(mark: str) -> list[psutil.Process]:
    """Processes that were started by the command or by one of those, and live."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def has_a_region(processes: list[psutil.Process]) -> bool:
    try:
        return any(process.name().startswith("ray::Region") for process in processes)
    except psutil.Error:
        return False


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_outlives_the_command(tmp_path: Path, name: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {n: value for n, value in os.environ.items() if n != "RAY_TMPDIR"}
    environment |= {MARK: str(tmp_path), "TMPDIR": str(home)}
    command = subprocess.Popen(
        [sys.executable, "-m", "actors", *COMMANDS[name], "--directory", str(home)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
    )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not has_a_region(below(str(tmp_path))):
            assert command.poll() is None, "the command has ended"
            assert time.monotonic() < deadline, "no region was started"
            time.sleep(0.2)
        command.send_signal(signal.SIGKILL)
        command.wait()
        while left := below(str(tmp_path)):
            assert time.monotonic() < deadline, [process.cmdline() for process in left]
            time.sleep(0.2)
        assert [path.name for path in home.iterdir() if path.name.startswith("sf-")] == []
    finally:
        command.kill()
        for process in below(str(tmp_path)):
            process.kill()

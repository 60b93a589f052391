"""What a command leaves behind that is killed, and what it leaves if it ends in order. Real processes, no Ray."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from actors.undertaker import MARK, _mounts_below, clear_away

COMMAND = """
import subprocess, sys
from pathlib import Path
from actors.undertaker import Undertaker
with Undertaker() as undertaker:
    undertaker.take(Path(sys.argv[1]))
    with Undertaker():
        pass
    program = "import time; print(flush=True); time.sleep(600)"
    sleeper = subprocess.Popen([sys.executable, "-c", program], start_new_session=True, stdout=subprocess.PIPE)
    sleeper.stdout.readline()  # it runs, so its environment can be read
    print(sleeper.pid, undertaker._process.pid, flush=True)
    sys.stdin.readline()
"""
PATIENCE_S = 60


@pytest.fixture
def command(tmp_path: Path) -> subprocess.Popen[str]:
    (tmp_path / "fleet" / "spool").mkdir(parents=True)
    (tmp_path / "fleet" / "spool" / "data.mdb").touch()
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(tmp_path / "fleet")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    yield process
    process.kill()
    process.communicate()


def started(command: subprocess.Popen[str]) -> tuple[psutil.Process, psutil.Process]:
    """The process that the command has started, and the one that watches over it."""
    assert command.stdout is not None
    sleeper, undertaker = command.stdout.readline().split()
    return psutil.Process(int(sleeper)), psutil.Process(int(undertaker))


def test_after_a_kill_everything_is_ended_and_removed(command: subprocess.Popen[str], tmp_path: Path) -> None:
    sleeper, undertaker = started(command)
    command.send_signal(signal.SIGKILL)
    gone, _ = psutil.wait_procs([sleeper, undertaker], timeout=PATIENCE_S)
    assert set(gone) == {sleeper, undertaker}
    assert list(tmp_path.iterdir()) == []


def test_after_an_orderly_end_it_does_nothing(command: subprocess.Popen[str], tmp_path: Path) -> None:
    sleeper, undertaker = started(command)
    command.communicate("\n", timeout=PATIENCE_S)
    assert command.returncode == 0
    assert not undertaker.is_running()
    assert sleeper.is_running()
    assert (tmp_path / "fleet" / "spool" / "data.mdb").exists()
    sleeper.kill()


def test_the_signals_of_the_terminal_do_not_reach_it(command: subprocess.Popen[str]) -> None:
    sleeper, undertaker = started(command)
    assert os.getpgid(undertaker.pid) != os.getpgid(command.pid)
    assert MARK not in undertaker.environ()
    assert len(sleeper.environ()[MARK]) == 32


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_what_is_mounted_is_unmounted_first(tmp_path: Path) -> None:
    inner = tmp_path / "fleet" / "a spool"
    inner.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=1M", "sendfleet-test", str(inner)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no mounts here")
    (inner / "data.mdb").touch()
    assert _mounts_below(tmp_path / "fleet") == [str(inner)]
    clear_away("0" * 32, [tmp_path / "fleet"])
    assert _mounts_below(tmp_path / "fleet") == []
    assert not (tmp_path / "fleet").exists()

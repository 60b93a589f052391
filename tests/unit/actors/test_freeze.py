"""A process that a drill has stopped goes on, whatever becomes of the drill. Real processes, no Ray, no fleet."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from actors.drill.freeze import TOKEN_PATH, Freeze
from actors.drill.machine import DrillMachine
from actors.undertaker import MARK
from engine.drill.scenarios import DrillRefused
from tests.support.fleets import fleet

PATIENCE_S = 60
TOKEN = "the-token-of-this-test"
DRILL = """
import dataclasses
import signal
import sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a parent may have had it ignored (nohup)
from types import SimpleNamespace as Some
from actors.drill.run import run_live
from actors.drill.machines import Machine, Machines, Here
from actors.drill.machine import DrillMachine
from engine.drill.figures import Arrival
from engine.drill.scenarios import SCENARIOS, DrillOptions

class Running:
    async def region(self, name):
        return {"pid": int(sys.argv[1])}
    async def health(self):
        return {}

async def nothing():
    return []

region = Some(name="us")
config = Some(regions=[region], sources=[Some(name="us-1", region="us")], fleet=Some(name="acme", replicas=0))
arrivals = [Arrival(0.0, str(number), "us-1") for number in range(50)]
machine = Machine(Here(DrillMachine(sys.argv[2], ["us"])))
machines = Machines({"us": machine}, machine)
fleet = Some(is_live=True, config=config, running=Running(), machines=machines, arrivals=lambda: arrivals)
fleet.begin = fleet.refresh = nothing
long = dataclasses.replace(SCENARIOS["region-freeze"], hold_s=600.0)  # so that it does not go on by itself
run_live(long, fleet, DrillOptions(0.0, 0.0, 600.0), print, print)
"""


@pytest.fixture
def victim() -> Iterator[psutil.Process]:
    process = subprocess.Popen(["sleep", "600"], env={**os.environ, TOKEN_PATH: TOKEN})
    yield psutil.Process(process.pid)
    process.kill()
    process.wait()


def is_stopped(process: psutil.Process) -> bool:
    return bool(process.status() == psutil.STATUS_STOPPED)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_the_region_goes_on_when_the_live_drill_is_ended(
    victim: psutil.Process, number: signal.Signals
) -> None:
    drill = subprocess.Popen(
        [sys.executable, "-c", DRILL, str(victim.pid), fleet().model_dump_json()],
        stdout=subprocess.DEVNULL,
        env={**os.environ, TOKEN_PATH: TOKEN},
        cwd=Path(__file__).parents[3],
    )
    try:
        wait_until(lambda: is_stopped(victim) or drill.poll() is not None)
        assert drill.poll() is None
        drill.send_signal(number)
        assert drill.wait(PATIENCE_S) == -number
        wait_until(lambda: not is_stopped(victim))
    finally:
        drill.kill()
        drill.wait()


def test_it_goes_on_after_the_time_also_if_the_command_hangs(victim: psutil.Process) -> None:
    freeze = Freeze(victim.pid, 0.5)
    freeze.begin()
    os.waitid(os.P_PID, victim.pid, os.WSTOPPED | os.WNOWAIT)
    wait_until(lambda: not is_stopped(victim))
    assert "it was continued before the drill did, at the latest after 0.5 s" in freeze.end()


def test_the_watch_is_told_to_end(victim: psutil.Process) -> None:
    freeze = Freeze(victim.pid, 600.0)
    freeze.begin()
    wait_until(lambda: is_stopped(victim))
    os.kill(freeze.watch_pid, signal.SIGTERM)
    wait_until(lambda: not is_stopped(victim))
    assert "before the drill did" in freeze.end()


def test_the_watch_is_killed_and_the_command_lets_it_go_on(victim: psutil.Process) -> None:
    freeze = Freeze(victim.pid, 600.0)
    freeze.begin()
    wait_until(lambda: is_stopped(victim))
    os.kill(freeze.watch_pid, signal.SIGKILL)
    assert freeze.end() == ""
    wait_until(lambda: not is_stopped(victim))


def test_the_watch_is_a_session_of_its_own_and_no_process_of_the_fleet(
    victim: psutil.Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MARK, "0" * 32)
    monkeypatch.setenv(TOKEN_PATH, "token")
    freeze = Freeze(victim.pid, 600.0)
    try:
        watch = psutil.Process(freeze.watch_pid)
        assert os.getsid(watch.pid) == watch.pid
        assert watch not in psutil.Process().children(recursive=True), "Ray's workers kill theirs"
        assert not {MARK, TOKEN_PATH} & watch.environ().keys()
    finally:
        freeze.end()


def test_a_process_that_has_ended_is_told() -> None:
    process = subprocess.Popen(["sleep", "600"])
    freeze = Freeze(process.pid, 600.0)
    process.kill()
    process.wait()
    with pytest.raises(ProcessLookupError):
        freeze.begin()
    assert freeze.end() == "the frozen process has ended before it was continued"
    with pytest.raises(ProcessLookupError):
        Freeze(process.pid, 600.0)


def test_a_watch_that_does_not_start_is_told(victim: psutil.Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "actors.drill.freeze.own_module", lambda _: [sys.executable, "-c", "import sys; sys.exit(3)"]
    )
    with pytest.raises(ChildProcessError, match=r"does not start \(status 3\)"):
        Freeze(victim.pid, 600.0)
    monkeypatch.setattr("actors.drill.freeze.START_S", 0.1)
    monkeypatch.setattr("actors.drill.freeze.own_module", lambda _: ["sleep", "600"])
    with pytest.raises(ChildProcessError, match=r"needs over 0\.1 s"):
        Freeze(victim.pid, 600.0)


def test_what_is_resumed_before_it_was_frozen_is_not_frozen(victim: psutil.Process) -> None:
    """The command had no answer, and gave up."""
    machine = DrillMachine(fleet().model_dump_json(), [], TOKEN)
    machine.aim(victim.pid, 600.0)
    assert machine.resume() == ""
    with pytest.raises(DrillRefused, match="nothing is aimed at any more"):
        machine.freeze()
    assert not is_stopped(victim)
    machine.aim(victim.pid, 600.0)
    with pytest.raises(DrillRefused, match="already"):
        machine.aim(victim.pid, 600.0)
    machine.freeze()
    wait_until(lambda: is_stopped(victim))
    assert machine.resume() == machine.resume() == "", "its answer may be lost"
    wait_until(lambda: not is_stopped(victim))

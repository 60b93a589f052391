"""What actors/local_cluster.py makes of the files and processes of former clusters. No Ray."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors import local_cluster
from actors.environment import TOKEN_FILE, prepare, run_directory
from actors.foreground import notify
from actors.local_cluster import LocalCluster
from engine.config.schema import FleetConfig
from tests.support.region import fleet

PROGRAM = "import time; print(flush=True); time.sleep(600)"
SLEEPER = [sys.executable, "-c", PROGRAM]


@pytest.fixture
def config(tmp_path: Path) -> FleetConfig:
    config = fleet(tmp_path, 2525)
    run_directory(config).mkdir(parents=True)
    return config


def started(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """Returns when it runs: its environment and arguments can be read then."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, **options)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def write_state(
    config: FleetConfig, pid: int, *, started: int | None = None, boot: str | None = None
) -> Path:
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19])
    state = {
        "address": "127.0.0.1:20001",
        "boot": boot or Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "nodes": {"eu": [pid, started or ticks]},
    }
    path = run_directory(config) / "cluster.json"
    path.write_text(json.dumps(state))
    return path


@pytest.fixture
def stranger() -> object:
    process = started(SLEEPER)
    yield process
    process.kill()
    process.wait()


def test_a_node_that_runs_is_known_by_its_start(
    config: FleetConfig, stranger: subprocess.Popen[bytes]
) -> None:
    write_state(config, stranger.pid)
    cluster = LocalCluster(config)
    assert cluster.running()
    assert cluster.fallen() == []
    cluster.stop()
    assert stranger.wait(timeout=30) == -signal.SIGTERM
    assert not cluster.running()


@pytest.mark.parametrize("difference", [{"started": 1}, {"boot": "another"}])
def test_a_stranger_with_the_process_id_of_a_node_is_left_alone(
    config: FleetConfig, stranger: subprocess.Popen[bytes], difference: dict[str, object]
) -> None:
    state = write_state(config, stranger.pid, **difference)  # type: ignore[arg-type]
    cluster = LocalCluster(config)
    assert not cluster.running()
    assert cluster.fallen() == ["eu"]
    with pytest.raises(ConnectionError, match=r"ray-eu\.log is not there"):
        cluster.check_nodes()
    cluster.stop()
    assert stranger.poll() is None
    assert not state.exists()


def test_a_node_that_ended_is_named_with_its_last_words(
    config: FleetConfig, stranger: subprocess.Popen[bytes]
) -> None:
    write_state(config, stranger.pid)
    cluster = LocalCluster(config)
    cluster.log_file("eu").write_text("x" * 5000 + "\nno space left\n")
    cluster.check_nodes()
    stranger.kill()
    stranger.wait()
    with pytest.raises(
        ConnectionError, match=r"node of region eu has ended.*ray-eu\.log ends with:(.|\n)*no space left"
    ):
        cluster.check_nodes()


def test_a_state_file_that_says_nothing_is_named(config: FleetConfig) -> None:
    (run_directory(config) / "cluster.json").write_text('{"address": "127')
    with pytest.raises(ConnectionError, match=r"cluster\.json"):
        LocalCluster(config).address()


def test_what_outlived_its_node_is_found_by_the_token_and_ended(config: FleetConfig, tmp_path: Path) -> None:
    token = run_directory(config) / TOKEN_FILE
    marked = {**os.environ, "RAY_AUTH_TOKEN_PATH": str(token)}
    raylet = tmp_path / "site-packages" / "ray" / "core" / "raylet"
    raylet.parent.mkdir(parents=True)
    raylet.write_text(PROGRAM)
    orphan = started([sys.executable, str(raylet)], env=marked)
    program = started(SLEEPER, env=marked)  # somebody's own, which uses the client
    try:
        assert psutil.Process(orphan.pid).environ()["RAY_AUTH_TOKEN_PATH"] == str(token)
        LocalCluster(config).stop()
        assert orphan.wait(timeout=30) == -signal.SIGKILL
        assert program.poll() is None
    finally:
        for process in (orphan, program):
            process.kill()
            process.wait()


def test_the_token_is_made_once_whoever_comes_first(
    config: FleetConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*os.environ, "PYTHONPATH"):
        if name.startswith(("RAY_", "PYTHONPATH")):
            monkeypatch.setenv(name, os.environ.get(name, ""))  # what `prepare` sets is taken back afterwards
    monkeypatch.setattr(os, "environ", dict(os.environ))
    threads = [threading.Thread(target=prepare, args=(config,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    token = run_directory(config) / TOKEN_FILE
    assert len(token.read_text()) == 64
    assert token.stat().st_mode & 0o077 == 0
    assert [path.name for path in run_directory(config).iterdir()] == [TOKEN_FILE]


@pytest.mark.parametrize("is_abstract", [False, True])
def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_abstract: bool) -> None:
    name = f"{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + name if is_abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name if is_abstract else name)
        notify("READY=1")
        assert receiver.recv(100) == b"READY=1"
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("READY=1")  # nobody is there to be told


def test_a_node_whose_sockets_are_not_there_in_time_is_an_error_that_says_so(
    config: FleetConfig, stranger: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next node would choose the same names, and one of the two would die."""
    monkeypatch.setattr(local_cluster, "SOCKETS_TIMEOUT_S", 0.2)
    monkeypatch.setattr(LocalCluster, "logs", lambda self: tmp_path / "session" / "logs")
    cluster = LocalCluster(config)
    sockets = tmp_path / "session" / "sockets"
    sockets.mkdir(parents=True)
    (sockets / "raylet").touch()
    with pytest.raises(ConnectionError, match=r"region eu: .* \(there are 1 of raylet, 0 of plasma_store; "):
        cluster._wait_for_sockets("eu", stranger, 1)
    (sockets / "plasma_store").touch()
    cluster._wait_for_sockets("eu", stranger, 1)
    stranger.kill()
    stranger.wait()
    with pytest.raises(ConnectionError, match="region eu: Ray ended with status -9"):
        cluster._wait_for_sockets("eu", stranger, 2)

"""Ray nodes on this machine, one per region, on loopback. Does not import Ray: it starts `ray start` processes.

On real machines the nodes are started by Ray's cluster launcher (cluster.yaml) instead.
"""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from actors.environment import run_directory
from actors.names import placement
from engine.config.schema import FleetConfig
from engine.ops.free_port import free_port

NODE_START_TIMEOUT_S = 60
STOP_GRACE_S = 15
WORKER_GRACE_S = 5  # after their node has ended: they have nothing left to do
LOCAL_STORE_BYTES = 150 << 20


class LocalCluster:
    """Ray nodes on this machine, one per region, on loopback, supervised by `ray start --block` processes."""

    def __init__(self, config: FleetConfig) -> None:
        self._config = config
        self._directory = run_directory(config)
        self._state = self._directory / "cluster.json"

    def address(self) -> str:
        """Address of the running cluster; FileNotFoundError if none was started here."""
        return str(json.loads(self._state.read_text())["address"])

    def start(self) -> str:
        """Start the nodes; returns the address. Ports are chosen free, so several fleets can share a machine."""
        if self.running():
            return self.address()
        port = free_port()
        pids = []
        for index, region in enumerate(self._config.regions):
            pids.append(self._start_node(index, region.name, port))
            if index == 0:
                _wait_for_port(port, NODE_START_TIMEOUT_S)
        address = f"127.0.0.1:{port}"
        self._state.write_text(json.dumps({"address": address, "pids": pids}))
        return address

    def _start_node(self, index: int, region: str, port: int) -> int:
        command = [
            str(Path(sys.executable).parent / "ray"),
            "start",
            "--block",
            "--node-ip-address=127.0.0.1",
            "--num-cpus=2",
            f"--resources={json.dumps({placement(region): 1})}",
            f"--object-store-memory={LOCAL_STORE_BYTES}",
            "--disable-usage-stats",
        ]
        if index == 0:
            command += ["--head", f"--port={port}", "--include-dashboard=false"]
        else:
            command += [f"--address=127.0.0.1:{port}"]
        log_file = self._directory / f"ray-{region}.log"
        with log_file.open("ab") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
            )
        return process.pid

    def running(self) -> bool:
        if not self._state.exists():
            return False
        pids = json.loads(self._state.read_text())["pids"]
        return any(_is_alive(pid) for pid in pids)

    def stop(self) -> None:
        """End the nodes and everything that runs on them; returns when all of it is gone."""
        if not self._state.exists():
            return
        nodes = [psutil.Process(pid) for pid in json.loads(self._state.read_text())["pids"] if _is_alive(pid)]
        below = [process for node in nodes for process in _descendants(node)]
        for node in reversed(nodes):
            with suppress(psutil.NoSuchProcess):
                node.terminate()
        left = _still_alive(nodes, STOP_GRACE_S) + _still_alive(below, WORKER_GRACE_S)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        _still_alive(left, WORKER_GRACE_S)
        self._state.unlink()


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _still_alive(processes: Sequence[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Those that have not ended within the time. A zombie has: its parent may be one that never looks."""
    deadline = time.monotonic() + timeout_s
    left = list(processes)
    while left := [process for process in left if process.is_running() and _is_alive(process.pid)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return left


def _is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _wait_for_port(port: int, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), 1):
                return
        except OSError:
            time.sleep(0.1)
    raise ConnectionError(f"Ray did not open its port 127.0.0.1:{port} within {timeout_s:.0f} s")

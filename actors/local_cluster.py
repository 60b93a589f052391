"""Ray nodes on this machine, one per region, on loopback. Does not import Ray: it starts `ray start` processes.

On real machines the nodes are started by Ray's cluster launcher (cluster.yaml) instead.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from actors.environment import run_directory
from actors.names import placement
from engine.config.schema import FleetConfig

NODE_START_TIMEOUT_S = 60
STOP_GRACE_S = 15
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
        port = _free_port()
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
        """End the nodes and everything that runs on them."""
        if not self._state.exists():
            return
        pids = json.loads(self._state.read_text())["pids"]
        for pid in reversed(pids):
            if _is_alive(pid):
                os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_GRACE_S
        while time.monotonic() < deadline and any(_is_alive(pid) for pid in pids):
            time.sleep(0.1)
        for pid in pids:
            if _is_alive(pid):
                os.killpg(pid, signal.SIGKILL)
        self._state.unlink()


def _is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for_port(port: int, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), 1):
                return
        except OSError:
            time.sleep(0.1)
    raise ConnectionError(f"Ray did not open its port 127.0.0.1:{port} within {timeout_s:.0f} s")

"""Ray nodes on this machine, on loopback, one per region or shard: processes of actors/local_node.py. Imports no Ray.

On real machines the nodes are started by Ray's cluster launcher (cluster.yaml) or by systemd instead.

What was started is in run/cluster.json: process ids with the time of their start, so that after a reboot no stranger is
taken for a node. Whoever is left of a cluster whose nodes were killed is found by the fleet's token in its environment.
The state of Ray's head is in run/head, so that its process can die and return; it goes with its cluster.
"""

import fcntl
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from actors.environment import HEAD_STORAGE, HEAD_STORAGE_PATH, TOKEN_FILE, run_directory
from actors.names import LOOPBACK
from actors.placing import placement
from engine.config.schema import FleetConfig, RegionConfig
from engine.ops.free_port import free_port
from engine.ops.own_module import own_module

NODE_START_TIMEOUT_S = 60
SOCKETS_TIMEOUT_S = 60
SOCKETS = ("raylet", "plasma_store")
STOP_GRACE_S = 15
WORKER_GRACE_S = 5  # after their node has ended: they have nothing left to do
LOCAL_STORE_BYTES = 150 << 20
LONGEST_RAY_DIRECTORY = 36  # Ray puts sockets below it, whose paths have at most 107 bytes
SESSIONS_KEPT = 3
RAY_PART = "/site-packages/ray/"
LOG_TAIL_BYTES = 2000


class LocalCluster:
    """Ray nodes on this machine, one per region or shard, on loopback, supervised by `ray start --block` processes."""

    def __init__(self, config: FleetConfig) -> None:
        self._config = config
        self._directory = run_directory(config)
        self._state = self._directory / "cluster.json"

    def address(self) -> str:
        """Address of the running cluster; FileNotFoundError if none was started here."""
        return str(self._read()["address"])

    def start(self) -> str:
        """Start the nodes, if not all of them run; returns the address. Several fleets can share a machine.

        ConnectionError, with what the node said: it does not start.
        """
        with self._alone():
            if self._state.exists() and not self.fallen():
                return self.address()
            self.stop()  # what is left of one of which a node was killed
            self._forget_sessions()
            self._forget_head()
            address = f"{LOOPBACK}:{free_port()}"
            nodes: dict[str, subprocess.Popen[bytes]] = {}
            try:
                for region in self._config.regions:
                    nodes[region.name] = self._start_node(region, address, is_head=not nodes)
                    self._write(address, nodes)
                    if len(nodes) == 1:
                        self._wait_for_head(nodes[region.name], address)
                    if len(nodes) < len(self._config.regions):
                        self._wait_for_sockets(region.name, nodes[region.name], len(nodes))
            except BaseException:
                self.stop()
                raise
            return address

    def _start_node(self, region: RegionConfig, address: str, *, is_head: bool) -> subprocess.Popen[bytes]:
        command = [
            *own_module("actors.local_node"),
            *("start", "--block"),
            f"--node-ip-address={LOOPBACK}",
            "--num-cpus=2",
            f"--resources={json.dumps(dict.fromkeys(placement(region), 1))}",
            f"--object-store-memory={LOCAL_STORE_BYTES}",
            "--disable-usage-stats",
            "--include-log-monitor=false",  # it would carry the actors' logs to commands, which do not show them
        ]
        environment = {**os.environ, "RAY_TMPDIR": str(self.ray_directory())}
        if is_head:
            environment |= {**HEAD_STORAGE, HEAD_STORAGE_PATH: str(self._head_state())}
            command += ["--head", f"--port={address.rpartition(':')[2]}"]
            command += ["--include-dashboard=false", "--no-monitor"]  # there is nothing to scale
        else:
            command += [f"--address={address}"]
        with self.log_file(region.name).open("ab") as output:
            return subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=environment,
            )

    def log_file(self, region: str) -> Path:
        """What the Ray node of a region says."""
        return self._directory / f"ray-{region}.log"

    def ray_directory(self) -> Path:
        """Below it, in `ray`, Ray keeps its sessions with the logs of the actors: the run directory, unless the
        environment says otherwise or the path is too long for its sockets."""
        own = self._directory if len(str(self._directory)) <= LONGEST_RAY_DIRECTORY else Path("/tmp")
        return Path(os.environ.get("RAY_TMPDIR") or own)

    def logs(self) -> Path:
        """The directory of the actors' logs."""
        return self.ray_directory() / "ray" / "session_latest" / "logs"

    def running(self) -> bool:
        """Whether a node of it lives."""
        return any(True for _ in self._nodes())

    def fallen(self) -> list[str]:
        """Regions whose node does not run, of a cluster that was started here."""
        nodes = self._read()["nodes"]
        alive = {process.pid for process in self._nodes()}
        return [r.name for r in self._config.regions if nodes.get(r.name, (0, 0))[0] not in alive]

    def check_nodes(self) -> None:
        """ConnectionError with the last words of a node that has ended."""
        for region in self.fallen():
            raise ConnectionError(
                f"the Ray node of region {region} has ended. {_last_words(self.log_file(region))}"
            )

    def stop(self) -> None:
        """End the nodes and everything that runs on them; returns when all of it is gone."""
        nodes = list(self._nodes())
        below = [process for node in nodes for process in _descendants(node)]
        for node in reversed(nodes):
            with suppress(psutil.NoSuchProcess):
                node.terminate()
        left = _still_alive(nodes, STOP_GRACE_S) + _still_alive(below, WORKER_GRACE_S)
        end_at_once([*left, *self._orphans()])
        self._state.unlink(missing_ok=True)
        self._forget_head()

    def _head_state(self) -> Path:
        return self._directory / "head"

    def _forget_head(self) -> None:
        """A cluster that starts must not find the actors of another."""
        shutil.rmtree(self._head_state(), ignore_errors=True)

    def _nodes(self) -> Iterator[psutil.Process]:
        if not self._state.exists():
            return
        state = self._read()
        for pid, started in state["nodes"].values():
            if state["boot"] == _boot() and _started(pid) == started:
                with suppress(psutil.NoSuchProcess):
                    yield psutil.Process(pid)

    def _orphans(self) -> Iterator[psutil.Process]:
        """Ray's processes with this fleet's token, that is, those that outlived their nodes."""
        token = str(self._directory / TOKEN_FILE)
        for process in processes_with("RAY_AUTH_TOKEN_PATH", token):
            with suppress(psutil.Error):
                if any(part.startswith("ray::") or RAY_PART in part for part in process.cmdline()[:3]):
                    yield process

    def _read(self) -> dict[str, Any]:
        text = self._state.read_text()
        try:
            state = dict(json.loads(text))
            return {"address": state["address"], "boot": state["boot"], "nodes": state["nodes"]}
        except (ValueError, KeyError) as error:
            raise ConnectionError(
                f"{self._state} does not tell which Ray nodes run ({error!r}): end the processes of this fleet that "
                f"still run, and remove the file"
            ) from None

    def _write(self, address: str, nodes: Mapping[str, subprocess.Popen[bytes]]) -> None:
        state = {
            "address": address,
            "boot": _boot(),
            "nodes": {region: (node.pid, _started(node.pid)) for region, node in nodes.items()},
        }
        draft = self._state.with_suffix(".new")
        draft.write_text(json.dumps(state))
        draft.replace(self._state)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Of several `up` at once one starts the nodes, the others find them."""
        with (self._directory / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _wait_for_head(self, node: subprocess.Popen[bytes], address: str) -> None:
        host, port = address.split(":")
        log_file = self.log_file(self._config.regions[0].name)
        deadline = time.monotonic() + NODE_START_TIMEOUT_S
        while time.monotonic() < deadline:
            if node.poll() is not None:
                raise ConnectionError(f"Ray ended with status {node.returncode}. {_last_words(log_file)}")
            with suppress(OSError), socket.create_connection((host, int(port)), 1):
                return
            time.sleep(0.1)
        raise ConnectionError(
            f"Ray did not open its port {address} within {NODE_START_TIMEOUT_S} s. {_last_words(log_file)}"
        )

    def _wait_for_sockets(self, region: str, node: subprocess.Popen[bytes], count: int) -> None:
        """Until so many nodes listen on theirs. Ray numbers them by what is there: two nodes that start at the same
        moment choose the same ones, and one of them dies."""
        directory = self.logs().parent / "sockets"
        deadline = time.monotonic() + SOCKETS_TIMEOUT_S
        found: dict[str, int] = {}
        while time.monotonic() < deadline:
            if node.poll() is not None:
                words = _last_words(self.log_file(region))
                raise ConnectionError(f"region {region}: Ray ended with status {node.returncode}. {words}")
            found = {kind: len(list(directory.glob(f"{kind}*"))) for kind in SOCKETS}
            if min(found.values()) >= count:
                return
            time.sleep(0.05)
        there = ", ".join(f"{number} of {kind}" for kind, number in found.items())
        raise ConnectionError(
            f"region {region}: Ray has not opened its sockets in {directory} within {SOCKETS_TIMEOUT_S} s "
            f"(there are {there}; expected {count} of each). {_last_words(self.log_file(region))}"
        )

    def _forget_sessions(self) -> None:
        """Ray keeps the files of every session for ever; ours are kept for the last few."""
        sessions = sorted((self._directory / "ray").glob("session_2*"))  # named after their time
        for session in sessions[:-SESSIONS_KEPT]:
            shutil.rmtree(session, ignore_errors=True)


def processes_with(name: str, value: str) -> Iterator[psutil.Process]:
    """Processes of this machine that were started with a variable of that value, this one left out."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(name) == value:
                yield process


def end_at_once(processes: Sequence[psutil.Process]) -> None:
    """Kill them; returns when they are gone."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    _still_alive(processes, WORKER_GRACE_S)


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _still_alive(processes: Sequence[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Those that have not ended within the time. A zombie has: its parent may be one that never looks."""
    deadline = time.monotonic() + timeout_s
    left = list(processes)
    while left := [process for process in left if process.is_running() and _started(process.pid)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return left


def _started(pid: int) -> int:
    """When a process was started, in ticks since the boot; 0 if it has ended."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _last_words(log_file: Path) -> str:
    """The end of a log, for an error message."""
    if not log_file.exists():
        return f"{log_file} is not there"
    with log_file.open("rb") as file:
        file.seek(max(0, log_file.stat().st_size - LOG_TAIL_BYTES))
        text = file.read().decode("utf-8", "replace").strip()
    return f"{log_file} ends with:\n{text}"

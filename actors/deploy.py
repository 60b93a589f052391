"""Everything that starts Ray processes and Ray actors.

`LocalCluster` runs a whole fleet on one machine: one Ray node per region, on loopback. On real machines the nodes
are started by Ray's cluster launcher (cluster.yaml); `start_fleet` is the same for both.
"""

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util import list_named_actors

from actors.egress_ip import EgressIpActor
from actors.environment import run_directory
from actors.fleet import FleetActor
from actors.isp_pool import IspPoolActor
from actors.names import FLEET, NAMESPACE, parse_pool, placement, pool_actor, region_actor, source_actor
from actors.region import RegionActor
from engine.config.schema import FleetConfig
from engine.region.ports import PoolName, PoolPort

log = logging.getLogger(__name__)

RESOURCE_SHARE = 0.001
NODE_START_TIMEOUT_S = 60
LAUNCH_TRIES = 50
LAUNCH_RETRY_S = 0.1
CALL_DEADLINE_S = 30.0
STOP_GRACE_S = 15
LOCAL_STORE_BYTES = 150 << 20


async def call(handle: Any, method: str, *args: Any, timeout_s: float = CALL_DEADLINE_S) -> Any:
    """Call an actor's method. ConnectionError: the actor is away and the outcome unknown.

    An exception raised by the method itself comes out as it was raised there.
    """
    try:
        return await asyncio.wait_for(getattr(handle, method).remote(*args), timeout_s)
    except RayActorError as error:
        raise ConnectionError(f"{method}: {error}") from error
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else RuntimeError(str(error)) from error
    except TimeoutError:
        raise TimeoutError(f"{method}: no answer within {timeout_s} s") from None
    except RayError as error:
        raise ConnectionError(f"{method}: {error}") from error


def find(name: str) -> Any:
    """Handle of a running actor; ConnectionError if there is none of that name."""
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError as error:
        raise ConnectionError(f"no actor {name}") from error


def _options(name: str, region: str | None, *, restarts: int, concurrency: int = 1000) -> dict[str, Any]:
    options: dict[str, Any] = {
        "name": name,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "num_cpus": 0,
        "max_restarts": restarts,
        "max_task_retries": 0,
        "max_concurrency": concurrency,
        "enable_task_events": False,
        "get_if_exists": True,
    }
    if region is not None:
        options["resources"] = {placement(region): RESOURCE_SHARE}
    return options


class RayRegionLink:
    """A region, as its pools and sources reach it. The handle is looked up at first use and kept."""

    def __init__(self, region: str) -> None:
        self._region = region
        self._handle: Any = None

    def _actor(self) -> Any:
        if self._handle is None:
            self._handle = find(region_actor(self._region))
        return self._handle

    async def settle(self, report: bytes) -> int:
        return int(await call(self._actor(), "settle", report))

    async def get_state(self, key: str) -> bytes | None:
        state: bytes | None = await call(self._actor(), "get_state", key)
        return state

    async def put_state(self, key: str, value: bytes) -> None:
        await call(self._actor(), "put_state", key, value)


class RayPool:
    """A pool actor, as its region reaches it."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def resume(self, epoch: int) -> bytes:
        return bytes(await call(self._handle, "resume", epoch))

    async def deliver(self, header: bytes, entries: bytes) -> None:
        try:
            await call(self._handle, "deliver", header, entries)
        except TimeoutError as error:
            raise ConnectionError(str(error)) from error

    async def acknowledge(self, sequence: int) -> None:
        await call(self._handle, "acknowledge", sequence)

    async def stop(self, deadline_s: float) -> None:
        await call(self._handle, "stop", deadline_s, timeout_s=deadline_s + CALL_DEADLINE_S)


class RayNodeServices:
    """What the actors of one region ask of Ray (actors/ports.py, NodeServices). Picklable: names only."""

    def __init__(self, config_json: str, region: str) -> None:
        self._config_json = config_json
        self._region = region
        self._sources: dict[str, Any] = {}

    def region_link(self) -> RayRegionLink:
        return RayRegionLink(self._region)

    async def launch(self, name: PoolName, on_death: Callable[[PoolName], None]) -> PoolPort:
        """Start the pool, or find it running. Its process is watched through a pidfd: its death wakes us at once."""
        actor = pool_actor(self._region, name)
        for _ in range(LAUNCH_TRIES):
            handle = (
                ray.remote(IspPoolActor)
                .options(**_options(actor, self._region, restarts=0))
                .remote(
                    self._config_json,
                    self._region,
                    name.provider,
                    RayNodeServices(self._config_json, self._region),
                )
            )
            try:
                pid = int(await call(handle, "pid", timeout_s=NODE_START_TIMEOUT_S))
                watch_process(pid, lambda: on_death(name))
            except (ConnectionError, ProcessLookupError) as error:
                log.info("pool %s: not running yet: %s", name, error)
                await asyncio.sleep(LAUNCH_RETRY_S)
                continue
            return RayPool(handle)
        raise ConnectionError(f"pool {name} of region {self._region} does not start")

    async def survivors(self) -> list[PoolName]:
        found = []
        for entry in list_named_actors(all_namespaces=True):
            name = parse_pool(entry["name"], self._region) if entry["namespace"] == NAMESPACE else None
            if name is not None:
                found.append(name)
        return found

    async def observe(self, source: str, summary: bytes) -> bytes:
        handle = self._sources.get(source)
        if handle is None:
            handle = self._sources[source] = find(source_actor(source))
        return bytes(await call(handle, "observe", summary, timeout_s=2.0))


class RayFleetServices:
    """What the Fleet actor asks of Ray (actors/ports.py, FleetServices)."""

    def __init__(self, config_json: str) -> None:
        self._config_json = config_json

    async def ensure_region(self, region: str) -> None:
        ray.remote(RegionActor).options(**_options(region_actor(region), region, restarts=-1)).remote(
            self._config_json, region, RayNodeServices(self._config_json, region)
        )

    async def ensure_source(self, source: str, region: str) -> None:
        ray.remote(EgressIpActor).options(**_options(source_actor(source), region, restarts=-1)).remote(
            source, RayNodeServices(self._config_json, region)
        )

    async def call(self, actor: str, method: str, *args: Any, timeout_s: float) -> Any:
        return await call(find(actor), method, *args, timeout_s=timeout_s)


def watch_process(pid: int, on_exit: Callable[[], None]) -> None:
    """Call `on_exit` on the running loop as soon as the process ends. ProcessLookupError if it has already."""
    loop = asyncio.get_running_loop()
    descriptor = os.pidfd_open(pid)

    def ended() -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        on_exit()

    loop.add_reader(descriptor, ended)


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


def connect_ray(address: str) -> None:
    """Join the cluster as a driver, if this process has not yet."""
    if not ray.is_initialized():
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.WARNING)


def start_fleet(config: FleetConfig, address: str) -> None:
    """Start the Fleet actor on the cluster; returns when every region answers."""
    connect_ray(address)
    config_json = config.model_dump_json()
    _wait_for_nodes(config)
    fleet: Any = (
        ray.remote(FleetActor)
        .options(**_options(FLEET, None, restarts=-1))
        .remote(config_json, RayFleetServices(config_json))
    )
    ray.get(fleet.start.remote(), timeout=180)


def _wait_for_nodes(config: FleetConfig) -> None:
    wanted = {placement(region.name) for region in config.regions}
    deadline = time.monotonic() + NODE_START_TIMEOUT_S
    while time.monotonic() < deadline:
        missing = wanted - set(ray.cluster_resources())  # type: ignore[no-untyped-call]
        if not missing:
            return
        time.sleep(0.1)
    raise ConnectionError(f"no node of the cluster carries the resources {', '.join(sorted(missing))}")


def stop_fleet(config: FleetConfig) -> None:
    """Stop the actors in order: regions leave everything unsent on disk."""
    for region in config.regions:
        try:
            ray.get(ray.get_actor(region_actor(region.name), namespace=NAMESPACE).stop.remote(), timeout=30)
        except (ValueError, RayActorError, GetTimeoutError) as error:
            log.warning("region %s: not stopped in order: %s", region.name, error)

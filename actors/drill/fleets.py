"""The fleets of drills: a temporary one on this machine against a sink, or the one that runs.

Both give the same: a client, the machines with their processes, and what arrived where. Times are monotonic seconds of
this process, unless it is said otherwise. On the live fleet the arrivals are the delivered events of its own logs;
nothing is submitted, its own traffic is the load.
"""

import asyncio
import importlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from actors.drill.machine import DrillMachine
from actors.drill.machines import Here, Machine, Machines
from actors.environment import TOKEN_FILE, prepare, run_directory
from actors.local_cluster import LocalCluster
from actors.names import FLEET, region_actor
from engine.config.load import parse_fleet
from engine.config.schema import FleetConfig
from engine.drill.events import EventLogs
from engine.drill.figures import Arrival
from engine.drill.nameserver import Nameserver
from engine.drill.scenarios import SCENARIOS, TEMPORARY_REGIONS, CannotRunHere
from engine.sink.process import SinkProcess
from engine.values.message import Message, Receipt
from engine.values.submission import encode_submission

DOMAIN = "drill.invalid"
BLOCK_REPLY = (
    "550 5.7.1 Unfortunately, messages from [127.0.1.11] weren't sent. Please contact your Internet service provider "
    "since part of their network is on our block list (S3140)."
)
LONGEST_RAY_DIRECTORY = 30  # Ray puts sockets below it, whose paths have at most 107 bytes
TMPFS_BYTES = 192 << 20
MIN_FREE_BYTES = 16 << 20


class DrillFleet(Protocol):
    """What a drill needs of a fleet."""

    config: FleetConfig
    is_live: bool
    machines: Machines

    async def refresh(self) -> list[str]:
        """Have the others tell all until now; what could not be read."""

    def arrivals(self) -> list[Arrival]: ...

    def marked(self) -> set[str]: ...

    def refusals_of(self, ip: str) -> list[float]: ...


class RunningFleet:
    """Calls into a fleet that runs. Ray is imported on first use, when the environment is prepared."""

    def __init__(self, config: FleetConfig) -> None:
        self.config = config
        self._deploy = importlib.import_module("actors.deploy")
        self._calls = importlib.import_module("actors.ray_calls")
        self._client: Any = importlib.import_module("actors.client").AsyncClient(config)
        self._json = config.model_dump_json()
        self._fleet = self._calls.NamedActor(FLEET)

    async def submit_to(self, region: str, batch: list[Message]) -> Receipt:
        """As clients do: with copies another region takes it if this one is silent."""
        if self.config.fleet.replicas:
            covered: Receipt = await self._client.submit(batch, region=region)
            return covered
        receipt: Receipt = await self._client.submit_encoded(
            region, *encode_submission(batch, os.urandom(16))
        )
        return receipt

    async def health(self) -> dict[str, str]:
        return dict(await self._fleet.call("health", timeout_s=2.0))

    async def snapshot(self) -> dict[str, Any]:
        return dict(await self._client.snapshot())

    async def region(self, name: str) -> dict[str, Any]:
        """One region's snapshot. ConnectionError, TimeoutError: it gives none."""
        return dict(await self._calls.NamedActor(region_actor(name)).call("snapshot", timeout_s=2.0))

    async def pools(self, region: str) -> dict[str, int]:
        """Process ids of a region's pools by name. ConnectionError, TimeoutError: it does not say."""
        pools = await self._calls.NamedActor(region_actor(region)).call("pools", timeout_s=2.0)
        return {str(pool.name): pool.pid for pool in pools if pool.name is not None}

    async def transitions(self) -> list[tuple[float, str, str]]:
        """When which region got which standing, by Fleet; monotonic seconds of its own machine."""
        rows = await self._fleet.call("transitions", timeout_s=2.0)
        return [(at_ns / 1e9, region, standing) for at_ns, region, standing, _ in rows]

    async def cut(self, region: str, seconds: float, way: str) -> None:
        """Have a region lose what Fleet and its peers say, or what it says to them (actors/partition.py)."""
        await self._calls.NamedActor(region_actor(region)).call("cut", seconds, way, timeout_s=5.0)

    async def head_answers(self) -> bool:
        """Whether the head of Ray does. ConnectionError, TimeoutError: not yet."""
        return bool(await self._calls.ask_head("list actors", self._deploy.actor_names, timeout_s=2.0))

    async def queued(self) -> int | None:
        """Messages that wait in all regions; None if one gives no answer."""
        try:
            snapshot = await self.snapshot()
        except (ConnectionError, TimeoutError):
            return None
        counts = [region.get("counts", {}).get("queued") for region in snapshot["regions"].values()]
        return None if None in counts else sum(counts)


def machines_of(config: FleetConfig) -> Machines:
    """Of a fleet that runs, to whose cluster this process belongs. ConnectionError: Ray's head does not answer."""
    names = [region.name for region in config.regions]
    config_json = config.model_dump_json()
    if config.ray.address is None:
        token = str(run_directory(config) / TOKEN_FILE)
        machine = Machine(Here(DrillMachine(config_json, names, token)))
        return Machines(dict.fromkeys(names, machine), machine)
    found: Machines = importlib.import_module("actors.drill.nodes").machines_on_nodes(config)
    return found


class TemporaryFleet:
    """Two regions, two sources each, one sink, all on loopback below a directory; a context manager."""

    is_live = False

    def __init__(self, directory: Path, scenario: str, *, block_after: int = 0) -> None:
        self._directory = directory
        self._scenario = scenario
        self._block_after = block_after
        self._mounted: Path | None = None
        self._nameserver: Nameserver | None = None
        self.config: FleetConfig
        self.running: RunningFleet
        self.machines: Machines

    def __enter__(self) -> "TemporaryFleet":
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        personalities = self._directory / "personalities.yaml"
        personality: dict[str, Any] = {}
        if self._scenario == "source-block":
            personality["block"] = {
                "clients": ["127.0.1.11"],
                "after": self._block_after,
                "reply": BLOCK_REPLY,
            }
        personalities.write_text(json.dumps({"personalities": {"drill": personality}}))
        self._sink = SinkProcess(personalities, self._directory / "sink.log").start()
        if self._scenario == "disk-full":
            self._mount(self._directory / "spool" / "eu")
        extra: dict[str, Any] = {}
        if self._scenario == "dns":
            addresses = {"eu": ["192.0.2.1"], "us": ["192.0.2.2"]}
            self._nameserver = Nameserver(self._directory / "knot", addresses)
            extra["dns_failover"] = self._nameserver.start()
        scenario = SCENARIOS[self._scenario]
        if scenario.needs_copies or scenario.gets_copies:
            extra["fleet"] = {"name": "drill", "replicas": 1, "degraded": "accept_local"}
        self.config = temporary_config(self._directory, self._sink.addresses["drill"][1], extra)
        if len(str(self._directory)) <= LONGEST_RAY_DIRECTORY:
            os.environ.setdefault(
                "RAY_TMPDIR", str(self._directory)
            )  # so that its files go away with the rest
        prepare(self.config)
        self._cluster = LocalCluster(self.config)
        self.start_actors()

    def start_actors(self) -> None:
        """Nodes and actors; also again, after their end."""
        deploy = importlib.import_module("actors.deploy")
        deploy.start_fleet(self.config, self._cluster.start(), self._cluster.check_nodes)
        self.running = RunningFleet(self.config)
        self.machines = machines_of(self.config)

    def stop_actors(self) -> None:
        """In order where they answer, and then all processes."""
        deploy = importlib.import_module("actors.deploy")
        try:
            if hasattr(self, "running"):
                deploy.stop_fleet(self.config)
        finally:
            self.end_processes()

    def end_processes(self) -> None:
        deploy = importlib.import_module("actors.deploy")
        deploy.leave_ray()
        if hasattr(self, "_cluster"):
            self._cluster.stop()

    def __exit__(self, *_: object) -> None:
        try:
            if hasattr(self, "_cluster"):
                self.end_processes()
        finally:
            if hasattr(self, "_sink"):
                self._sink.stop()
            if self._nameserver is not None:
                self._nameserver.stop()
            if self._mounted is not None:
                subprocess.run(["umount", "-l", str(self._mounted)], check=False)

    def _mount(self, path: Path) -> None:
        """A small disk of its own for one region's spool."""
        path.mkdir(parents=True, mode=0o700)
        if os.geteuid() != 0 or shutil.which("mount") is None:
            raise CannotRunHere("disk-full: only root can mount a small disk (tmpfs) to fill")
        command = [
            "mount",
            "-t",
            "tmpfs",
            "-o",
            f"size={TMPFS_BYTES},mode=0700",
            "sendfleet-drill",
            str(path),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotRunHere(f"disk-full: a small disk cannot be mounted here: {done.stderr.strip()}")
        self._mounted = path

    def ballast(self) -> Path:
        assert self._mounted is not None
        return self._mounted / "ballast"

    async def refresh(self) -> list[str]:
        """The sink's log and the events are on this machine, and read when they are asked for."""
        return []

    def arrivals(self) -> list[Arrival]:
        names = {source.ip: source.name for source in self.config.sources}
        return [
            Arrival(row.at_ns / 1e9, row.recipient, names.get(row.client, row.client))
            for row in self._sink.log().acceptances
        ]

    def marked(self) -> set[str]:
        events = EventLogs(Path(self.config.events.directory)).of_messages()
        return {str(event["recipient"]) for event in events if event["possible_duplicate"]}

    def refusals_of(self, ip: str) -> list[float]:
        return [row.at_ns / 1e9 for row in self._sink.log().refusals if row.client == ip]


class LiveFleet:
    """The fleet of a fleet.yaml, which runs; a context manager that leaves it as it is."""

    is_live = True

    def __init__(self, config: FleetConfig) -> None:
        self.config = config
        self.running = RunningFleet(config)
        self.machines = machines_of(config)

    async def begin(self) -> None:
        """Events from now on count; those of before are not even read."""
        await self.machines.begin()

    async def refresh(self) -> list[str]:
        """Read what the fleet has settled since."""
        return await self.machines.refresh()

    def __enter__(self) -> "LiveFleet":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def arrivals(self) -> list[Arrival]:
        names = [
            source.name for source in self.config.sources
        ]  # events of messages have the place in this list
        return [
            Arrival(row.at_s, row.message, names[row.source])
            for row in self.machines.settled()
            if row.is_delivered
        ]

    def marked(self) -> set[str]:
        return {row.message for row in self.machines.settled() if row.is_marked}

    def refusals_of(self, ip: str) -> list[float]:
        return []


def temporary_config(directory: Path, port: int, extra: Mapping[str, Any]) -> FleetConfig:
    """Two regions with two sources each; everything goes to one port of this machine."""
    retry = {"first": "1s", "factor": 1, "max": "1s", "jitter": 0.1, "expire": "10m"}
    return parse_fleet(
        {
            "fleet": {"name": "drill"},
            "spool": {
                "directory": str(directory / "spool"),
                "map_size": "1GiB",
                "min_free": f"{MIN_FREE_BYTES}B",
                "segment_size": "8MiB",
            },
            "events": {"directory": str(directory / "events")},
            "regions": [{"name": name, "number": number} for number, name in enumerate(TEMPORARY_REGIONS, 1)],
            "sources": [
                {
                    "name": f"{region}-{n}",
                    "region": region,
                    "ip": f"127.0.{number}.{10 + n}",
                    "ehlo": f"mta{n}.{region}.{DOMAIN}",
                    "streams": ["transactional", "notification", "marketing"],
                    "netblock": f"127.0.{number}.{8 * n}/29",
                }
                for number, region in enumerate(TEMPORARY_REGIONS, 1)
                for n in (1, 2)
            ],
            "routes": [{"domains": [DOMAIN], "hosts": [f"127.0.0.1:{port}"], "provider": "outlook"}],
            "providers": {"outlook": {"rate": "unlimited"}},
            "tls": {
                "exceptions": [{"provider": "outlook", "mode": "disabled", "reason": "drill on loopback"}]
            },
            "retry": dict.fromkeys(("transactional", "notification", "marketing"), retry),
            **extra,
        }
    )


async def wait_drained(fleet: RunningFleet, deadline_s: float) -> bool:
    """Whether nothing is queued any more before the deadline."""
    end_s = time.monotonic() + deadline_s
    while await fleet.queued() != 0:
        if time.monotonic() > end_s:
            return False
        await asyncio.sleep(0.2)
    return True

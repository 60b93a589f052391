"""A fleet of two regions on a real Ray cluster of two nodes, against a real sink.

The settings of Ray's processes come from actors.environment, as in production. Ray's library keeps the first token
that it reads, so all clusters of one test run share one.
"""

import asyncio
import os
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import psutil

from actors.environment import HEAD_STORAGE, HEAD_STORAGE_PATH, TOKEN_FILE, prepare, run_directory
from actors.head_keeper import GCS, HeadKeeper
from engine.config.schema import FleetConfig
from engine.sink.process import SinkProcess
from engine.spool.audit import AuditReport, audit
from engine.values.message import Message
from engine.values.stream import Stream
from tests.support.region import fleet

REGIONS = ("eu", "us")
TOKEN = secrets.token_hex(32)
BODY = (
    b"From: a@example.com\r\nTo: b@example.org\r\nSubject: x\r\nMessage-ID: <%d@example.com>\r\n\r\nhello\r\n"
)


NODE_GONE_S = 90.0


def two_regions(directory: Path, port: int, **sections: Any) -> FleetConfig:
    """Two regions with two sources each, everything routed to one port of this machine."""
    return fleet_of(REGIONS, directory, port, **sections)


def two_shards_and_a_region(directory: Path, port: int, **sections: Any) -> FleetConfig:
    """Region us of one node, the first, and eu of two, eu-1 and eu-2."""
    regions = [
        {"name": "us", "number": 1},
        {"name": "eu-1", "number": 2, "shard_of": "eu"},
        {"name": "eu-2", "number": 3, "shard_of": "eu"},
    ]
    return fleet_of(("us", "eu-1", "eu-2"), directory, port, **{"regions": regions, **sections})


def fleet_of(names: Sequence[str], directory: Path, port: int, **sections: Any) -> FleetConfig:
    """Regions with two sources each, everything routed to one port of this machine."""
    sources = [
        {
            "name": f"{region}-{n}",
            "region": region,
            "ip": f"127.0.{number}.{10 + n}",
            "ehlo": f"mta{n}.{region}.example.com",
            "streams": ["transactional", "notification", "marketing"],
            "netblock": f"127.0.{number}.{8 * n}/29",
        }
        for number, region in enumerate(names, 1)
        for n in (1, 2)
    ]
    regions = [{"name": name, "number": number} for number, name in enumerate(names, 1)]
    return fleet(directory, port, **{"regions": regions, "sources": sources, **sections})


def prepare_ray(config: FleetConfig) -> None:
    """The environment of this process and of all that it starts, with the token of this test run."""
    directory = run_directory(config)
    directory.mkdir(parents=True, exist_ok=True)
    token = directory / TOKEN_FILE
    if not token.exists():
        token.write_text(TOKEN)
        token.chmod(0o600)
    prepare(config)


def messages(count: int, *, first: int = 0, domain: str = "example.org") -> list[Message]:
    return [
        Message("a@example.com", (f"user{n}@{domain}",), BODY % n, Stream.MARKETING)
        for n in range(first, first + count)
    ]


# ray::IspPoolActor.take, and while it is made ray::NAME:IspPoolActor.__init__
ACTOR_TITLE = re.compile(r"ray::(?:.*:)?(\w+Actor)\b")


def actor_processes(directory: str) -> dict[str, list[int]]:
    """Pids of the actors' processes by the names of their classes, of clusters below that Ray directory."""
    found: dict[str, list[int]] = {}
    for process in ray_processes(directory):
        try:
            title = process.cmdline()[0]
        except (psutil.Error, IndexError):
            continue
        actor = ACTOR_TITLE.match(title)
        if actor is not None:
            found.setdefault(actor[1], []).append(process.pid)
    return found


def drill_processes(directory: str) -> list[int]:
    """Pids of what drills have on nodes (actors/drill/nodes.py), of clusters below that Ray directory."""
    found = []
    for process in ray_processes(directory):
        try:
            is_found = process.cmdline()[:1][0].startswith("ray::DrillMachine")
        except (psutil.Error, IndexError):
            continue
        if is_found:
            found.append(process.pid)
    return found


def ray_processes(directory: str) -> Iterator[psutil.Process]:
    """Every process that was started below that Ray directory, except this one."""
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("RAY_TMPDIR") == directory:
                yield process
        except psutil.Error:
            continue


async def pools_of(region: str) -> dict[str, int]:
    """Pids of a region's pools by name; that of its spare under the empty name."""
    from actors.names import region_actor
    from actors.ray_calls import NamedActor

    pools = await NamedActor(region_actor(region)).ask("pools")
    return {str(pool.name or ""): pool.pid for pool in pools}


async def until(
    condition: Callable[[], Any], what: str = "the condition did not come true", seconds: float = 60.0
) -> None:
    """Wait for a condition (a coroutine function); the deadline is for a broken fleet, no promise about speed."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not await condition():
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(what)
        await asyncio.sleep(0.05)


def audits(config: FleetConfig) -> list[AuditReport]:
    return [audit(config.spool.directory / region.name) for region in config.regions]


def assert_conserved(config: FleetConfig, sink: SinkProcess, recipients: Sequence[str]) -> set[str]:
    """Nothing is lost, nothing is sent twice without the mark. Returns the recipients that got it twice."""
    for report in audits(config):
        assert report.is_clean, report.problems
        assert report.counts["queued"] == 0
    assert sum(report.accepted for report in audits(config)) == len(recipients)
    delivered, marked = delivered_events(config)
    missing = sorted(set(recipients) - delivered)
    assert not missing, (
        f"no delivered event of {missing[:5]}, {len(missing)} in all: {_told(config, missing)}"
    )
    assert delivered <= set(recipients)
    arrived = sink.log().recipients()
    assert set(arrived) == set(recipients)
    twice = {recipient for recipient, count in arrived.items() if count > 1}
    assert twice <= marked, f"sent twice without a mark: {sorted(twice - marked)[:10]}"
    return twice


def _told(config: FleetConfig, recipients: Sequence[str]) -> dict[str, object]:
    """For a failing test: what is known of them, and how much of the log is in which file."""
    import json

    lines = [
        (path, json.loads(line))
        for path in sorted(Path(config.events.directory).glob("*/events-*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    return {
        "events": [event for _, event in lines if event.get("recipient") in recipients[:5]],
        "files": Counter(str(path) for path, _ in lines),
        "audits": [report.counts for report in audits(config)],
    }


def delivered_events(config: FleetConfig) -> tuple[set[str], set[str]]:
    """Recipients of the delivered events, and those of them that are marked possible_duplicate."""
    import json

    delivered, marked = set(), set()
    for path in sorted(Path(config.events.directory).glob("*/events-*.jsonl")):
        for line in path.read_text().splitlines():
            event = json.loads(line)
            if event["event"] == "delivered":
                delivered.add(event["recipient"])
                if event["possible_duplicate"]:
                    marked.add(event["recipient"])
    return delivered, marked


class ClusterFleet:
    """The fleet on `ray.cluster_utils.Cluster`, one node per region, the first with the head; a context manager.

    `client` is an AsyncClient. The head's state is on disk, as it is on the cluster that `up` starts.
    """

    def __init__(self, config: FleetConfig) -> None:
        self.config = config
        self.client: Any = None
        self.nodes: dict[str, Any] = {}
        prepare_ray(config)

    def __enter__(self) -> Self:
        from ray.cluster_utils import Cluster

        from actors.client import AsyncClient
        from actors.deploy import start_fleet

        os.environ.update(HEAD_STORAGE)
        os.environ[HEAD_STORAGE_PATH] = str(run_directory(self.config) / "head")
        self._cluster: Any = Cluster()
        try:
            for region in self.config.regions:
                self.add_node(region.name)
            start_fleet(self.config, self._cluster.address)
        except BaseException:
            self._end()  # or it would go on beside all tests that follow
            raise
        self.client = AsyncClient(self.config)
        return self

    @property
    def address(self) -> str:
        """Of the head, as `ray.address` has it."""
        return str(self._cluster.address)

    def add_node(self, name: str) -> None:
        """The node of a region."""
        from actors.placing import placement

        region = next(region for region in self.config.regions if region.name == name)
        self.nodes[name] = self._cluster.add_node(
            num_cpus=1,
            resources=dict.fromkeys(placement(region), 1),
            object_store_memory=80 << 20,
            include_dashboard=False,
            no_monitor=True,
            include_log_monitor=False,
        )

    def remove_node(self, name: str) -> None:
        """Its processes end, not in order; not of the first region, which has the head. Returns when Ray knows."""
        import ray

        node = self.nodes.pop(name)
        self._cluster.remove_node(node, allow_graceful=False)
        deadline_s = time.monotonic() + NODE_GONE_S
        while any(row["Alive"] and row["NodeID"] == node.node_id for row in ray.nodes()):  # type: ignore[no-untyped-call]
            assert time.monotonic() < deadline_s, f"Ray takes the node of {name} for alive"
            time.sleep(0.1)

    async def until_covered(self) -> None:
        """Every region is live and has a standby that lacks nothing."""

        async def is_covered() -> bool:
            snapshot = await self.client.snapshot()
            return all(
                snapshot["standing"].get(name, {}).get("standing") == "live"
                and region.get("failover", {}).get("standby_complete")
                for name, region in snapshot["regions"].items()
            )

        await until(is_covered, "not every region is live and covered")

    async def until_settled(self) -> None:
        """Nothing is queued."""

        async def is_settled() -> bool:
            regions = (await self.client.snapshot())["regions"].values()
            return all(region["counts"]["queued"] == 0 for region in regions)

        await until(is_settled, "something is queued still", seconds=180.0)

    def kill_head(self) -> float:
        """SIGKILL of the head's process; nobody starts it again but `return_head`. Monotonic seconds."""
        process = self._cluster.head_node.all_processes[GCS][0].process
        at_s = time.monotonic()
        process.kill()
        process.wait()
        return at_s

    def return_head(self) -> None:
        """Start it again as actors/local_node.py does."""
        HeadKeeper(lambda node: node.dead_processes()).look(self._cluster.head_node)

    def __exit__(self, *_: object) -> None:
        from actors.deploy import stop_fleet

        try:
            stop_fleet(self.config)
        finally:
            self._end()

    def _end(self) -> None:
        import ray

        ray.shutdown()
        self._cluster.shutdown()
        for name in (*HEAD_STORAGE, HEAD_STORAGE_PATH):
            os.environ.pop(name, None)

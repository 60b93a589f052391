"""kill -9 on every kind of process of a fleet, in turn and all at once, while mail is in flight.

The assertion is the conservation law: every spool audits clean with nothing queued, every message that got a receipt
is at the sink, and what is there twice is marked possible_duplicate. The kills come at random moments from a seed,
which a failure shows. `make soak` runs it in full (20,000 messages, ten rounds); the defaults are for CI.
"""

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from engine.config.schema import FleetConfig
from engine.sink.process import SinkProcess
from tests.support.ray_fleet import (
    actor_processes,
    assert_conserved,
    audits,
    messages,
    prepare_ray,
    ray_processes,
    two_regions,
    until,
)

pytestmark = [pytest.mark.ray, pytest.mark.crash]

MESSAGES = int(os.environ.get("SENDFLEET_CRASH_MESSAGES", "1000"))
ROUNDS = int(os.environ.get("SENDFLEET_CRASH_ROUNDS", "1"))
SEED = int(os.environ.get("SENDFLEET_CRASH_SEED", "0")) or time.time_ns() % 1_000_000
KINDS = ("RegionActor", "IspPoolActor", "EgressIpActor", "FleetActor")
EXPECTED = {"RegionActor": 2, "IspPoolActor": 4, "EgressIpActor": 4, "FleetActor": 1}  # each pool has a spare
BATCH = 100
PAUSE_S = (0.1, 2.5)
DRAIN_S = 300.0

# The sink takes its time over each final reply, so that mail is on the wire at any moment: 80 messages a second.
PERSONALITY = "personalities:\n  slow: {delay: {final: 300ms}}\n"
IN_FLIGHT = 50


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[SinkProcess]:
    config = tmp_path / "personalities.yaml"
    config.write_text(PERSONALITY)
    with SinkProcess(config, tmp_path / "sink.log") as process:
        yield process


def config_for(tmp_path: Path, sink: SinkProcess) -> FleetConfig:
    return two_regions(
        tmp_path,
        sink.addresses["slow"][1],
        providers={"default": {"rate": "unlimited", "max_connections": 6, "messages_per_connection": 20}},
        limits={"pool_credits": 1000, "batch": 200},
    )


class Sender:
    """Submits messages; `count` have got a receipt."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._lock = asyncio.Lock()
        self.count = 0

    async def submit(self, count: int) -> None:
        async with self._lock:
            for _ in range(0, count, BATCH):
                receipt = await self._client.submit(messages(BATCH, first=self.count))
                assert not receipt.errors
                self.count += BATCH


class Killer:
    """Kills actors' processes at random moments; `log` tells what and when."""

    def __init__(self, config: FleetConfig, sender: Sender, rng: random.Random) -> None:
        self._config = config
        self._sender = sender
        self._rng = rng
        self.log: list[str] = []

    async def _pids(self, kind: str) -> list[int]:
        """All processes of the kind, as soon as they are all there (again)."""
        found: list[int] = []

        async def all_there() -> bool:
            nonlocal found
            processes = await asyncio.to_thread(actor_processes, os.environ["RAY_TMPDIR"])
            found = processes.get(kind, [])
            return len(found) == EXPECTED[kind]

        await until(all_there, f"not all of {kind} came back: {found}")
        return found

    async def kill_in_turn(self, kind: str) -> None:
        """Each process of the kind, one after the other; of pools, whose spares count as well, two at a time."""
        step = 2 if kind == "IspPoolActor" else 1
        for number in range(0, EXPECTED[kind], step):
            pids = sorted(await self._pids(kind))
            await self._kill(pids[number : number + step], kind)

    async def kill_all(self) -> None:
        pids = [pid for kind in KINDS for pid in await self._pids(kind)]
        await self._kill(pids, "all at once")

    def _queued(self) -> list[int]:
        return [report.counts["queued"] for report in audits(self._config)]

    async def _kill(self, pids: list[int], what: str) -> None:
        await asyncio.sleep(self._rng.uniform(*PAUSE_S))
        while min(self._queued()) < IN_FLIGHT:
            await self._sender.submit(BATCH)
        self.log.append(f"{time.strftime('%T')} queued {self._queued()}: {what} {pids}")
        processes = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
        for process in processes:
            process.kill()
        await asyncio.to_thread(psutil.wait_procs, processes, timeout=10)


def test_every_process_is_killed_while_mail_is_in_flight(tmp_path: Path, sink: SinkProcess) -> None:
    config = config_for(tmp_path, sink)
    prepare_ray(config)
    import ray

    from actors.client import AsyncClient
    from actors.deploy import start_fleet, stop_fleet
    from actors.local_cluster import LocalCluster

    rng = random.Random(SEED)
    client = AsyncClient(config)
    sender = Sender(client)
    killer = Killer(config, sender, rng)
    cluster = LocalCluster(config)

    async def scenario() -> None:
        await sender.submit(2 * BATCH)  # so that every pool has started
        submitting = asyncio.create_task(sender.submit(MESSAGES))
        for _ in range(ROUNDS):
            kinds = [*KINDS, ""]
            rng.shuffle(kinds)
            for kind in kinds:
                await (killer.kill_in_turn(kind) if kind else killer.kill_all())
        await submitting

        async def drained() -> bool:
            try:
                regions = (await client.snapshot())["regions"].values()
            except (ConnectionError, TimeoutError):
                return False
            return all(region.get("counts", {}).get("queued") == 0 for region in regions)

        await until(drained, "the queue does not drain", DRAIN_S)
        await asyncio.sleep(0.5)  # the last events are on their way to the log

    try:
        start_fleet(config, cluster.start())
        asyncio.run(scenario())
        stop_fleet(config)
    finally:
        print(f"seed {SEED}", *killer.log, sep="\n")
        ray.shutdown()
        cluster.stop()
    twice = assert_conserved(config, sink, [f"user{n}@example.org" for n in range(sender.count)])
    print(f"{sender.count} messages, {len(killer.log)} kills, {len(twice)} sent twice, all of them marked")


def run(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", *arguments], check=True, timeout=DRAIN_S)


def test_the_machine_dies_and_the_fleet_goes_on_from_its_spool(tmp_path: Path, sink: SinkProcess) -> None:
    """All processes of the machine at once: Ray's, the fleet's, the client's. Then everything is started again."""
    config = config_for(tmp_path, sink)
    prepare_ray(config)
    path = tmp_path / "fleet.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    rng = random.Random(SEED)
    count = max(1000, MESSAGES // 2)
    try:
        for _ in range(max(1, ROUNDS // 3)):
            run("actors", "up", "--fleet", str(path))
            client = subprocess.Popen(
                [sys.executable, "-m", "tests.support.ray_driver", "submit", str(path), str(count)],
                stdout=subprocess.PIPE,
            )
            assert client.stdout is not None
            client.stdout.readline()  # the first receipt
            time.sleep(rng.uniform(0.0, 3.0))
            kill_machine()
            client.wait()
            client.stdout.close()
            assert any(report.counts["queued"] for report in audits(config)), "nothing was in flight"
            for report in audits(config):
                assert report.is_clean, report.problems
        run("actors", "up", "--fleet", str(path))
        run("tests.support.ray_driver", "submit", str(path), str(count))
        run("tests.support.ray_driver", "drain", str(path))
        run("actors", "down", "--fleet", str(path))
    finally:
        print(f"seed {SEED}")
        kill_machine()
    twice = assert_conserved(config, sink, [f"user{n}@example.org" for n in range(count)])
    print(f"{count} messages, {len(twice)} sent twice, all of them marked")


def kill_machine() -> None:
    """Every process that Ray's directory belongs to, until there is none."""
    while processes := [p for p in ray_processes(os.environ["RAY_TMPDIR"]) if not is_sink(p)]:
        for process in processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(processes, timeout=5)


def is_sink(process: psutil.Process) -> bool:
    try:
        return "engine.sink" in process.cmdline()
    except psutil.Error:
        return False

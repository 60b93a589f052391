"""A live fleet on a cluster (`ray.address`) is drilled by the command, as on one of its machines."""

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from actors.drill.fleets import DOMAIN, RunningFleet
from engine.drill.load import Load
from engine.drill.record import read_records
from engine.sink.process import SinkProcess
from tests.support.ray_fleet import ClusterFleet, drill_processes, prepare_ray, two_regions, until
from tests.support.sinks import accepting_sink

pytestmark = [pytest.mark.ray, pytest.mark.crash]
ROOT = Path(__file__).parents[2]
PATIENCE_S = 180.0
RATE = 50.0


class Drill:
    """The command, on the fleet of a fleet.yaml."""

    def __init__(self, fleet: Path, history: Path) -> None:
        self._fleet = fleet
        self.history = history

    async def start(self, scenario: str, region: str, *, after_s: float = 5.0) -> asyncio.subprocess.Process:
        options = ["--on-live", "--fleet", self._fleet, "--yes", "fleet", "--directory", self.history]
        hit = ["--scenario", scenario, "--region", region, "--before", "2", "--after", f"{after_s:g}"]
        command = [sys.executable, "-m", "actors", "drill", *map(str, options), *hit]
        return await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE, cwd=ROOT)


@asynccontextmanager
async def load_on(fleet: ClusterFleet, sink: SinkProcess) -> AsyncIterator[None]:
    """From when every source delivers."""
    regions = tuple(region.name for region in fleet.config.regions)
    load = Load(RunningFleet(fleet.config), regions, DOMAIN, RATE, began_s=time.monotonic())
    load.start()

    async def all_send() -> bool:
        return len({row.client for row in sink.log().acceptances}) == len(fleet.config.sources)

    try:
        await until(all_send, "not every source delivers")
        yield
    finally:
        await load.stop()


async def is_hit(process: asyncio.subprocess.Process) -> tuple[psutil.Process, str]:
    """What the command says that it hits."""
    assert process.stderr is not None
    told = ""
    async with asyncio.timeout(PATIENCE_S):
        while (found := re.search(r"It hits (.*?, process (\d+) on [\d.]+)\.", told)) is None:
            line = await process.stderr.readline()
            assert line, told
            told = f"{told} {line.decode().strip()}".strip()
    return psutil.Process(int(found[2])), found[1]


def test_it_is_hit_on_its_own_node(tmp_path: Path) -> None:
    with accepting_sink(tmp_path) as sink:
        config = two_regions(
            tmp_path, sink.addresses["accept"][1], fleet={"replicas": 1, "degraded": "accept_local"}
        )
        prepare_ray(config)
        with ClusterFleet(config) as fleet:
            path = tmp_path / "fleet.yaml"
            on_cluster = config.model_copy(
                update={"ray": config.ray.model_copy(update={"address": fleet.address})}
            )
            path.write_text(on_cluster.model_dump_json(exclude_unset=True))
            asyncio.run(_drills(fleet, sink, Drill(path, tmp_path / "drills")))
            asyncio.run(fleet.until_settled())


async def _drills(fleet: ClusterFleet, sink: SinkProcess, drill: Drill) -> None:
    async with load_on(fleet, sink):
        await _freezes(fleet, drill)
        await fleet.until_covered()
        await _goes_on_without_the_command(drill)


async def _freezes(fleet: ClusterFleet, drill: Drill) -> None:
    process = await drill.start("region-freeze", "us")
    victim, target = await is_hit(process)
    assert f"process {victim.pid} on {fleet.nodes['us'].node_ip_address}" in target
    _, errors = await process.communicate()
    (record,), problems = read_records(drill.history)
    assert problems == [], errors
    assert victim.status() != psutil.STATUS_STOPPED
    assert record.target == target
    assert [text for _, text in record.marks] == ["region-freeze", "detected", "continued"], record.notes
    assert record.figures.detection_s is not None
    assert record.figures.delivered > 0
    checks = {check.name: check.is_met for check in record.checks}
    assert checks["the fleet sees it again"], record.notes
    assert checks["the audit accounts for every message"], record.notes
    assert process.returncode == (0 if record.is_passed else 1), errors


async def _goes_on_without_the_command(drill: Drill) -> None:
    process = await drill.start("region-freeze", "us", after_s=PATIENCE_S)
    try:
        victim, _ = await is_hit(process)

        async def is_stopped() -> bool:
            return victim.status() == psutil.STATUS_STOPPED

        async def no_drill() -> bool:
            return not drill_processes(os.environ["RAY_TMPDIR"])

        async def goes_on() -> bool:
            return not await is_stopped()

        await until(is_stopped, "it was not frozen")
        assert drill_processes(os.environ["RAY_TMPDIR"])
        another = await drill.start("pool-kill", "eu")
        _, errors = await another.communicate()
        assert another.returncode == 1
        assert b"another drill is run on this fleet" in errors
        process.kill()
        assert await process.wait() == -signal.SIGKILL
        await until(no_drill, "what the drill had on the nodes goes on without it")
        await until(goes_on, "it is stopped still, and nobody is there who would let it go on")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.kill(victim.pid, signal.SIGCONT)

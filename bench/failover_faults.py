"""What bench/failover_round.py does to a fleet of three regions, and what it sees of the consequences.

Times are monotonic seconds. "The share" of a region are the batches of which it is the first choice.
"""

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from actors.names import FLEET, region_actor
from engine.sink.log import SinkLog
from engine.spool.environment import Environment
from tests.support.ray_fleet import ClusterFleet

REGIONS = ("eu", "us", "ap")
VICTIM = "ap"  # not on the head's node
FREEZE_S = 2.0  # after the region was called dead
HEAD_AWAY_S = 5.0
PATIENCE_S = 120.0
LOOK_S = 0.1
TIME_BYTES, ID_BYTES = 6, 8  # of a row of `inflight`


class Fleet:
    """The fleet on its cluster, and its sink's log."""

    def __init__(self, cluster: ClusterFleet, log: SinkLog, directory: Path) -> None:
        self.cluster = cluster
        self.log = log
        self.arrived: set[str] = set()
        self.in_flight: int | None = None  # at the pools of the region that is hit, as the fault found them
        self._directory = directory
        self._rows = 0
        from actors.ray_calls import NamedActor  # imports Ray, whose environment ClusterFleet has made by now

        self._fleet = NamedActor(FLEET)
        self._regions = {region: NamedActor(region_actor(region)) for region in REGIONS}

    # -- what is done

    async def region_kill(self) -> tuple[float, float]:
        """The node with all its processes; its disk is moved away."""
        made_s = send(self.node_processes(VICTIM), signal.SIGKILL)
        lost = self._directory / "gone"
        shutil.move(Path(self.cluster.config.spool.directory) / VICTIM, lost)
        self.in_flight = at_pools(lost)
        return made_s, await self._called_dead(made_s)

    async def region_freeze(self) -> tuple[float, float]:
        """The node with all its processes stops, until two seconds after the fleet has noticed."""
        victims = self.node_processes(VICTIM)
        made_s = send(victims, signal.SIGSTOP)
        try:
            detected_s = await self._called_dead(made_s)
            await asyncio.sleep(FREEZE_S)
        finally:
            send(victims, signal.SIGCONT)
        return made_s, detected_s

    async def pool_kill(self) -> tuple[float, float]:
        """The second time is when another process is that pool."""
        before = await self.pools(VICTIM)
        if not before:
            raise RuntimeError(f"region {VICTIM} has no pool")
        name, pid = next(iter(before.items()))
        made_s = send([psutil.Process(pid)], signal.SIGKILL)

        async def is_replaced() -> bool:
            return (await self.pools(VICTIM)).get(name, pid) != pid

        await self._until(is_replaced, f"no other process became pool {name}")
        return made_s, time.monotonic()

    async def pools(self, region: str) -> dict[str, int]:
        """Process ids by the names of the pools; without spares."""
        return {str(pool.name): pool.pid for pool in await self._pools(region) if pool.name is not None}

    async def _pools(self, region: str) -> list[Any]:
        return list(await self._regions[region].call("pools", timeout_s=PATIENCE_S))

    async def source_kill(self) -> tuple[float, float]:
        return await self._kill_actor("EgressIpActor", VICTIM)

    async def fleet_kill(self) -> tuple[float, float]:
        return await self._kill_actor("FleetActor", REGIONS[0])

    async def head_kill(self) -> tuple[float, float]:
        """The head's process (GCS), and Fleet with it; the head returns after five seconds."""
        snapshot = await self.snapshot()
        made_s = self.cluster.kill_head()
        os.kill(int(snapshot["pid"]), signal.SIGKILL)
        await asyncio.sleep(HEAD_AWAY_S)
        self.cluster.return_head()
        after = await self._until(self._answers, "Fleet was not started again")
        detected_s = time.monotonic()
        for region in REGIONS:
            if after["regions"][region].get("pid") != snapshot["regions"][region]["pid"]:
                raise RuntimeError(f"region {region} was started anew while the head was away")
        return made_s, detected_s

    def node_processes(self, region: str) -> list[psutil.Process]:
        """Everything that runs on the node of a region."""
        raylet = psutil.Process(self.cluster.nodes[region].all_processes["raylet"][0].process.pid)
        return [*raylet.children(recursive=True), raylet]

    def actors(self, kind: str, region: str) -> list[psutil.Process]:
        found = []
        for process in self.node_processes(region):
            with suppress(psutil.Error, IndexError):
                if process.cmdline()[0].startswith(f"ray::{kind}"):
                    found.append(process)
        return found

    async def _kill_actor(self, kind: str, region: str) -> tuple[float, float]:
        """One actor's process; the second time is when another had its place."""
        before = self.actors(kind, region)
        if not before:
            raise RuntimeError(f"no {kind} runs on the node of region {region}")
        made_s = send(before[:1], signal.SIGKILL)

        async def is_replaced() -> bool:
            now = self.actors(kind, region)
            return before[0] not in now and len(now) == len(before)

        await self._until(is_replaced, f"the {kind} was not started again")
        return made_s, time.monotonic()

    # -- what is seen

    async def transitions(self) -> list[tuple[int, str, str, int]]:
        """What Fleet has lately called the regions: at (ns), region, standing, epoch."""
        return list(await self._fleet.call("transitions", timeout_s=2.0))

    async def _called_dead(self, made_s: float) -> float:
        """When (Fleet's clock is this machine's) the region was called dead."""

        async def at() -> float | None:
            try:
                rows = await self.transitions()
            except (ConnectionError, TimeoutError):
                return None
            times = [at / 1e9 for at, region, standing, _ in rows if (region, standing) == (VICTIM, "dead")]
            return next((at_s for at_s in times if at_s >= made_s), None)

        try:
            return float(await self._until(at, f"region {VICTIM} was not called dead"))
        except TimeoutError as error:
            said = await self._fleet.call("transitions", timeout_s=PATIENCE_S)
            raise TimeoutError(f"{error} of {made_s:.1f}; Fleet: {said[-8:]}") from None

    async def snapshot(self) -> dict[str, Any]:
        return dict(await self.cluster.client.snapshot())

    async def _answers(self) -> dict[str, Any] | None:
        try:
            return await self.snapshot()
        except (ConnectionError, TimeoutError):
            return None

    async def at_pools(self) -> int:
        """Messages at the pools of the victim, as it says."""

        async def pools() -> dict[str, int] | None:
            snapshot = await self._answers()
            return None if snapshot is None else snapshot["regions"][VICTIM].get("outstanding")

        return sum((await self._until(pools, f"region {VICTIM} gave no snapshot")).values())

    async def until_covered(self, regions: tuple[str, ...] = REGIONS) -> None:
        """Until these regions are live, each with a standby that has everything."""

        async def is_covered() -> bool:
            snapshot = await self._answers()
            return snapshot is not None and all(
                snapshot["standing"].get(region, {}).get("standing") == "live"
                and snapshot["regions"].get(region, {}).get("failover", {}).get("standby_complete")
                for region in regions
            )

        await self._until(is_covered, f"regions {', '.join(regions)} were not all covered")

    async def until_flowing(self) -> None:
        """Until every region has delivered something: pools start on first use."""
        nets = {f"127.0.{number}." for number in range(1, len(REGIONS) + 1)}

        async def flows() -> bool:
            self.refresh()
            return nets <= {row.client.rpartition(".")[0] + "." for row in self.log.acceptances}

        try:
            await self._until(flows, "not every region delivered something")
        except TimeoutError as error:
            seen = sorted({row.client for row in self.log.acceptances})
            raise TimeoutError(f"{error}, but {seen or 'none'}; {await self._answers()}") from None

    async def until_spared(self) -> None:
        """Until every region has its spare processes: they are started after the pools, and no part of a fault."""

        async def has_spares() -> bool:
            pools = [await self._pools(region) for region in REGIONS]
            spares = [sum(pool.name is None for pool in found) for found in pools]
            return min(spares) >= self.cluster.config.limits.pool_spares

        await self._until(has_spares, "not every region had its spare processes")

    async def until_arrived(self, wanted: Callable[[], set[str]], *, all_of_them: bool) -> bool:
        """Whether that comes true in time."""
        end_s = time.monotonic() + PATIENCE_S
        while True:
            self.refresh()
            asked = wanted()
            if asked <= self.arrived if all_of_them else not asked.isdisjoint(self.arrived):
                return True
            if time.monotonic() > end_s:
                return False
            await asyncio.sleep(LOOK_S)

    async def brief(self, accepted: set[str]) -> str:
        """For an error: what is missing, and what the regions say."""
        said = [f"{len(accepted - self.arrived)} of {len(accepted)} messages with a receipt are missing"]
        snapshot = await self._answers()
        if snapshot is None:
            return f"{said[0]}; Fleet does not answer"
        for region in REGIONS:
            found = snapshot["regions"][region]
            cover = found.get("failover", {})
            said.append(
                f"{region}: {snapshot['standing'][region]['standing']}, {found.get('counts', found.get('error'))}, "
                f"standby {cover.get('standby')}, complete {cover.get('standby_complete')}, "
                f"at pools {found.get('outstanding')}"
            )
        return "; ".join(said)

    def refresh(self) -> None:
        self.log.refresh()
        self.arrived.update(row.recipient for row in self.log.acceptances[self._rows :])
        self._rows = len(self.log.acceptances)

    def marked(self) -> set[str]:
        """Recipients of whom an event says that the delivery may be a repetition."""
        found = set()
        for path in Path(self.cluster.config.events.directory).glob("*/events-*.jsonl"):
            for line in path.read_bytes().split(b"\n")[:-1]:
                event = json.loads(line)
                if event["event"] == "delivered" and event["possible_duplicate"]:
                    found.add(event["recipient"])
        return found

    async def _until(self, condition: Callable[[], Awaitable[Any]], otherwise: str) -> Any:
        end_s = time.monotonic() + PATIENCE_S
        while (found := await condition()) is None or found is False:
            if time.monotonic() > end_s:
                raise TimeoutError(f"{otherwise} within {PATIENCE_S:.0f} s")
            await asyncio.sleep(LOOK_S)
        return found


def at_pools(spool: Path) -> int:
    """How many messages a region that is dead had given to its pools and not settled, by its disk: the table `inflight`
    (engine/spool/settling.py)."""
    environment = Environment(spool, map_size=0, readonly=True)
    try:
        with environment.read() as txn:
            rows = [bytes(value) for _, value in txn.cursor(db=environment.db["inflight"])]
    finally:
        environment.close()
    return sum((len(value) - TIME_BYTES) // ID_BYTES for value in rows)


def send(processes: list[psutil.Process], number: signal.Signals) -> float:
    """The signal to all of them; when the first got it."""
    at_s = time.monotonic()
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    return at_s


FAULTS: dict[str, Callable[[Fleet], Awaitable[tuple[float, float]]]] = {
    "region-kill": Fleet.region_kill,
    "region-freeze": Fleet.region_freeze,
    "pool-kill": Fleet.pool_kill,
    "source-kill": Fleet.source_kill,
    "fleet-kill": Fleet.fleet_kill,
    "head-kill": Fleet.head_kill,
}

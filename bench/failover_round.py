"""One run of bench/failover.py in a process of its own: `python -m bench.failover_round KIND JSON` prints its figures.

A fleet of three regions on a real Ray cluster of three nodes on this machine, everything routed to one sink in another
process. There can be one such cluster in the life of a process.
"""

import asyncio
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from actors.names import FLEET
from engine.config.schema import FleetConfig
from engine.drill.figures import Arrival, Figures, Submission, Watch, figures_of
from engine.failover.rendezvous import rank
from engine.sink.log import SinkLog
from engine.sink.process import SinkProcess
from tests.support.ray_fleet import ClusterFleet, actor_processes, fleet_of, messages
from tests.support.sinks import accepting_sink

REGIONS = ("eu", "us", "ap")
VICTIM = "ap"  # not on the head's node
BATCH = 20
PRICE_BATCH = 200
PRICE_IN_FLIGHT = 6
MAX_OPEN = 200
BEFORE_S, HOLD_S, AFTER_S = 2.0, 2.0, 4.0  # the window goes on until the share of the region flows again
PATIENCE_S = 120.0

Fault = Callable[["Faults"], Awaitable[float]]


def three_regions(directory: Path, port: int, replicas: int) -> FleetConfig:
    return fleet_of(
        REGIONS,
        directory,
        port,
        fleet={"replicas": replicas, "degraded": "refuse"},
        providers={
            "default": {"rate": "unlimited", "max_connections": 5, "messages_per_connection": 100_000}
        },
    )


class Load:
    """Batches at a steady rate, each with a key, which says which region is asked first. It waits for no answer."""

    def __init__(self, client: Any, rate: float) -> None:
        self._client = client
        self._interval_s = BATCH / rate
        self._open: set[asyncio.Task[None]] = set()
        self._began_s = time.monotonic()
        self._task = asyncio.get_running_loop().create_task(self._pace())
        self.submissions: list[Submission] = []
        self.skipped = 0

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.gather(*self._open)

    async def _pace(self) -> None:
        number = 0
        while True:
            await asyncio.sleep(max(0.0, self._began_s + number * self._interval_s - time.monotonic()))
            if len(self._open) >= MAX_OPEN:
                self.skipped += 1
            else:
                task = asyncio.get_running_loop().create_task(self._submit(number))
                self._open.add(task)
                task.add_done_callback(self._open.discard)
            number += 1

    async def _submit(self, number: int) -> None:
        batch = messages(BATCH, first=number * BATCH)
        key = os.urandom(16)
        home = rank(key, REGIONS)[0]
        sent_s = time.monotonic()
        taken: tuple[str, ...] = ()
        error = ""
        try:
            receipt = await self._client.submit(batch, key=key)
            if receipt.errors:
                error = str(receipt.errors[0])
            else:
                taken = tuple(message.recipients[0] for message in batch)
        except (OSError, RuntimeError) as problem:
            error = f"{type(problem).__name__}: {problem}"[:160]
        refused = 0 if taken else len(batch)
        self.submissions.append(Submission(sent_s, time.monotonic(), home, taken, refused, error))


class Faults:
    """A fleet under load, and rounds of one fault."""

    def __init__(self, cluster: ClusterFleet, sink: SinkProcess, directory: Path) -> None:
        self.cluster = cluster
        self.log = sink.log()
        self.directory = directory
        self.config = cluster.config
        import actors.deploy

        self._fleet = actors.deploy.NamedActor(FLEET)
        self._client = cluster.client

    # -- what is done

    def node_processes(self) -> list[psutil.Process]:
        raylet = psutil.Process(self.cluster.nodes[VICTIM].all_processes["raylet"][0].process.pid)
        return [*raylet.children(recursive=True), raylet]

    async def region_kill(self) -> float:
        """The node with all its processes; its disk is moved away."""
        made_s = _signal(self.node_processes(), signal.SIGKILL)
        shutil.move(Path(self.config.spool.directory) / VICTIM, self.directory / "gone")
        return made_s

    async def region_freeze(self) -> float:
        victims = self.node_processes()
        made_s = _signal(victims, signal.SIGSTOP)
        try:
            await self._dead_since(made_s)
            await asyncio.sleep(max(0.0, made_s + HOLD_S - time.monotonic()))
        finally:
            _signal(victims, signal.SIGCONT)
        return made_s

    async def pool_kill(self) -> float:
        return _signal(self._below(VICTIM, "IspPoolActor")[:1], signal.SIGKILL)

    async def source_kill(self) -> float:
        return _signal(self._below(VICTIM, "EgressIpActor")[:1], signal.SIGKILL)

    async def fleet_kill(self) -> float:
        pid = int(await self._fleet.call("ping", timeout_s=5.0))
        return _signal([psutil.Process(pid)], signal.SIGKILL)

    def _below(self, region: str, actor: str) -> list[psutil.Process]:
        """Actors of one class on one node."""
        raylet = psutil.Process(self.cluster.nodes[region].all_processes["raylet"][0].process.pid)
        found = []
        for process in raylet.children(recursive=True):
            with suppress(psutil.Error, IndexError):
                title = process.cmdline()[0]
                if title.startswith("ray::") and actor in title:
                    found.append(process)
        if not found:
            seen = sorted(actor_processes(os.environ["RAY_TMPDIR"])) if "RAY_TMPDIR" in os.environ else []
            raise RuntimeError(f"no {actor} at region {region}; there are {seen}")
        return found

    # -- what Fleet says

    async def transitions(self) -> list[tuple[int, str, str, int]]:
        try:
            return list(await self._fleet.call("transitions", timeout_s=2.0))
        except (ConnectionError, TimeoutError):
            return []

    async def _dead_since(self, made_s: float) -> float:
        """When (Fleet's clock is this machine's) the region was called dead."""
        end_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < end_s:
            for at, region, standing, _ in await self.transitions():
                if region == VICTIM and standing == "dead" and at / 1e9 >= made_s:
                    return at / 1e9
            await asyncio.sleep(0.05)
        raise TimeoutError(f"region {VICTIM} was not called dead within {PATIENCE_S:.0f} s")

    async def until_covered(self, regions: tuple[str, ...] = REGIONS) -> None:
        """Until these regions are live, each with a standby that has everything."""

        async def covered() -> bool:
            snapshot = await self._client.snapshot()
            return all(
                snapshot["standing"].get(region, {}).get("standing") == "live"
                and snapshot["regions"].get(region, {}).get("failover", {}).get("standby_complete")
                for region in regions
            )

        end_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < end_s:
            with suppress(ConnectionError, TimeoutError):
                if await covered():
                    return
            await asyncio.sleep(0.2)
        raise TimeoutError(f"regions {regions} were not all covered within {PATIENCE_S:.0f} s")

    async def until_flowing(self) -> None:
        """Until every region has delivered something: pools start on first use."""
        nets = {f"127.0.{number}." for number in range(1, len(REGIONS) + 1)}
        end_s = time.monotonic() + PATIENCE_S
        while not nets <= {row.client.rpartition(".")[0] + "." for row in self.log.acceptances}:
            if time.monotonic() > end_s:
                seen = sorted({row.client for row in self.log.acceptances})
                raise TimeoutError(
                    f"not every region delivered something within {PATIENCE_S:.0f} s, but {seen}"
                )
            await asyncio.sleep(0.2)
            self.log.refresh()

    async def until_again(self, load: Load, made_s: float) -> None:
        """Until something arrives that was submitted to the region's share after the fault: the gap has an end then."""
        end_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < end_s:
            later = {
                r for s in load.submissions if s.region == VICTIM and s.sent_s > made_s for r in s.recipients
            }
            if not later.isdisjoint(self.log.recipients()):
                return
            await asyncio.sleep(0.2)
            self.log.refresh()
        raise TimeoutError(f"nothing of the share of {VICTIM} arrived within {PATIENCE_S:.0f} s")

    def marked(self) -> set[str]:
        found = set()
        for path in Path(self.config.events.directory).glob("*/events-*.jsonl"):
            for line in path.read_bytes().split(b"\n")[:-1]:
                event = json.loads(line)
                if event["event"] == "delivered" and event["possible_duplicate"]:
                    found.add(event["recipient"])
        return found


def _signal(processes: list[psutil.Process], number: signal.Signals) -> float:
    at_s = time.monotonic()
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    return at_s


KINDS: dict[str, Fault] = {
    "region-kill": Faults.region_kill,
    "region-freeze": Faults.region_freeze,
    "pool-kill": Faults.pool_kill,
    "source-kill": Faults.source_kill,
    "fleet-kill": Faults.fleet_kill,
}


async def rounds_of(kind: str, faults: Faults, *, rounds: int, rate: float) -> dict[str, Any]:
    """The figures of each round; every message that got a receipt must be at the sink in the end."""
    await faults.until_covered()
    load = Load(faults.cluster.client, rate)
    await faults.until_flowing()
    windows: list[tuple[float, float, float | None]] = []
    for _ in range(rounds):
        await faults.until_covered()
        await asyncio.sleep(BEFORE_S)
        made_s = await KINDS[kind](faults)
        detected_s = await faults._dead_since(made_s) if kind.startswith("region") else None
        await asyncio.sleep(max(0.0, made_s + HOLD_S + AFTER_S - time.monotonic()))
        await faults.until_again(load, made_s)
        windows.append((made_s, time.monotonic(), detected_s))
    await load.stop()
    accepted = {recipient for s in load.submissions for recipient in s.recipients}
    end_s = time.monotonic() + PATIENCE_S
    while not accepted <= set(faults.log.recipients()) and time.monotonic() < end_s:
        await asyncio.sleep(0.2)
        faults.log.refresh()
    if kind == "region-kill":
        await faults.until_covered(tuple(r for r in REGIONS if r != VICTIM))
    await asyncio.sleep(1.0)  # events are shipped several times a second
    faults.log.refresh()
    rows = faults.log.acceptances
    homes = {r: s.region for s in load.submissions for r in s.recipients}
    arrivals = [Arrival(row.at_ns / 1e9, row.recipient, homes.get(row.recipient, "")) for row in rows]
    figures = [_figures(load, arrivals, faults.marked(), *window) for window in windows]
    return {
        "rounds": figures,
        "errors": sorted({s.error for s in load.submissions if s.error}),
        "skipped_batches": load.skipped,
        "whole": asdict(_whole(load, arrivals, faults.marked())),
    }


def _whole(load: Load, arrivals: list[Arrival], marked: set[str]) -> Figures:
    return figures_of(Watch(arrivals, load.submissions, 0.0, 0.0, None, (), marked))


def _figures(
    load: Load,
    arrivals: list[Arrival],
    marked: set[str],
    made_s: float,
    end_s: float,
    detected_s: float | None,
) -> dict[str, float | None]:
    """Of one round. `drain_s`: from the fault until all that had a receipt by then had arrived."""
    inside = [a for a in arrivals if made_s - BEFORE_S <= a.at_s <= end_s]
    sent = [s for s in load.submissions if made_s - BEFORE_S <= s.sent_s <= end_s]
    watch = Watch(inside, sent, made_s, end_s, detected_s, {VICTIM}, marked)
    found = figures_of(watch)
    before = {r for s in load.submissions if s.answered_s <= made_s for r in s.recipients}
    first: dict[str, float] = {}
    for arrival in arrivals:
        first[arrival.recipient] = min(first.get(arrival.recipient, arrival.at_s), arrival.at_s)
    last_s = max((first[r] for r in before if r in first), default=made_s)
    return {
        "detection_s": found.detection_s,
        "gap_s": found.gap_s,
        "share_gap_s": found.share_gap_s,
        "share_gap_before_s": _gap_before(arrivals, made_s),
        "drain_s": max(0.0, last_s - made_s),
        "receipt_p99_ms": found.receipt_p99_ms,
        "receipt_p99_before_ms": found.receipt_p99_before_ms,
        "duplicated": found.duplicated,
    }


def _gap_before(arrivals: list[Arrival], made_s: float) -> float:
    """The longest gap of that share before the fault: what the machine does to it anyhow."""
    times = sorted(a.at_s for a in arrivals if a.source == VICTIM and made_s - BEFORE_S <= a.at_s <= made_s)
    return max((b - a for a, b in itertools.pairwise(times)), default=0.0)


async def price(cluster: ClusterFleet, sink: SinkProcess, *, count: int) -> dict[str, Any]:
    """As many batches as go; the clock runs from the first submit to the last first delivery at the sink."""
    numbers = iter(range(0, count, PRICE_BATCH))
    waits: list[float] = []
    await cluster.client.submit(messages(PRICE_BATCH, first=10_000_000))  # pools start
    log = sink.log()
    await _arrived(log, PRICE_BATCH)

    async def worker() -> None:
        for first in numbers:
            before_s = time.monotonic()
            receipt = await cluster.client.submit(messages(PRICE_BATCH, first=first))
            waits.append(time.monotonic() - before_s)
            if receipt.errors:
                raise RuntimeError(f"refused: {receipt.errors[0]}")

    began_s = time.monotonic()
    await asyncio.gather(*(worker() for _ in range(PRICE_IN_FLIGHT)))
    accepted_s = time.monotonic() - began_s
    await _arrived(log, PRICE_BATCH + count)
    last_s = max(row.at_ns / 1e9 for row in log.acceptances)
    waits.sort()
    return {
        "messages": count,
        "seconds": last_s - began_s,
        "unique": len(log.recipients()) - PRICE_BATCH,
        "accepted_s": accepted_s,
        "receipt_p50_ms": waits[len(waits) // 2] * 1e3,
        "receipt_p99_ms": waits[min(len(waits) - 1, len(waits) * 99 // 100)] * 1e3,
    }


async def _arrived(log: SinkLog, count: int) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while len(log.acceptances) < count or len(log.recipients()) < count:
        log.refresh()
        if time.monotonic() > end_s:
            raise TimeoutError(f"{len(log.recipients())} of {count} messages arrived")
        await asyncio.sleep(0.1)


def run(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    directory = Path(tempfile.mkdtemp(prefix="sf-", dir=options.get("directory")))
    os.environ["RAY_TMPDIR"] = str(directory)
    replicas = int(options.get("replicas", 1))
    try:
        with accepting_sink(directory) as sink:
            config = three_regions(directory, sink.addresses["accept"][1], replicas)
            with ClusterFleet(config) as cluster:
                if kind == "price":
                    return asyncio.run(price(cluster, sink, count=int(options["messages"])))
                faults = Faults(cluster, sink, directory)
                return asyncio.run(
                    rounds_of(kind, faults, rounds=int(options["rounds"]), rate=float(options["rate"]))
                )
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    print("FIGURES " + json.dumps(run(sys.argv[1], json.loads(sys.argv[2]))))

"""A fleet of three regions under load, with something broken every few seconds, or with nothing broken at all.

    python -m bench.soak [--minutes 30] [--rate 300] [--every 5] [--seed N] [--directory DIR]
    python -m bench.soak --calm --rate 1500 --minutes 60     # nothing is broken: is a region called dead?
    python -m bench.soak --stall 2 --rate 1500 --minutes 3   # all stand still once: does the fleet find back?

Regions cover for each other (`replicas: 1`), each a node of a real Ray cluster on this machine, one sink in a process
of its own. Faults are drawn at random, also while the former one is not over: the process of a region, a pool, a source
or Fleet killed; all of a region's node stopped for up to three seconds (SIGSTOP, SIGCONT); Ray's head killed, and back
some seconds later. Once faults and load have stopped, every region has to be live again, all that got a receipt has to
arrive, what arrived twice has to be marked `possible_duplicate`, and the audit of the three spools has to be clean with
nothing queued.

With `--stall S` the processes of all regions are stopped together for S seconds, half a minute after the load began:
all leases end. A fleet that is loaded has to find back to its pace, and to call no region dead any more.

The result, in bench/results/soak.json (soak-calm.json, soak-stall.json), has the number of faults by kind, what was
called dead, how long receipts took, and what was lost or came twice. Exit status 0 only if nothing was lost, nothing
unmarked came twice, and the audit is clean; with `--calm`, only if no region was called dead either, with `--stall`,
not later than half a minute after it.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from actors.undertaker import Undertaker
from bench.failover_faults import LOOK_S, REGIONS, Fleet, send
from bench.failover_round import Load, three_regions
from bench.harness import RESULTS, commit, machine
from engine.ops.garbage import collect_seldom
from engine.spool.audit import AuditReport
from engine.spool.audit_moved import audit_moved
from tests.support.ray_fleet import ClusterFleet, audits
from tests.support.sinks import accepting_sink

FROZEN_S = 0.1, 3.0
HEAD_AWAY_S = 1.0, 6.0
SETTLED_S = 300.0
EVENTS_S = 2.0
SAID_S = 60.0
STALL_AFTER_S = 30.0
BACK_S = 30.0  # after a stall


@dataclass(slots=True)
class Course:
    """What has happened so far."""

    faults: Counter[str] = field(default_factory=Counter)
    transitions: list[tuple[float, str, str]] = field(default_factory=list)
    """Seconds since the load began, region, and what Fleet has called it from then on."""

    @property
    def called(self) -> dict[str, int]:
        """Transitions of regions by what they became."""
        return dict(Counter(standing for _, _, standing in self.transitions))


class Faults:
    """Breaks one thing after the other; `over` once no fault is going on any more."""

    def __init__(self, fleet: Fleet, course: Course, draw: random.Random) -> None:
        self._fleet = fleet
        self._course = course
        self._draw = draw
        self._open: set[asyncio.Task[None]] = set()
        self._frozen: set[str] = set()
        self._is_head_away = False
        self._kinds: dict[str, Callable[[str], Awaitable[bool]]] = {
            "region": lambda region: self._kill("RegionActor", region),
            "pool": lambda region: self._kill("IspPoolActor", region),
            "source": lambda region: self._kill("EgressIpActor", region),
            "fleet": lambda _: self._kill("FleetActor", REGIONS[0]),
            "freeze": self._freeze,
            "head": self._lose_head,
        }

    async def run(self, until_s: float, every_s: float) -> None:
        while time.monotonic() < until_s:
            await asyncio.sleep(self._draw.uniform(0.2, 1.8) * every_s)
            kind = self._draw.choice(list(self._kinds))
            task = asyncio.create_task(self._make(kind, self._draw.choice(REGIONS)))
            self._open.add(task)
            task.add_done_callback(self._open.discard)
        await self.over()

    async def over(self) -> None:
        await asyncio.gather(*self._open)

    async def _make(self, kind: str, region: str) -> None:
        if await self._kinds[kind](region):
            self._course.faults[kind] += 1

    async def _kill(self, actor: str, region: str) -> bool:
        found = self._fleet.actors(actor, region)
        if not found:  # it is being started
            return False
        send([self._draw.choice(found)], signal.SIGKILL)
        return True

    async def _freeze(self, region: str) -> bool:
        if region in self._frozen:
            return False
        self._frozen.add(region)
        victims = self._fleet.node_processes(region)
        send(victims, signal.SIGSTOP)
        try:
            await asyncio.sleep(self._draw.uniform(*FROZEN_S))
        finally:
            send(victims, signal.SIGCONT)
            self._frozen.discard(region)
        return True

    async def _lose_head(self, _: str) -> bool:
        if self._is_head_away:
            return False
        self._is_head_away = True
        self._fleet.cluster.kill_head()
        try:
            await asyncio.sleep(self._draw.uniform(*HEAD_AWAY_S))
        finally:
            self._fleet.cluster.return_head()
            self._is_head_away = False
        return True


async def stall(fleet: Fleet, seconds: float) -> None:
    """All regions stand still, as when the machine does other things."""
    victims = [process for region in REGIONS for process in fleet.actors("RegionActor", region)]
    send(victims, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        send(victims, signal.SIGCONT)


async def watch(fleet: Fleet, course: Course, since_s: float) -> None:
    """Note what Fleet says of the regions from then on. A new Fleet begins anew."""
    seen: set[tuple[int, str, str]] = set()
    while True:
        with suppress(ConnectionError, TimeoutError):
            for at, region, standing, _ in await fleet.transitions():
                if at / 1e9 >= since_s and (at, region, standing) not in seen:
                    seen.add((at, region, standing))
                    course.transitions.append((round(at / 1e9 - since_s, 3), region, standing))
        await asyncio.sleep(1.0)


async def soak(fleet: Fleet, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The figures, without the audit: it wants the fleet to be down."""
    course = Course()
    await fleet.until_covered()
    collect_seldom()
    began_s = time.monotonic()
    load = Load(fleet.cluster.client, options.rate)
    watching = asyncio.create_task(watch(fleet, course, began_s))
    await fleet.until_flowing()
    flowing_s = time.monotonic()
    psutil.cpu_percent()
    until_s = flowing_s + options.minutes * 60
    saying = asyncio.create_task(_say(fleet, load, course, began_s))
    if options.stall:
        await asyncio.sleep(STALL_AFTER_S)
        await stall(fleet, options.stall)
    if options.stall or options.calm:
        await asyncio.sleep(until_s - time.monotonic())
    else:
        await Faults(fleet, course, random.Random(seed)).run(until_s, options.every)
    await load.stop()
    seconds = time.monotonic() - flowing_s
    busy = psutil.cpu_percent() / 100
    called, transitions = course.called, list(course.transitions)
    await fleet.until_covered()
    accepted = load.accepted()
    is_whole = await fleet.until_arrived(load.accepted, all_of_them=True)
    await _until_nothing_is_queued(fleet)
    await asyncio.sleep(EVENTS_S)
    watching.cancel()
    saying.cancel()
    fleet.refresh()
    counts = fleet.log.recipients()
    twice = {recipient for recipient, count in counts.items() if count > 1}
    waits = sorted(s.answered_s - s.sent_s for s in load.submissions if s.recipients)
    return {
        "seconds": seconds,
        "faults": dict(course.faults),
        "called": called,
        "transitions": transitions,
        "processors_busy": busy,
        "accepted": len(accepted),
        "accepted_per_s": len(accepted) / seconds,
        "refused": sum(s.refused for s in load.submissions),
        "skipped": load.skipped,
        "errors": Counter(s.error.split(":")[0] for s in load.submissions if s.error).most_common(10),
        "lost": 0 if is_whole else len(accepted - fleet.arrived),
        "duplicated": len(twice),
        "unmarked": len(twice - fleet.marked()),
        "receipt_p50_ms": waits[len(waits) // 2] * 1e3,
        "receipt_p99_ms": waits[len(waits) * 99 // 100] * 1e3,
        "receipt_max_s": waits[-1],
    }


async def _until_nothing_is_queued(fleet: Fleet) -> None:
    end_s = time.monotonic() + SETTLED_S
    while True:
        snapshot = await fleet.snapshot()
        queued = {
            region: said.get("counts", {}).get("queued") for region, said in snapshot["regions"].items()
        }
        if set(queued.values()) == {0}:
            return
        if time.monotonic() > end_s:
            raise TimeoutError(f"still queued {SETTLED_S:.0f} s after the last fault: {queued}")
        await asyncio.sleep(LOOK_S)


async def _say(fleet: Fleet, load: Load, course: Course, began_s: float) -> None:
    accepted = counted = 0
    while True:
        await asyncio.sleep(SAID_S)
        fleet.refresh()
        new = load.submissions[counted:]
        counted += len(new)
        accepted += sum(len(submission.recipients) for submission in new)
        print(
            f"{(time.monotonic() - began_s) / 60:.0f} min: {accepted:,} accepted, {len(fleet.arrived):,} arrived, "
            f"faults {dict(course.faults)}, regions became {course.called}",
            flush=True,
        )


def problems_of(reports: Sequence[AuditReport]) -> list[str]:
    """What the audit of all spools finds, and what is queued still."""
    found = [problem for report in reports for problem in report.problems]
    found += [
        f"{report.path}: {report.counts['queued']} queued"
        for report in reports
        if report.counts.get("queued")
    ]
    # what counts in two regions was sent twice, which is told apart
    found += audit_moved({report.path: report for report in reports}, all_here=True, has_copies=True).problems
    return found


def run(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory(prefix="sf-", dir=options.directory) as name,
        Undertaker() as undertaker,
    ):
        directory = Path(name)
        undertaker.take(directory)
        os.environ["RAY_TMPDIR"] = name
        with accepting_sink(directory) as sink:
            config = three_regions(directory, sink.addresses["accept"][1], 1)
            with ClusterFleet(config) as cluster:
                figures = asyncio.run(soak(Fleet(cluster, sink.log(), directory), options, seed))
            return {**figures, "audit": problems_of(audits(config))}


def failures(figures: dict[str, Any], *, is_calm: bool, stall_s: float = 0.0) -> list[str]:
    found = [f"{figures[key]} {key}" for key in ("lost", "unmarked") if figures[key]]
    found += figures["audit"]
    if is_calm and figures["called"].get("dead"):
        found.append(f"called dead without a fault: {figures['called']}")
    back_s = STALL_AFTER_S + stall_s + BACK_S
    late = [row for row in figures["transitions"] if row[0] > back_s and row[2] == "dead"]
    if stall_s and late:
        found.append(f"called dead long after the stall: {late}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=300.0, help="messages/s")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two faults, on average")
    parser.add_argument("--calm", action="store_true", help="break nothing")
    parser.add_argument(
        "--stall", type=float, default=0.0, help="seconds for which all regions stand still, once"
    )
    parser.add_argument("--seed", type=int, help="of the faults")
    parser.add_argument("--directory", help="where the spools are kept")
    parser.add_argument("--result", type=Path, help="another file than bench/results/soak.json")
    options = parser.parse_args()
    seed = random.SystemRandom().getrandbits(32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    figures = run(options, seed)
    document = {
        "bench": "soak",
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit(),
        "machine": machine(),
        "settings": {
            "rate": options.rate,
            "minutes": options.minutes,
            "every_s": 0.0 if options.calm or options.stall else options.every,
            "stall_s": options.stall,
            "seed": seed,
        },
        **figures,
    }
    name = "soak-stall.json" if options.stall else "soak-calm.json" if options.calm else "soak.json"
    path = options.result or RESULTS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(figures, indent=1))
    found = failures(figures, is_calm=options.calm, stall_s=options.stall)
    print("\n".join(found) if found else "clean", file=sys.stderr)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())

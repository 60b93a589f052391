"""One round of bench/failover.py in a process of its own: `python -m bench.failover_round KIND JSON` prints figures.

A fleet of three regions on a real Ray cluster of three nodes on this machine, everything routed to one sink in another
process. There can be one such cluster in the life of a process; whatever becomes of this one, nothing of it is left.
"""

import asyncio
import itertools
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from actors.undertaker import Undertaker
from bench.failover_faults import FAULTS, PATIENCE_S, REGIONS, VICTIM, Fleet
from engine.config.schema import FleetConfig
from engine.drill.figures import Arrival, Submission, Watch, figures_of
from engine.drill.pacing import Pace
from engine.failover.rendezvous import rank
from engine.sink.log import SinkLog
from engine.sink.process import SinkProcess
from tests.support.ray_fleet import ClusterFleet, fleet_of, messages
from tests.support.sinks import accepting_sink

LARGEST_BATCH = 100
BATCHES_PER_S = 30.0  # at least, so that the share of one region has no gaps of its own
PRICE_BATCH = 200
PRICE_IN_FLIGHT = 6
BEFORE_S, AFTER_S = 3.0, 5.0  # the load goes on until the share of the region flows again
LATE_S = 0.5  # for a receipt
EVENTS_S = 1.0  # events are shipped several times a second


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
    """Batches at a steady rate. The key that each is given says which region is its first, while all live."""

    def __init__(self, client: Any, rate: float) -> None:
        self._client = client
        self._batch = max(1, min(LARGEST_BATCH, int(rate / BATCHES_PER_S)))
        self._pace = Pace(self._submit, self._batch / rate, began_s=time.monotonic())
        self._pace.start()
        self.submissions: list[Submission] = []

    @property
    def skipped(self) -> int:
        return self._pace.skipped * self._batch

    async def stop(self) -> None:
        await self._pace.stop()

    async def _submit(self, number: int) -> None:
        batch = messages(self._batch, first=number * self._batch)
        key = os.urandom(16)
        home = rank(key, REGIONS)[0]
        sent_s = time.monotonic()
        taken: tuple[str, ...] = ()
        error = ""
        try:
            receipt = await self._client.submit_new(batch, key)
            if receipt.errors:
                error = str(receipt.errors[0])
            else:
                taken = tuple(message.recipients[0] for message in batch)
        except (OSError, RuntimeError) as problem:
            error = f"{type(problem).__name__}: {problem}"[:160]
        refused = 0 if taken else len(batch)
        self.submissions.append(Submission(sent_s, time.monotonic(), home, taken, refused, error))

    def accepted(self, *, since_s: float = 0.0, until_s: float = float("inf"), home: str = "") -> set[str]:
        """Recipients of what was sent since, answered until then, of one region's share or of all."""
        return {
            recipient
            for s in self.submissions
            if s.sent_s >= since_s and s.answered_s <= until_s and home in ("", s.region)
            for recipient in s.recipients
        }


async def round_of(kind: str, fleet: Fleet, *, rate: float, after_s: float) -> dict[str, Any]:
    """The figures of one fault. Whatever got a receipt is waited for; what has not arrived then is lost. `after_s`: so
    long, at least, the load goes on after the fault."""
    await fleet.until_covered()
    load = Load(fleet.cluster.client, rate)
    await fleet.until_flowing()
    await fleet.until_spared()
    await asyncio.sleep(BEFORE_S)
    fleet.in_flight = await fleet.at_pools()
    made_s, detected_s = await FAULTS[kind](fleet)
    await asyncio.sleep(max(0.0, made_s + after_s - time.monotonic()))
    flows = await fleet.until_arrived(
        lambda: load.accepted(since_s=max(made_s, time.monotonic() - AFTER_S), home=VICTIM), all_of_them=False
    )
    if not flows:
        raise TimeoutError(
            f"nothing of the share of {VICTIM} arrived within {PATIENCE_S:.0f} s; the fault was at {made_s:.1f}, found "
            f"at {detected_s:.1f}; {await fleet.brief(load.accepted())}"
        )
    end_s = time.monotonic()
    await load.stop()
    await fleet.until_arrived(load.accepted, all_of_them=True)
    await asyncio.sleep(EVENTS_S)
    fleet.refresh()
    if kind == "region-kill":
        await fleet.until_covered(tuple(region for region in REGIONS if region != VICTIM))
    waits = [s.answered_s - s.sent_s for s in load.submissions if s.sent_s >= made_s and s.recipients]
    return {
        **_figures(load, fleet, made_s, end_s, detected_s),
        "after_s": end_s - made_s,
        "receipts_after": len(waits),
        "receipts_late": sum(wait > LATE_S for wait in waits),
        "in_flight": fleet.in_flight,
        "skipped": load.skipped,
        "errors": sorted({s.error for s in load.submissions if s.error}),
    }


def _figures(load: Load, fleet: Fleet, made_s: float, end_s: float, detected_s: float) -> dict[str, Any]:
    """`oldest_twice_s`: so long before the
    fault had arrived what came twice, at most (0: nothing, or all after it)."""
    homes = {r: s.region for s in load.submissions for r in s.recipients}
    arrivals = [
        Arrival(row.at_ns / 1e9, row.recipient, homes.get(row.recipient, "")) for row in fleet.log.acceptances
    ]
    found = figures_of(Watch(arrivals, load.submissions, made_s, end_s, detected_s, {VICTIM}, fleet.marked()))
    assert found.accepted is not None  # the load is its own
    first: dict[str, float] = {}
    twice: set[str] = set()
    for arrival in arrivals:
        if arrival.recipient in first:
            twice.add(arrival.recipient)
        first[arrival.recipient] = min(first.get(arrival.recipient, arrival.at_s), arrival.at_s)
    began_s = min(s.sent_s for s in load.submissions)
    return {
        "detection_s": found.detection_s,
        "gap_s": found.gap_s,
        "share_gap_s": found.share_gap_s,
        "share_gap_before_s": _gap_before(arrivals, made_s),
        "drain_s": found.drain_s,
        "receipt_p99_ms": found.receipt_p99_ms,
        "receipt_p99_before_ms": found.receipt_p99_before_ms,
        "accepted": found.accepted,
        "accepted_per_s": found.accepted / (end_s - began_s),
        "refused": found.refused,
        "lost": found.lost,
        "duplicated": found.duplicated,
        "unmarked": found.unmarked,
        "oldest_twice_s": max((made_s - first[r] for r in twice if first[r] < made_s), default=0.0),
    }


def _gap_before(arrivals: list[Arrival], made_s: float) -> float:
    """The longest gap of that share before the fault: what the machine does to it anyhow."""
    times = sorted(a.at_s for a in arrivals if a.source == VICTIM and made_s - BEFORE_S <= a.at_s <= made_s)
    return max((b - a for a, b in itertools.pairwise(times)), default=0.0)


async def price(cluster: ClusterFleet, log: SinkLog, *, count: int) -> dict[str, Any]:
    """As many batches as go; the clock runs from the first submit to the last first delivery at the sink."""
    numbers = iter(range(0, count, PRICE_BATCH))
    waits: list[float] = []
    await cluster.client.submit(messages(PRICE_BATCH, first=10_000_000))  # pools start
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
    with (
        tempfile.TemporaryDirectory(prefix="sf-", dir=options.get("directory")) as name,
        Undertaker() as undertaker,
    ):
        directory = Path(name)
        undertaker.take(directory)
        os.environ["RAY_TMPDIR"] = name
        replicas = int(options.get("replicas", 1))
        with accepting_sink(directory) as sink:
            return _run(kind, options, three_regions(directory, sink.addresses["accept"][1], replicas), sink)


def _run(kind: str, options: dict[str, Any], config: FleetConfig, sink: SinkProcess) -> dict[str, Any]:
    with ClusterFleet(config) as cluster:
        if kind == "price":
            return asyncio.run(price(cluster, sink.log(), count=int(options["messages"])))
        fleet = Fleet(cluster, sink.log(), Path(config.spool.directory).parent)
        after_s = float(options.get("after", AFTER_S))
        return asyncio.run(round_of(kind, fleet, rate=float(options["rate"]), after_s=after_s))


if __name__ == "__main__":
    print("FIGURES " + json.dumps(run(sys.argv[1], json.loads(sys.argv[2]))))

"""A region without Ray for benches: a real spool, scheduler and event log, and a pool that answers instantly.

`EchoPool` says "delivered" to everything it is handed, in reports like a real pool's. What a bench measures with it
is what the region costs.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from bench.fleet import bench_config
from engine.config.schema import FleetConfig
from engine.delivery.wire import (
    ENTRY,
    Holding,
    OutcomeRow,
    decode_header,
    encode_holding,
    encode_report,
    encode_resume,
)
from engine.providers.profiles import load_profiles
from engine.region.awaiting import deliver_on
from engine.region.outbox import EventLog
from engine.region.ports import PoolName
from engine.region.region import Region
from engine.region.wiring import RegionPorts
from engine.reputation.allowance import decode_summary, encode_answer
from engine.reputation.source import SourceOwner
from engine.routing.resolver import build_resolver
from engine.routing.router import Router
from engine.spool.store import Spool, SpoolOptions
from engine.values.clock import SteadyClock
from engine.values.outcome import OutcomeKind

REPORT_ROWS = 100
POLL_S = 0.01


class EchoPool:
    """See the module docstring. While `gate` is not set, no pool can be launched: mail is queued and stays."""

    def __init__(self) -> None:
        self.region: Region | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self._sequence = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def launch(self, name: PoolName, on_death: Callable[[PoolName], None]) -> "EchoPool":
        await self.gate.wait()
        return self

    async def survivors(self) -> list[PoolName]:
        return []

    async def resume(self, epoch: int) -> bytes:
        return encode_resume(0, [], [])

    async def assign(self, assignment: bytes) -> bytes:
        return encode_holding(Holding())

    async def load(self) -> tuple[int, int]:
        return 0, time.monotonic_ns()

    async def acknowledge(self, sequence: int) -> None:
        pass

    async def stop(self, deadline_s: float) -> None:
        pass

    async def drain(self) -> None:
        """Wait until everything that was handed over is settled."""
        await asyncio.gather(*self._tasks)

    async def deliver(self, header: bytes, entries: bytes) -> None:
        head = decode_header(header)
        at_ms = time.time_ns() // 1_000_000
        kind = int(OutcomeKind.DELIVERED)
        rows: list[OutcomeRow] = [
            (id_, kind, "recipient", 250, "2.0.0", "Ok", "mx.example.org", source, at_ms, False, head.batch)
            for id_, _, _, source, *_ in ENTRY.iter_unpack(entries)
        ]
        task = asyncio.get_running_loop().create_task(self._settle(rows, head.epoch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _settle(self, rows: list[OutcomeRow], epoch: int) -> None:
        assert self.region is not None
        for start in range(0, len(rows), REPORT_ROWS):
            self._sequence += 1
            await self.region.settle(encode_report(self._sequence, epoch, rows[start : start + REPORT_ROWS]))


class EchoSources:
    """The owners of the sources, as plain objects."""

    def __init__(self, config: FleetConfig) -> None:
        self._owners = {source.name: SourceOwner(config, source.name) for source in config.sources}

    async def observe(self, source: str, summary: bytes) -> bytes:
        return encode_answer(self._owners[source].observe(decode_summary(summary)))


class LoneRegion:
    """An asynchronous context manager; `region` and `spool` are the real ones."""

    def __init__(self, directory: Path) -> None:
        self.config = bench_config(directory, 25)
        clock = SteadyClock()
        options = SpoolOptions.from_config(self.config.spool, deliver=deliver_on(asyncio.get_running_loop()))
        self.spool = Spool.open(directory / "spool", region_number=1, clock=clock, options=options)
        self.pool = EchoPool()
        profiles = load_profiles(self.config.providers)
        self.region = Region(
            config=self.config,
            name="bench",
            spool=self.spool,
            router=Router(self.config, profiles, build_resolver(self.config.resolver), clock),
            ports=RegionPorts(launcher=self.pool, sources=EchoSources(self.config)),
            clock=clock,
            seed=1,
        )
        self.pool.region = self.region
        self._log = EventLog(self.spool, directory / "events", self.config.events.max_file)

    async def __aenter__(self) -> Self:
        await self.region.start()
        self._log.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.region.stop()
        await self.pool.drain()
        await self._log.stop()
        self.spool.close()

    async def until(self, kind: str, count: int, *, timeout_s: float) -> float:
        """Wait until the spool counts so many of a kind (at most, for "queued"); returns the monotonic time."""
        deadline = time.monotonic() + timeout_s
        while True:
            now = self.spool.counts()[kind]
            if now <= count if kind == "queued" else now >= count:
                return time.monotonic()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{kind}: {now} after {timeout_s:.0f} s, expected {count}")
            self.region.check()
            await asyncio.sleep(POLL_S)

"""Runs a trial on a connected fleet: warms it up, submits, watches, waits until all is settled, and reports.

Measured from outside: receipts at the client, acceptance and delivery by the regions' counters, and exactly by the
events logs where these are on this machine. A few messages to every destination go ahead and are not counted: they
start the pools and open the sessions, which take seconds once and nothing afterwards.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from engine.config.schema import FleetConfig
from engine.ops.process import ProcessUsage, process_usage
from engine.trial.destinations import destinations_of
from engine.trial.figures import Latency, Sample, TrialReport, UsageBook, latency_of, seconds_until
from engine.trial.limits import LimitWatch, cpu_limits, rate_limit
from engine.trial.load import AHEAD, batch_of, batch_size
from engine.trial.outcomes import Outcomes
from engine.values.message import Message, Receipt

IN_FLIGHT = 4
SAMPLE_S = 0.1
USAGE_EVERY = 10  # samples
STALL_S = 60.0
WARM_UP_S = 60.0
EVENTS_S = 3.0
KINDS = ("accepted", "delivered", "bounced", "expired", "cancelled", "suppressed", "queued")


class TrialFailed(RuntimeError):
    """There are no figures to give; says why."""


class TrialFleet(Protocol):
    """What a trial needs of a client (actors.client.AsyncClient fits it)."""

    config: FleetConfig

    async def submit(self, batch: Sequence[Message]) -> Receipt: ...

    async def snapshot(self) -> dict[str, Any]: ...

    async def usage(self) -> dict[str, ProcessUsage]:
        """By actor name; actors that do not answer are left out."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What is asked for. `rate` in messages per second, 0 for no limit; `sink` and `may_leave`: see destinations."""

    messages: int
    size: int
    rate: float = 0.0
    destinations: int = 1
    sink: str | None = None
    may_leave: bool = False


@dataclass(slots=True)
class _State:
    """What the load has done so far."""

    started: float = 0.0
    acknowledged: int = 0
    refused: int = 0
    first_refusal: str = ""
    last_receipt_s: float = 0.0
    waits_ms: list[float] = field(default_factory=list)
    submitted_ms: dict[int, float] = field(default_factory=dict)


async def run_trial(
    client: TrialFleet, trial: Trial, *, pause: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> TrialReport:
    """Returns when all is settled, or nothing has moved for a minute. Raises UnsafeTrial, TrialFailed."""
    largest = client.config.limits.max_message_size
    if trial.size > largest:
        raise TrialFailed(
            f"size {trial.size}: allowed are up to {largest} bytes (limits.max_message_size of this fleet)"
        )
    domains = destinations_of(client.config, trial.destinations, sink=trial.sink, may_leave=trial.may_leave)
    return await _Run(client, trial, domains, pause).run()


class _Run:
    """One trial."""

    def __init__(
        self,
        client: TrialFleet,
        trial: Trial,
        domains: Sequence[str],
        pause: Callable[[float], Awaitable[None]],
    ) -> None:
        self._client = client
        self._trial = trial
        self._domains = domains
        self._pause = pause
        self._campaign = f"bench-{os.urandom(6).hex()}"
        self._events = Path(client.config.events.directory)
        self._state = _State()
        self._report = TrialReport(trial.messages, trial.size, trial.rate, len(set(domains)))
        self._outcomes: Outcomes | None = None
        self._book = UsageBook()
        self._watch = LimitWatch(client.config.limits)
        self._before: dict[str, int] = {}
        self._now: dict[str, int] = {}

    async def run(self) -> TrialReport:
        own = Outcomes(self._events, self._campaign, self._trial.messages)
        if await self._warm_up():
            self._outcomes = own
        snapshot = await self._client.snapshot()
        self._before = self._now = sums(snapshot)
        self._watch.add(snapshot, 0.0)
        self._book.add(await self._usage(), is_first=True)
        machine = _machine_ticks()
        self._state.started = time.monotonic()
        watching = asyncio.create_task(self._observe())
        try:
            await self._submit()
            await self._drain(watching)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        self._book.add(await self._usage())
        self._report.machine_busy = _busy_share(machine, _machine_ticks())
        return self._finish()

    async def _usage(self) -> dict[str, ProcessUsage]:
        return {**await self._client.usage(), "client": process_usage()}

    # -- before

    async def _warm_up(self) -> bool:
        """One message to each destination, and some; returns whether their events can be read here."""
        name = f"{self._campaign}-warm-up"
        count = len(set(self._domains))
        own = Outcomes(self._events, name, count, local_part=AHEAD)
        before = sums(await self._client.snapshot())
        accepted = 0
        for first in range(0, count, 100):
            numbers = range(first, min(first + 100, count))
            receipt = await self._client.submit(
                batch_of(numbers, self._domains, self._trial.size, name, local_part=AHEAD)
            )
            accepted += sum(map(len, receipt.ids))
            if receipt.errors:
                error = receipt.errors[0]
                raise TrialFailed(f"{error.field} {error.value}: {error.message}")
        deadline = time.monotonic() + WARM_UP_S
        while settled(now := sums(await self._client.snapshot()), before) < accepted:
            if time.monotonic() > deadline:
                raise TrialFailed(
                    f"of {accepted} messages ahead of the trial {now['delivered'] - before['delivered']} were "
                    f"delivered in {WARM_UP_S:.0f} s: see `sendfleet events --campaign {name}`"
                )
            await self._pause(SAMPLE_S)
        deadline = time.monotonic() + EVENTS_S
        while own.settled < accepted and time.monotonic() < deadline:
            own.read()
            await self._pause(SAMPLE_S)
        return own.settled >= accepted

    # -- the load

    async def _submit(self) -> None:
        trial = self._trial
        step = batch_size(trial.size, trial.rate)
        self._firsts = iter(range(0, trial.messages, step))
        await asyncio.gather(*(self._worker(step) for _ in range(IN_FLIGHT)))

    async def _worker(self, step: int) -> None:
        state, trial = self._state, self._trial
        for first in self._firsts:
            if trial.rate:
                await self._pause(max(0.0, state.started + first / trial.rate - time.monotonic()))
            numbers = range(first, min(first + step, trial.messages))
            batch = batch_of(numbers, self._domains, trial.size, self._campaign)
            sent, state.submitted_ms[first // step] = time.monotonic(), time.time() * 1000
            receipt = await self._client.submit(batch)
            now = time.monotonic()
            state.waits_ms.append((now - sent) * 1000)
            state.last_receipt_s = now - state.started
            state.acknowledged += sum(map(len, receipt.ids))
            state.refused += len(receipt.errors)
            if receipt.errors and not state.first_refusal:
                error = receipt.errors[0]
                state.first_refusal = f"{error.field} {error.value}: {error.message}"

    # -- watching

    async def _observe(self) -> None:
        at = self._state.started
        turn = 0
        while True:
            snapshot = await self._client.snapshot()
            now = time.monotonic()
            self._take(snapshot, now, now - at)
            at = now
            turn += 1
            if turn % USAGE_EVERY == 0:
                self._book.add(await self._usage())
            await self._pause(SAMPLE_S)

    def _take(self, snapshot: dict[str, Any], now: float, interval_s: float) -> None:
        silent = [name for name, region in snapshot["regions"].items() if "counts" not in region]
        if silent:  # its counts are missing in the sums, so these would seem to go back
            note = f"region {silent[0]} did not answer for a while"
            if note not in self._report.notes:
                self._report.notes.append(note)
            return
        self._now = counts = sums(snapshot)
        self._watch.add(snapshot, interval_s)
        self._report.samples.append(
            Sample(
                round(now - self._state.started, 3),
                counts["accepted"] - self._before["accepted"],
                self._state.acknowledged,
                counts["delivered"] - self._before["delivered"],
                counts["queued"],
            )
        )

    async def _drain(self, watching: "asyncio.Task[None]") -> None:
        moved_s, last = time.monotonic(), -1
        while True:
            if watching.done():
                watching.result()
            now = self._settled()
            if now >= self._state.acknowledged:
                return
            if now != last:
                moved_s, last = time.monotonic(), now
            if time.monotonic() - moved_s > STALL_S:
                return
            await self._pause(SAMPLE_S / 2)

    def _settled(self) -> int:
        """How many of the trial's messages came to their end; by the counters, other mail is among them."""
        if self._outcomes is None:
            return settled(self._now, self._before)
        self._outcomes.read()
        return self._outcomes.settled

    # -- after

    def _finish(self) -> TrialReport:
        report, state, own = self._report, self._state, self._outcomes
        report.accepted = state.acknowledged
        report.refused, report.first_refusal = state.refused, state.first_refusal
        report.receipt = latency_of(state.waits_ms)
        if own is not None:
            report.delivered, report.bounced, report.expired = (
                own.delivered,
                own.failed["bounced"],
                own.failed["expired"],
            )
            report.unsettled = max(0, report.accepted - own.settled)
            report.delivery = self._delivery_latency(own)
        else:
            report.delivered, report.bounced, report.expired = (
                self._now[kind] - self._before[kind] for kind in ("delivered", "bounced", "expired")
            )
            report.unsettled = max(0, report.accepted - settled(self._now, self._before))
            report.notes.append(
                "the events logs are not on this machine: deliveries are the regions' counters, other mail included"
            )
        ended_s = self._delivered_s(own)
        report.seconds = round(max(ended_s, state.last_receipt_s), 3)
        report.accepted_per_s = _per_second(
            report.accepted,
            seconds_until(report.samples, "accepted", report.accepted) or state.last_receipt_s,
        )
        report.acknowledged_per_s = _per_second(report.accepted, state.last_receipt_s)
        report.delivered_per_s = _per_second(report.delivered, ended_s)
        report.actors = self._book.usage(max(report.seconds, SAMPLE_S))
        report.limits = [
            *self._watch.limits(),
            *cpu_limits(report.actors, report.machine_busy),
            rate_limit(self._trial.rate, report.accepted_per_s),
        ]
        return report

    def _delivered_s(self, own: Outcomes | None) -> float:
        """When the last delivery was, seconds after the start."""
        if own is not None and own.delivered:
            began_ms = min(self._state.submitted_ms.values())
            return max(0.001, (max(own.delivered_ms) - began_ms) / 1000)
        samples = self._report.samples
        reached = seconds_until(samples, "delivered", self._report.delivered)
        return reached or (samples[-1].at_s if samples else self._state.last_receipt_s)

    def _delivery_latency(self, own: Outcomes) -> Latency | None:
        step = batch_size(self._trial.size, self._trial.rate)
        submitted = self._state.submitted_ms
        return latency_of(
            max(0.0, at_ms - submitted[number // step])
            for number, at_ms in enumerate(own.delivered_ms)
            if at_ms
        )


def sums(snapshot: dict[str, Any]) -> dict[str, int]:
    """The counts of all regions that answered."""
    found = dict.fromkeys(KINDS, 0)
    for region in snapshot["regions"].values():
        for name in KINDS:
            found[name] += region.get("counts", {}).get(name, 0)
    return found


def settled(now: dict[str, int], before: dict[str, int]) -> int:
    """How many messages came to their end between two sums."""
    return sum(
        now[kind] - before[kind] for kind in ("delivered", "bounced", "expired", "cancelled", "suppressed")
    )


def _per_second(count: int, seconds: float) -> float:
    return round(count / seconds, 1) if seconds > 0 else 0.0


def _machine_ticks() -> tuple[int, int]:
    """(busy, all) ticks of this machine's cores since boot, by proc_stat(5): idle and iowait are not busy."""
    with open("/proc/stat") as file:
        ticks = [int(text) for text in file.readline().split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def _busy_share(first: tuple[int, int], last: tuple[int, int]) -> float:
    passed = last[1] - first[1]
    return round((last[0] - first[0]) / passed, 3) if passed else 0.0

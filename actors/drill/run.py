"""One drill from beginning to end: load, fault, detection, healing, drain, figures, verdict."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

from actors.drill.fault import Fault
from actors.drill.faults import FAULTS
from actors.drill.fleets import DOMAIN, LiveFleet, TemporaryFleet, wait_drained
from engine.drill.figures import Watch, binned, figures_of, share_of
from engine.drill.load import Load, until
from engine.drill.record import DrillRecord, judge, record_of
from engine.drill.scenarios import DrillOptions, DrillRefused, Scenario, caveat

DETECTION_S = 60.0
DRAIN_S = 180.0
FIRST_DELIVERIES_S = 60.0
MIN_LIVE_ARRIVALS = 20  # in the time before the fault; less traffic measures nothing
SETTLE_S = 1.0
MAX_STEP_S = 0.1  # of a unix clock during a drill


def run_temporary(
    scenario: Scenario, fleet: TemporaryFleet, options: DrillOptions, say: Callable[[str], None]
) -> DrillRecord:
    """On a fleet made for it; the fleet runs already, and is stopped here."""
    fault: Fault = FAULTS[scenario.name](fleet, scenario, options.region)
    record, watch = asyncio.run(_measure(fault, options, say))
    say("waiting until everything is sent")
    fault.extra[f"everything was sent within {DRAIN_S:.0f} s"] = asyncio.run(
        wait_drained(fleet.running, DRAIN_S)
    )
    fleet.stop_actors()  # the last events are in the log then
    return _conclude(record, fault, watch)


def run_live(
    scenario: Scenario,
    fleet: LiveFleet,
    options: DrillOptions,
    say: Callable[[str], None],
    confirm: Callable[[str], None],
) -> DrillRecord:
    """On the fleet that runs, with its own traffic. `confirm` is told what will be hit, and raises if it may not be."""
    fault: Fault = FAULTS[scenario.name](fleet, scenario, options.region)
    asyncio.run(_find(fault))
    confirm(fault.target)
    asyncio.run(fleet.begin())
    record, watch = asyncio.run(_measure(fault, options, say))
    time.sleep(SETTLE_S)  # the fleet goes on, and ships its events several times a second
    unread = asyncio.run(fleet.refresh())
    fault.notes += fleet.machines.problems + unread
    fault.extra["the events of all machines were read to the end"] = not unread
    _look_at_clocks(fault)
    return _conclude(record, fault, watch)


async def _measure(
    fault: Fault, options: DrillOptions, say: Callable[[str], None]
) -> tuple[DrillRecord, Watch]:
    fleet, scenario = fault.fleet, fault.scenario
    began_s = time.monotonic()
    load = None
    if not fleet.is_live:
        regions = tuple(region.name for region in fleet.config.regions)
        load = fault.load = Load(fleet.running, regions, DOMAIN, options.rate, began_s=began_s)
        load.start()
        await _flows(fleet)
    say("load runs")
    await asyncio.sleep(options.before_s)
    if fleet.is_live:
        if unread := await fleet.refresh():
            raise ConnectionError(f"nothing was done, since not every machine answers: {'; '.join(unread)}")
        _check_traffic(len(fleet.arrivals()), options.before_s)
        await _check_target(fault)
    else:
        await fault.find()
    try:
        await fault.make()
        fault.marks.append((fault.made_s, scenario.name))
        say(f"made: {scenario.title} ({fault.target})")
        detected_s = None
        if scenario.bounds.detection_s is not None or scenario.name == "dns":
            detected_s = await until(lambda: _quietly(fault), deadline_s=DETECTION_S)
            if detected_s is not None:
                detected_s = fault.noticed_s(detected_s)
                fault.marks.append((detected_s, "detected"))
                say(f"detected after {detected_s - fault.made_s:.2f} s")
        if scenario.name == "source-block":
            await asyncio.sleep(max(0.0, fault.made_s + options.after_s - time.monotonic()))
    finally:
        if fault.made_s:
            await fault.heal()
    await asyncio.sleep(max(0.0, fault.made_s + options.after_s - time.monotonic()))
    end_s = time.monotonic()
    if load is not None:
        await load.stop()
        if load.skipped:
            fault.notes.append(f"{load.skipped} batches were not sent: too many were without an answer")
    at_s = time.time() - time.monotonic() + fault.made_s
    name = fleet.config.fleet.name
    record = record_of(scenario, fleet=name, is_live=fleet.is_live, target=fault.target, at_s=at_s)
    record.replicas = fleet.config.fleet.replicas
    record.rate = 0.0 if fleet.is_live else options.rate
    record.caveat = caveat(scenario, fleet.config)
    watch = Watch(
        arrivals=(),
        submissions=None if load is None else load.submissions,
        fault_s=fault.made_s - began_s,
        end_s=end_s - began_s,
        detected_s=None if detected_s is None else detected_s - began_s,
        affected=fault.affected(),
        hit=fault.region if fault.has_share else "",
        may_refuse=(fault.region,) if scenario.may_refuse else (),
    )
    record.marks = [(at_s - began_s, text) for at_s, text in sorted(fault.marks)]
    return record, watch


def _check_traffic(delivered: int, seconds: float) -> None:
    """DrillRefused: a live fleet delivers too little for a gap to mean anything."""
    if delivered < MIN_LIVE_ARRIVALS:
        raise DrillRefused(
            f"the live fleet delivered {delivered} messages in {seconds:g} s: too little to "
            f"measure a gap by (at least {MIN_LIVE_ARRIVALS}); use a busier hour or a longer --before"
        )


async def _check_target(fault: Fault) -> None:
    """DrillRefused: it is not what was confirmed any more."""
    confirmed = fault.target
    await fault.find()
    if fault.target != confirmed:
        raise DrillRefused(
            f"{confirmed} is now {fault.target}: nothing was done, the fleet has troubles of its own"
        )


async def _flows(fleet: TemporaryFleet | LiveFleet) -> None:
    """Wait for deliveries of every region: pools take a moment to start."""
    regions = {source.name: source.region for source in fleet.config.sources}

    async def from_all() -> bool:
        seen = {regions.get(arrival.source) for arrival in fleet.arrivals()}
        return seen >= set(regions.values())

    if await until(from_all, deadline_s=FIRST_DELIVERIES_S, every_s=0.2) is None:
        raise DrillRefused(f"not every region delivered something within {FIRST_DELIVERIES_S:.0f} s of load")


async def _quietly(fault: Fault) -> bool:
    """A fleet that gives no answer has not said that it knows."""
    try:
        return await fault.is_detected()
    except (ConnectionError, TimeoutError):
        return False


async def _find(fault: Fault) -> None:
    """Before anybody is asked: every machine that is needed answers, and there is something to hit."""
    await fault.fleet.machines.ready(fault.region)
    await fault.find()


def _look_at_clocks(fault: Fault) -> None:
    """Noted, if one was set: what events say of the time is not right then."""
    try:
        step_s = asyncio.run(fault.fleet.machines.clock_step_s())
    except (ConnectionError, TimeoutError) as error:
        fault.notes.append(f"whether clocks were set meanwhile is not known: {error}")
        return
    if step_s > MAX_STEP_S:
        fault.notes.append(f"a clock was set by {step_s:.1f} s meanwhile: times of deliveries are not right")


def _conclude(record: DrillRecord, fault: Fault, watch: Watch) -> DrillRecord:
    fleet = fault.fleet
    began_s = fault.made_s - watch.fault_s
    arrivals = [
        type(arrival)(arrival.at_s - began_s, arrival.recipient, arrival.source)
        for arrival in fleet.arrivals()
    ]
    figures = figures_of(replace(watch, arrivals=arrivals, marked=fleet.marked()))
    audits, unaudited = asyncio.run(fleet.machines.audits())
    fault.notes += [f"not every spool was audited: {text}" for text in unaudited]
    problems = sum(report.problem_count for report in audits)
    extra = dict(fault.extra)
    extra["the audit accounts for every message"] = problems == 0 if audits and not unaudited else None
    bounced = sum(report.counts.get("bounced", 0) for report in audits)
    if not fleet.is_live:
        extra["no recipient bounced"] = bounced == 0
    end_s = max([watch.end_s, *(arrival.at_s for arrival in arrivals)])
    record.figures = figures
    record.checks = judge(fault.scenario, figures, extra=extra)
    record.delivered = binned([arrival.at_s for arrival in arrivals], end_s)
    record.delivered_share = binned(share_of(watch, arrivals), end_s)
    record.accepted = binned([s.answered_s for s in watch.submissions or () for _ in s.recipients], end_s)
    record.notes += fault.notes + [f"{count} batches: {text}" for text, count in figures.errors.items()]
    return record

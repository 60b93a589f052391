"""What a gate measures of a site's answers, and how it gets to the region."""

import asyncio
from typing import Any

import pytest

from engine.delivery.lanes import Gates
from engine.delivery.pulse import Meter, Pulse
from engine.delivery.reports import MAX_PULSES, Reports
from engine.delivery.wire import decode_report
from engine.values.outcome import OutcomeKind


def test_times_are_added_as_logarithms() -> None:
    meter = Meter()
    for took_ns in (1_000_000, 4_000_000):
        meter.answered(took_ns)
    pulse = meter.take(3, "x")
    assert pulse is not None
    assert (pulse.source, pulse.site, pulse.timed) == (3, "x", 2)
    assert 2 ** (pulse.log2_us / pulse.timed) == pytest.approx(2_000)


def test_what_was_told_is_counted_anew_but_for_what_is_open() -> None:
    meter = Meter()
    for _ in range(3):
        meter.opened()
    meter.closed()
    meter.refused()
    assert meter.take(0, "x") == Pulse(0, "x", 0, 0.0, 1, 3)
    assert meter.take(0, "x") is None, "nothing new"
    meter.answered(500)
    assert meter.take(0, "x") == Pulse(0, "x", 1, 0.0, 0, 2), "shorter than a microsecond counts as one"


def test_each_source_and_site_has_its_own() -> None:
    gates = Gates(connections=5, interval_ns=0, total=lambda: 0)
    gates.of(1, "a").meter.answered(2_000)
    gates.of(1, "b")
    gates.of(2, "a").meter.refused()
    assert gates.take_pulses() == [Pulse(1, "a", 1, 1.0, 0, 0), Pulse(2, "a", 0, 0.0, 1, 0)]


def test_a_pulse_goes_with_the_next_report_once_and_only_so_many_wait() -> None:
    async def work() -> list[Any]:
        sent: list[Any] = []
        reports = Reports(lambda data: sent.append(decode_report(data)))
        pulse = Pulse(1, "a", 5, 50.0, 0, 2)
        reports.tick([], [pulse])
        assert sent == [], "it is no reason for a report"
        reports.tick([], [pulse] * 2 * MAX_PULSES)
        for id_ in (7, 8):
            reports.add((id_, int(OutcomeKind.DELIVERED), "recipient", 250, "", "", "", 1, 0, 0, 1))
            reports.flush()
        assert sent[0].pulses[0] == pulse
        return [len(report.pulses) for report in sent]

    assert asyncio.run(work()) == [MAX_PULSES, 0]

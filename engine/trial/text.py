"""A trial's report for people and for programs."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from engine.trial.figures import Latency, TrialReport
from engine.trial.limits import is_held_back


def lines_of(report: TrialReport) -> Iterator[str]:
    """The report as lines of text."""
    yield f"accepted      {report.accepted:>10,}   {report.accepted_per_s:>10,.0f}/s   refused {report.refused:,}"
    yield f"acknowledged  {report.accepted:>10,}   {report.acknowledged_per_s:>10,.0f}/s   {_latency(report.receipt)}"
    yield f"delivered     {report.delivered:>10,}   {report.delivered_per_s:>10,.0f}/s   {_latency(report.delivery)}"
    others = {"bounced": report.bounced, "expired": report.expired, "not settled": report.unsettled}
    if any(others.values()):
        yield "of these " + ", ".join(f"{name} {count:,}" for name, count in others.items() if count)
    if report.sink_messages is not None:
        yield f"the sink took {report.sink_messages:,}, of these twice {report.sink_duplicates:,}"
    if report.first_refusal:
        yield f"first refusal: {report.first_refusal}"
    yield ""
    yield f"{'actor':<28} {'CPU s':>8} {'cores':>6} {'MiB':>8} {'without file pages':>20}"
    for name, usage in report.actors.items():
        again = f"   started again {usage.restarts} times" if usage.restarts else ""
        yield (
            f"{name:<28} {usage.cpu_s:>8.2f} {usage.cores:>6.2f} {usage.peak_resident_bytes / 2**20:>8,.0f} "
            f"{usage.peak_anonymous_bytes / 2**20:>20,.0f}{again}"
        )
    yield ""
    held = sorted((limit for limit in report.limits if is_held_back(limit)), key=lambda limit: -limit.share)
    if not held:
        yield "held back by no limit of the fleet that is known"
    for limit in held:
        yield f"held back by {limit.name} ({limit.share:.0%} of the time): {limit.said}"
    for note in report.notes:
        yield f"note: {note}"


def _latency(latency: Latency | None) -> str:
    if latency is None:
        return "latency not measured"
    return f"p50 {latency.p50_ms:,.0f} ms   p95 {latency.p95_ms:,.0f} ms   p99 {latency.p99_ms:,.0f} ms"


def write_json(report: TrialReport, path: Path) -> None:
    """Write everything that was measured; raises OSError."""
    document = asdict(report)
    document["held_back"] = [limit.name for limit in report.limits if is_held_back(limit)]
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

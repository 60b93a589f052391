"""The report of a trial, and the arithmetic of its figures.

Percentiles are by nearest rank. Rates are over the time from the first submit to the moment named: the last message
accepted (by the regions' counters), the last receipt at the client, the last delivery.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from engine.ops.process import ProcessUsage


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds, of `count` measurements."""

    count: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    worst_ms: float


@dataclass(frozen=True, slots=True)
class Sample:
    """The counts of the trial at one moment, seconds after its start."""

    at_s: float
    accepted: int
    acknowledged: int
    delivered: int
    queued: int


@dataclass(frozen=True, slots=True)
class ActorUsage:
    """What one actor (or the client) used during the trial. `cores` is its CPU seconds per second."""

    cpu_s: float
    cores: float
    peak_resident_bytes: int
    peak_anonymous_bytes: int
    restarts: int


@dataclass(frozen=True, slots=True)
class Limit:
    """One thing that can hold a fleet back. `share`: of the time with mail to send, how much it was met (0 to 1)."""

    name: str
    share: float
    said: str


@dataclass(slots=True)
class TrialReport:
    """Everything that was measured. `delivery` is None if the events logs are not on this machine."""

    messages: int
    size_bytes: int
    rate: float
    destinations: int
    is_temporary: bool = False
    accepted: int = 0
    refused: int = 0
    first_refusal: str = ""
    delivered: int = 0
    bounced: int = 0
    expired: int = 0
    unsettled: int = 0
    sink_messages: int | None = None
    sink_duplicates: int | None = None
    seconds: float = 0.0
    accepted_per_s: float = 0.0
    acknowledged_per_s: float = 0.0
    delivered_per_s: float = 0.0
    receipt: Latency | None = None
    delivery: Latency | None = None
    actors: dict[str, ActorUsage] = field(default_factory=dict)
    machine_busy: float = 0.0
    limits: list[Limit] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0 to 1) of the ordered values do not exceed."""
    rank = -(-share * len(ordered) // 1)
    return ordered[max(0, min(len(ordered) - 1, int(rank) - 1))]


def latency_of(values_ms: Iterable[float]) -> Latency | None:
    """None of nothing."""
    ordered = sorted(values_ms)
    if not ordered:
        return None
    return Latency(
        len(ordered),
        percentile(ordered, 0.5),
        percentile(ordered, 0.95),
        percentile(ordered, 0.99),
        ordered[-1],
    )


def seconds_until(samples: Sequence[Sample], name: str, count: int) -> float | None:
    """When a count of the samples reached a number, interpolated between two of them; None if it never did."""
    before_s, before = 0.0, 0
    for sample in samples:
        now = getattr(sample, name)
        if now >= count:
            part = (count - before) / (now - before) if now > before else 1.0
            return before_s + (sample.at_s - before_s) * part
        before_s, before = sample.at_s, now
    return None


class UsageBook:
    """What each actor used between its first reading and its last.

    One that appears later counts from zero; one that was started again (another pid) goes on from what its former
    process was last seen with.
    """

    def __init__(self) -> None:
        self._first: dict[str, float] = {}
        self._last: dict[str, ProcessUsage] = {}
        self._before_s: dict[str, float] = {}
        self._restarts: dict[str, int] = {}
        self._peaks: dict[str, tuple[int, int]] = {}

    def add(self, readings: Mapping[str, ProcessUsage], *, is_first: bool = False) -> None:
        for name, now in readings.items():
            last = self._last.get(name)
            if last is None:
                self._first[name] = now["cpu_s"] if is_first else 0.0
            elif last["pid"] != now["pid"]:
                used_s = last["cpu_s"] - self._first[name]
                self._before_s[name] = self._before_s.get(name, 0.0) + used_s
                self._restarts[name] = self._restarts.get(name, 0) + 1
                self._first[name] = 0.0
            self._last[name] = now
            resident, anonymous = self._peaks.get(name, (0, 0))
            self._peaks[name] = (
                max(resident, now["resident_bytes"]),
                max(anonymous, now["anonymous_bytes"]),
            )

    def usage(self, seconds: float) -> dict[str, ActorUsage]:
        """By actor, the largest CPU first."""
        found = {}
        for name, last in self._last.items():
            cpu_s = self._before_s.get(name, 0.0) + last["cpu_s"] - self._first[name]
            found[name] = ActorUsage(
                round(cpu_s, 3), round(cpu_s / seconds, 3), *self._peaks[name], self._restarts.get(name, 0)
            )
        return dict(sorted(found.items(), key=lambda item: -item[1].cpu_s))

"""What a pool shows of itself: its sessions for metrics and alerts, its counts and gauges for status and benches."""

from collections.abc import Mapping

from engine.delivery.lanes import Gates, Lanes
from engine.delivery.ports import EgressSource
from engine.delivery.preparation import Preparation
from engine.delivery.reports import Reports
from engine.metrics.bounding import merged
from engine.metrics.catalogue import Point


def session_points(provider: str, sources: Mapping[int, EgressSource], gates: Gates) -> list[Point]:
    """Sessions, their limits and what those have refused, by source."""
    found = []
    for (source, _), gate in gates.items():
        labels = provider, sources[source].name
        found.append(Point("sendfleet.sessions.open", labels, gate.open))
        found.append(Point("sendfleet.sessions.limit", labels, gate.limit))
    for source, count in gates.refused().items():
        labels = provider, sources[source].name
        found.append(Point("sendfleet.sessions.refused", labels, count))
    return merged(found)


def pool_stats(
    provider: str, *, held: int, lanes: Lanes, gates: Gates, preparation: Preparation, reports: Reports
) -> dict[str, object]:
    """Counts since the start, and gauges. `held`: ids that were handed over and are not reported."""
    counts = reports.counts
    return {
        "provider": provider,
        "held": held,
        "sessions": sum(len(lane.sessions) for lane in lanes.values()),
        "opening": sum(lane.opening for lane in lanes.values()),
        "lanes": len(lanes),
        "gates": len(gates),
        "known_domains": lanes.known_domains(),
        "preparing": preparation.waiting,
        "prepared_bytes": preparation.held_bytes,
        "signed": preparation.signed,
        "signing_failures": preparation.failed,
        "unacknowledged": reports.kept(),
        "reported": sum(counts.values()) - reports.waiting(),
        "outcomes": {str(kind): count for kind, count in counts.items() if count},
    }

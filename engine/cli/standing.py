"""What `sendfleet status` says of regions that cover for each other (docs/failover.md), of a fleet's snapshot.

A fleet without copies has no standings, and nothing is said.
"""

from collections.abc import Iterator
from typing import Any

WAITS = "waits until every region may go on without copies"
COLOURS = {"unknown": "yellow", "suspect": "yellow", "returning": "yellow", "dead": "red"}


def has_standings(snapshot: dict[str, Any]) -> bool:
    return bool(snapshot.get("standing"))


def standing_of(snapshot: dict[str, Any], name: str) -> str:
    """For the table: live, suspect, dead or returning; unknown while a Fleet that has just started has not judged."""
    standing = str(snapshot["standing"].get(name, {}).get("standing", "unknown"))
    colour = COLOURS.get(standing)
    return f"[{colour}]{standing}[/{colour}]" if colour else standing


def cover_lines(snapshot: dict[str, Any]) -> list[str]:
    """A line for each region in which something is not in order."""
    found = ((name, list(_out_of_order(status))) for name, status in _statuses(snapshot))
    return [f"{name}: {'; '.join(parts)}" for name, parts in found if parts]


def waiting_lines(snapshot: dict[str, Any]) -> list[str]:
    """A line for each region that has kept copies and is to go on without, and why it does not."""
    waiting = _waiting(snapshot)
    why = snapshot.get("without_copies")
    return [f"{name}: {WAITS}" for name in waiting] + ([why] if waiting and why else [])


def idle_regions(snapshot: dict[str, Any]) -> list[str]:
    """Regions that answer, and do not do their work: they send nothing, or accept nothing."""
    idle = [f"{name} {WAITS}" for name in _waiting(snapshot)]
    for name, status in _statuses(snapshot):
        standing = snapshot.get("standing", {}).get(name, {}).get("standing", "live")
        if standing in ("dead", "returning"):
            idle.append(f"{name} is {standing}")
        elif not _has_lease(status):
            idle.append(f"{name} has no lease")
        elif status.get("refusal"):
            idle.append(f"{name} refuses new mail: {status['refusal']}")
    return idle


def _waiting(snapshot: dict[str, Any]) -> list[str]:
    return [name for name, region in snapshot.get("regions", {}).items() if region.get("waits_for_all")]


def _statuses(snapshot: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, region in snapshot.get("regions", {}).items():
        if region.get("failover"):
            yield name, region["failover"]


def _has_lease(status: dict[str, Any]) -> bool:
    return bool(status["is_live"] and status["lease_ms"] > 0)


def _out_of_order(status: dict[str, Any]) -> Iterator[str]:
    standby = status["standby"]
    if not _has_lease(status):
        yield "no lease: it sends nothing"
    if not status["standby_in_reach"]:
        away = f"its standby, {standby}, is not in reach" if standby else "no standby in reach"
        yield f"{away}: new mail is {'refused' if status.get('refusal') else 'accepted without a copy'}"
    if status["standby_lacks"]:
        yield f"{standby or 'a standby'} lacks copies of {status['standby_lacks']} messages"
    if status["degraded_receipts"]:
        yield f"degraded receipts since its start: {status['degraded_receipts']}"

"""`sendfleet status`: what the fleet is doing, or what became of one message."""

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from engine.cli.drain import drain_line, need_line
from engine.cli.port import PortFactory
from engine.cli.standing import cover_lines, has_standings, idle_regions, standing_of, waiting_lines
from engine.cli.terminal import Failure, fleet_option, output
from engine.values.ids import parse_id

COUNTS = ("accepted", "queued", "delivered", "bounced", "expired", "suppressed", "cancelled")
BACKLOG = {
    "outstanding": "messages at pools",
    "spool_queues": "spool queues",
    "unrouted_domains": "domains without a route yet",
    "suspensions": "suspensions",
}


def build_status(port_factory: PortFactory) -> click.Command:
    @click.command()
    @click.argument("message_id", required=False)
    @fleet_option
    @click.option("--json", "as_json", is_flag=True, help="Everything that is known, as JSON.")
    def status(message_id: str | None, fleet_path: Path, as_json: bool) -> None:
        """Show the fleet's state, or that of one message.

        MESSAGE_ID is the 16 hex digits that `send` and the events show.

        Exit status 1 if a region does not answer, is dead or returning, has no lease, refuses new mail for want of a
        standby, or waits until every region may go on without copies.
        """
        if message_id is not None:
            _show_message(message_id, fleet_path, port_factory, as_json)
            return
        snapshot = asyncio.run(port_factory(fleet_path).snapshot())
        if as_json:
            click.echo(_json(snapshot))
        else:
            output().print(_table(snapshot))
            lines = (
                *_alerts(snapshot),
                *cover_lines(snapshot),
                *waiting_lines(snapshot),
                *_draining(snapshot),
                *_gateways(snapshot),
                *_backlog(snapshot),
                *_tls(snapshot),
                *_tenants(snapshot),
                *_listed(snapshot),
                *_dns(snapshot),
            )
            for line in lines:
                output().print(line)
        regions = snapshot.get("regions", {})
        silent = [f"{name}: {region['error']}" for name, region in regions.items() if region.get("error")]
        idle = idle_regions(snapshot)
        if silent or idle:
            raise Failure("; ".join([*([f"no answer from {', '.join(silent)}"] if silent else ()), *idle]))

    return status


def _show_message(text: str, fleet_path: Path, port_factory: PortFactory, as_json: bool) -> None:
    try:
        id_ = parse_id(text)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    found = asyncio.run(port_factory(fleet_path).status(id_))
    if found is None:
        raise Failure(f"message {text}: no region has accepted it")
    if as_json:
        click.echo(_json(found))
        return
    table = Table(box=None, show_header=False)
    for key, value in found.items():
        table.add_row(key, str(value))
    output().print(table)


def _table(snapshot: dict[str, Any]) -> Table:
    table = Table(title=f"fleet {snapshot.get('fleet', '')}", title_justify="left", box=None, padding=(0, 1))
    is_covered = has_standings(snapshot)
    table.add_column("region")
    if is_covered:
        table.padding = (0, 1, 0, 0)  # 80 columns
        table.add_column("standing")
    for name in COUNTS:
        table.add_column(name, justify="right")
    sums = dict.fromkeys(COUNTS, 0)
    regions = snapshot.get("regions", {})
    shard_of = snapshot.get("shard_of", {})
    for name, region in regions.items():
        shown = [f"{shard_of[name]}/{name}" if name in shard_of else name]
        shown += [standing_of(snapshot, name)] if is_covered else []
        if region.get("error"):
            table.add_row(*shown, "[red]none[/red]")
            continue
        counts = region.get("counts", {})
        for kind in COUNTS:
            sums[kind] += counts.get(kind, 0)
        table.add_row(*shown, *(str(counts.get(kind, 0)) for kind in COUNTS))
    if len(regions) > 1:
        table.add_row("all", *([""] if is_covered else ()), *(str(sums[kind]) for kind in COUNTS))
    return table


def _alerts(snapshot: dict[str, Any]) -> list[str]:
    """How many alerts fire, and which."""
    rows = snapshot.get("alerts") or []
    critical = sum(row["severity"] == "critical" for row in rows)
    names = ", ".join(dict.fromkeys(row["alert"] for row in rows))
    return (
        [f"alerts: {len(rows)}, {critical} of them critical: {names}: see `sendfleet alerts`"] if rows else []
    )


def _gateways(snapshot: dict[str, Any]) -> list[str]:
    """What a gateway does not do that it should."""
    lines = []
    for name, gateway in snapshot.get("gateways", {}).items():
        if gateway.get("error"):
            lines.append(f"{name}: the gateway does not answer: {gateway['error']}")
        elif why := gateway.get("metrics", {}).get("error"):
            lines.append(f"{name}: metrics are not served: {why}")
    return lines


def _backlog(snapshot: dict[str, Any]) -> list[str]:
    """A line for each region: what it holds beyond its counts."""
    lines = []
    for name, region in snapshot.get("regions", {}).items():
        sizes = [f"{_size(region[key])} {label}" for key, label in BACKLOG.items() if key in region]
        if sizes:
            lines.append(f"{name}: {', '.join(sizes)}")
    return lines


def _draining(snapshot: dict[str, Any]) -> list[str]:
    """Regions that are being drained, or are."""
    lines = [
        (
            name,
            "drained, and does not answer"
            if snapshot.get("health", {}).get(name) == "drained, down"
            else None,
        )
        if region.get("error")
        else (name, drain_line(region) or need_line(region))
        for name, region in snapshot.get("regions", {}).items()
    ]
    return [f"{name}: {line}" for name, line in lines if line]


def _tls(snapshot: dict[str, Any]) -> list[str]:
    """Sessions since the region's start whose policy objected, by fault, and those in plain text by an exception."""
    lines = []
    for name, region in snapshot.get("regions", {}).items():
        faults: Counter[str] = Counter()
        total = plain = 0
        for row in region.get("tls", ()):
            total += row["sessions"]
            plain += row["sessions"] * (row["verified"] == "plain")
            if row["fault"]:
                faults[row["fault"]] += row["sessions"]
        said = [f"{fault} {count}" for fault, count in faults.most_common()]
        said += [f"in plain text by an exception {plain}"] if plain else []
        if said:
            lines.append(f"{name}: TLS, of {total} sessions: {', '.join(said)}")
    return lines


def _tenants(snapshot: dict[str, Any]) -> list[str]:
    """Tenants that share no source with the others, as far as there is a pool apart: `sendfleet tenants list`."""
    rows = [
        (name, row)
        for name, region in snapshot.get("regions", {}).items()
        for row in region.get("tenants", ())
    ]
    return [
        f"{name}: tenant {row['tenant']} is poor: {row['reason']}"
        for name, row in rows
        if row["quality"] == "poor"
    ]


def _listed(snapshot: dict[str, Any]) -> list[str]:
    """Sources on block lists, and lists that do not work from here."""
    lines = []
    for name, region in snapshot.get("regions", {}).items():
        found = region.get("blocklists") or {}
        lines += [
            f"{name}: source {source} is listed: {text}" for source, text in found.get("sources", {}).items()
        ]
        lines += [
            f"{name}: the blocklist {zone} says nothing about us: {text}"
            for zone, text in found.get("problems", {}).items()
        ]
    return lines


def _dns(snapshot: dict[str, Any]) -> list[str]:
    """What became of the submission host name, if the fleet keeps one."""
    dns = snapshot.get("dns")
    if not dns:
        return []
    lagging = "; ".join(f"{server} {why}" for server, why in sorted(dns["lagging"].items()))
    state = "at every server" if dns["is_confirmed"] else dns["problem"] or lagging or "not confirmed yet"
    return [f"{dns['name']}: {', '.join(dns['wanted']) or 'nothing decided yet'} ({state})"]


def _size(value: Any) -> str:
    """A gauge; of a collection, how many there are."""
    return str(
        sum(value.values()) if isinstance(value, dict) else len(value) if hasattr(value, "__len__") else value
    )


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, default=str)

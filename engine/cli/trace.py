"""`sendfleet trace ID`: the attempts of a message, the source of each, and why the other sources were not eligible.

Recorded: every attempt (its event has time, source, host and reply), and every change of what a source may do at a
site (events `allowance` and `suspension`). Reconstructed from these: which sources were eligible when an attempt was
made. Not recorded: how far each source's rate, window and daily cap were used up at that moment, and the draw between
two sources that were equal. The state now is asked of the region and is exact but for the rates.
"""

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import orjson

from engine.cli.events import read_events
from engine.cli.port import FleetPort, PortFactory
from engine.cli.shaping import time_text
from engine.cli.terminal import Failure, fleet_option, output
from engine.config.schema import FleetConfig, SourceConfig
from engine.values.ids import parse_id, region_of
from engine.values.stream import Stream

NO_SOURCE = 0xFFFF
STATES = frozenset({b'"allowance"', b'"suspension"'})
NOTE = "eligible by recorded changes; how far rates, windows and daily caps were used up then is not recorded"


def build_trace(port_factory: PortFactory) -> click.Command:
    @click.command()
    @click.argument("message_id")
    @fleet_option
    @click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
    def trace(message_id: str, fleet_path: Path, as_json: bool) -> None:
        """Show the way of a message: each attempt, its source, and why the other sources did not carry it.

        MESSAGE_ID is the 16 hex digits that `send` and the events show. Attempts are read from the events logs on this
        machine.
        """
        try:
            id_ = parse_id(message_id)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        found = asyncio.run(_traced(port_factory(fleet_path), id_, message_id))
        if found is None:
            raise Failure(f"message {message_id}: no region has accepted it")
        if as_json:
            click.echo(json.dumps(found, indent=2))
            return
        for line in _sentences(found):
            output().print(line, markup=False)

    return trace


async def _traced(port: FleetPort, id_: int, text: str) -> dict[str, Any] | None:
    config = port.config
    attempts, changes = read_history(Path(config.events.directory), text)
    last: dict[str, Any] = attempts[-1] if attempts else {}
    stream = int(Stream.parse(last["stream"])) if last else 0
    found = await port.trace(
        id_, recipient=last.get("recipient", ""), stream=stream, tenant=last.get("tenant", "")
    )
    if found is None:
        return None
    region = next((r.name for r in config.regions if r.number == region_of(id_)), "")
    sources = [s for s in config.sources if s.region == region]
    rows = []
    for event in attempts:
        carrier = config.sources[event["source"]].name if event["source"] < len(config.sources) else ""
        others = [
            {"source": s.name, "reasons": why_not(config, s, found["site"], event, changes)}
            for s in sources
            if s.name != carrier
        ]
        rows.append({**event, "source_name": carrier, "others": others if carrier else []})
    is_queued = found["status"]["state"] == "queued"
    return {**found, "attempts": rows, "paths": found["paths"] if is_queued else [], "note": NOTE}


def read_history(directory: Path, id_: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The events of a message, each once and by time, and those that changed what a source may do, by time."""
    wanted = b'"' + id_.encode() + b'"'
    attempts: dict[tuple[int, int, str], dict[str, Any]] = {}
    changes: dict[bytes, dict[str, Any]] = {}
    for line in read_events(directory):
        # most lines are about other messages: they are not parsed
        if wanted in line:
            event = orjson.loads(line)
            if event.get("id") == id_:
                attempts[event["seq"], event["at_ms"], event["event"]] = event
        elif any(name in line for name in STATES):
            event = orjson.loads(line)
            if event.get("event") in ("allowance", "suspension"):
                changes[line] = event
    by_time = sorted(changes.values(), key=lambda event: (event["at_ms"], event["seq"]))
    return sorted(attempts.values(), key=lambda event: (event["at_ms"], event["seq"])), by_time


def why_not(
    config: FleetConfig,
    source: SourceConfig,
    site: str,
    event: dict[str, Any],
    changes: Iterable[dict[str, Any]],
) -> list[str]:
    """Why a source could not carry the message at the time of an attempt; empty: it could have."""
    reasons = []
    if event["stream"] not in {str(stream) for stream in source.streams}:
        reasons.append(f"does not serve the stream {event['stream']}")
    kind, tenant = source.tenancy_of()
    if kind == "dedicated" and tenant != event["tenant"]:
        reasons.append(f"dedicated to the tenant {tenant}")
    held: dict[str, dict[str, Any]] = {}
    suspended: dict[str, dict[str, Any]] = {}
    for change in changes:
        if change["at_ms"] > event["at_ms"]:
            break
        if (
            change["event"] == "allowance"
            and change["source"] == source.name
            and change["site"] in ("", site)
        ):
            held[change["site"]] = change
        elif (
            change["event"] == "suspension"
            and change["source"] in ("", source.name)
            and change["site"] == site
        ):
            suspended[change["source"]] = change
    allowance = held.get(site) or held.get("")
    if allowance is not None and allowance["weight"] == 0:
        reasons.append(f"out of the rotation ({allowance['state']}): {allowance['reason']}")
    for change in suspended.values():
        if change["until_ms"] > event["at_ms"]:
            reasons.append(f"suspended until {time_text(change['until_ms'])}: {change['reason']}")
    return reasons


def _sentences(found: dict[str, Any]) -> list[str]:
    status = found["status"]
    lines = [
        f"{status['id']}: {status['state']}, region {found['region']}, site {found['site'] or 'not known'}"
    ]
    for number, event in enumerate(found["attempts"], 1):
        lines += _attempt_lines(number, event)
    if not found["attempts"]:
        lines.append("no attempt is in the events logs on this machine")
    if found.get("route"):
        lines.append(f"no route now: {found['route']}")
    if found["paths"]:
        lines.append("now:")
        for row in found["paths"]:
            lines.append(f"  {row['source']}: {'; '.join(row['reasons']) or 'may carry it'}")
    if any(event["others"] for event in found["attempts"]):
        lines.append(f"({found['note']})")
    return lines


def _attempt_lines(number: int, event: dict[str, Any]) -> list[str]:
    reply = " ".join(str(part) for part in (event["code"] or "", event["enhanced"], event["text"]) if part)
    at = time_text(event["at_ms"])
    if not event["source_name"]:
        return [f"{number}. {at} {event['event']}, before any source carried it: {reply}"]
    mark = " (may have been sent twice)" if event["possible_duplicate"] else ""
    lines = [f"{number}. {at} {event['event']} over {event['source_name']} to {event['host']}{mark}: {reply}"]
    out = [row for row in event["others"] if row["reasons"]]
    free = [row["source"] for row in event["others"] if not row["reasons"]]
    lines += [f"     not {row['source']}: {'; '.join(row['reasons'])}" for row in out]
    if free:
        lines.append(
            f"     chosen among {event['source_name']}, {', '.join(free)}: the less loaded of two at random"
        )
    elif event["others"]:
        lines.append("     the only one eligible")
    return lines

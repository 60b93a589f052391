"""`sendfleet trace ID`: the attempts of a message, the source of each, and why the other sources were not eligible.

Reconstructed from what is recorded (engine/cli/trace_history.py): which sources were eligible when an attempt was
made. Not recorded: how far each source's rate, window and daily cap were used up at that moment, and the draw between
two sources that were equal. The state now is asked of the region and is exact but for the rates.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import click

from engine.cli.port import FleetPort, PortFactory
from engine.cli.shaping import time_text
from engine.cli.terminal import Failure, fleet_option, say
from engine.cli.trace_history import History
from engine.values.ids import parse_id, region_of
from engine.values.stream import Stream

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
            say(line)

    return trace


async def _traced(port: FleetPort, id_: int, text: str) -> dict[str, Any] | None:
    config = port.config
    history = History(config, text)
    last: dict[str, Any] = history.attempts[-1] if history.attempts else {}
    stream = int(Stream.parse(last["stream"])) if last else 0
    found = await port.trace(
        id_, recipient=last.get("recipient", ""), stream=stream, tenant=last.get("tenant", "")
    )
    if found is None:
        return None
    region = next((r.name for r in config.regions if r.number == region_of(id_)), "")
    known = {r.name for r in config.regions}
    rows = []
    for event in history.attempts:
        carrier = history.carrier_of(event)
        where = event["region"] if event["region"] in known else region
        others = history.others(event, found["site"], where) if carrier else []
        rows.append({**event, "source_name": carrier, "others": [other._asdict() for other in others]})
    paths = found["paths"] if found["status"]["state"] == "queued" else []
    return {**found, "attempts": rows, "later": history.later, "paths": paths, "note": NOTE}


def _sentences(found: dict[str, Any]) -> list[str]:
    status = found["status"]
    lines = [
        f"{status['id']}: {status['state']}, region {found['region']}, site {found['site'] or 'not known'}"
    ]
    for number, event in enumerate(found["attempts"], 1):
        lines += _attempt_lines(number, event)
    if not found["attempts"]:
        lines.append("no attempt is in the events logs on this machine")
    for event in found["later"]:
        said = event.get("text") or event.get("feedback") or ""
        lines.append(f"{time_text(event['at_ms'])} {event['event']}{': ' * bool(said)}{said}")
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
    lines += [
        f"     not {row['source']}: {'; '.join(row['reasons'])}" for row in event["others"] if row["reasons"]
    ]
    lines += [
        f"     not {row['source']}: {row['passed_over']}" for row in event["others"] if row["passed_over"]
    ]
    free = [row["source"] for row in event["others"] if not (row["reasons"] or row["passed_over"])]
    if free:
        lines.append(
            f"     chosen among {event['source_name']}, {', '.join(free)}: the less loaded of two at random"
        )
    elif event["others"]:
        lines.append("     the only one eligible")
    return lines

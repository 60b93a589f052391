"""`sendfleet alerts`: what the fleet has found wrong with itself."""

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from engine.cli.port import PortFactory
from engine.cli.terminal import Failure, fleet_option, output


def build_alerts(port_factory: PortFactory) -> click.Command:
    @click.command("alerts")
    @fleet_option
    @click.option("--check", is_flag=True, help="Exit status 1 if any fires: for scripts.")
    @click.option("--json", "as_json", is_flag=True, help="As JSON.")
    def alerts(fleet_path: Path, check: bool, as_json: bool) -> None:
        """Show the alerts that fire, the worst first. docs/monitoring.md says what each looks for."""
        rows = asyncio.run(port_factory(fleet_path).snapshot()).get("alerts")
        if rows is None:
            raise Failure("this fleet does not watch itself: alerts.enabled is false")
        if as_json:
            click.echo(json.dumps(rows, indent=2))
        elif rows:
            table = Table(box=None, padding=(0, 1), pad_edge=False)
            for name in ("alert", "severity", "region", "where", "since", "what"):
                table.add_column(name, overflow="fold")
            for row in rows:
                since = datetime.fromtimestamp(row["since_ms"] / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
                colour = "red" if row["severity"] == "critical" else "yellow"
                severity = f"[{colour}]{row['severity']}[/{colour}]"
                table.add_row(row["alert"], severity, row["region"], row["where"], since, Text(row["reason"]))
            output().print(table)
        else:
            output().print("nothing is wrong")
        if check and rows:
            raise Failure(f"{len(rows)} alert{'s' if len(rows) > 1 else ''}")

    return alerts

"""`sendfleet tenants list | move`: what the tenants have earned by their own mail, region by region."""

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from engine.cli.port import PortFactory
from engine.cli.terminal import CommandGroup, Failure, fleet_option, output
from engine.values.quality import Quality

COLUMNS = ("tenant", "region", "class", "score", "since", "until", "because")


def build_tenants(port_factory: PortFactory) -> click.Group:
    """The group; its commands speak with the regions."""

    @click.group("tenants", cls=CommandGroup)
    def tenants() -> None:
        """Show and change which class of sources the tenants' mail goes over."""

    @tenants.command("list")
    @fleet_option
    @click.option("--tenant", help="Only this tenant.")
    @click.option("--class", "quality", type=click.Choice([str(q) for q in Quality]), help="Only this class.")
    @click.option("--json", "as_json", is_flag=True, help="Everything that is known, as JSON.")
    def list_(fleet_path: Path, tenant: str | None, quality: str | None, as_json: bool) -> None:
        """Show class, score and reason of each tenant that has sent something, per region.

        `until` is the earliest end of a stay in the class poor; `pinned` stands for a class that fleet.yaml gives.
        """
        rows, silent = _rows(asyncio.run(port_factory(fleet_path).snapshot()))
        rows = [row for row in rows if tenant in (None, row["tenant"]) and quality in (None, row["quality"])]
        if as_json:
            click.echo(json.dumps(rows, indent=2))
        elif rows:
            output().print(_table(rows))
        else:
            output().print("no such tenant has sent anything")
        if silent:
            raise Failure(f"no answer from {', '.join(silent)}")

    @tenants.command("move")
    @fleet_option
    @click.argument("tenant")
    @click.argument("quality", metavar="CLASS", type=click.Choice([str(q) for q in Quality]))
    def move(fleet_path: Path, tenant: str, quality: str) -> None:
        """Put TENANT into CLASS in every region, at once; from there it goes on as if it had earned it."""
        try:
            changed = asyncio.run(port_factory(fleet_path).move_tenant(tenant, quality))
        except ValueError as error:
            raise Failure(str(error)) from error
        where = [name for name, is_changed in changed.items() if is_changed]
        if not where:
            raise Failure(f"tenant {tenant}: nothing changes, it is {quality} already")
        output().print(f"{tenant}: {quality} in {', '.join(where)}")

    return tenants


def _rows(snapshot: dict[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """A row per tenant and region, and the regions that did not answer."""
    rows = []
    silent = []
    for name, region in snapshot.get("regions", {}).items():
        if region.get("error"):
            silent.append(f"{name}: {region['error']}")
        rows += [{"region": name, **row} for row in region.get("tenants", ())]
    return sorted(rows, key=lambda row: (row["tenant"], row["region"])), silent


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="right" if name == "score" else "left", overflow="fold")
    for row in rows:
        table.add_row(
            row["tenant"],
            row["region"],
            row["quality"] + (" (pinned)" if row["pinned"] else ""),
            str(row["score"]),
            _time(row["since_ms"]),
            _time(row["until_ms"]) if row["until_ms"] else "",
            row["reason"],
        )
    return table


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")

"""`sendfleet warmup show | pause | resume | skip`: the warm-up of the sources, site by site."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from engine.cli.port import FleetPort, PortFactory
from engine.cli.terminal import CommandGroup, Failure, check_source, fleet_option, output, read_fleet
from engine.config.schema import FleetConfig

COLUMNS = ("source", "site", "phase", "stage", "cap", "granted", "delivered", "left", "hour", "end")


def build_warmup(
    port_factory: PortFactory, *, read: Callable[[Path], FleetConfig] = read_fleet
) -> click.Group:
    """The group; its commands speak with the owners of the sources, whose names are checked by what `read` gives."""

    @click.group("warmup", cls=CommandGroup)
    def warmup() -> None:
        """Show and steer the warm-up of the sources."""

    @warmup.command("show")
    @fleet_option
    @click.option("--source", help="Only this source.")
    @click.option("--site", help="Only this provider (or `mx:` site).")
    @click.option("--json", "as_json", is_flag=True, help="Everything that is known, as JSON.")
    def show(fleet_path: Path, source: str | None, site: str | None, as_json: bool) -> None:
        """Show cap, granted, delivered, remaining, stage and projected end, per source and site.

        `granted` counts what was handed out today, `delivered` what the provider took of it.
        """
        check_source(read(fleet_path), source)
        port = port_factory(fleet_path)
        rows = asyncio.run(_rows(port, source))
        rows = [row for row in rows if site in (None, row["site"])]
        if as_json:
            click.echo(json.dumps(rows, indent=2))
        elif rows:
            output().print(_table(rows))
        else:
            output().print("no source is in warm-up there")

    @warmup.command("pause")
    @fleet_option
    @click.argument("source")
    @click.argument("site")
    def pause(fleet_path: Path, source: str, site: str) -> None:
        """Hold SOURCE at its present stage at SITE; its caps stay in force."""
        check_source(read(fleet_path), source)
        _order(port_factory(fleet_path), source, "pause", site, None, "is not running")

    @warmup.command("resume")
    @fleet_option
    @click.argument("source")
    @click.argument("site")
    def resume(fleet_path: Path, source: str, site: str) -> None:
        """Let a paused warm-up go on."""
        check_source(read(fleet_path), source)
        _order(port_factory(fleet_path), source, "resume", site, None, "is not paused")

    @warmup.command("skip")
    @fleet_option
    @click.argument("source")
    @click.argument("site")
    @click.argument("stage", type=int)
    def skip(fleet_path: Path, source: str, site: str, stage: int) -> None:
        """Go to STAGE at once, up or down. Stages count from 0; the one behind the last ends the warm-up."""
        check_source(read(fleet_path), source)
        _order(port_factory(fleet_path), source, "skip", site, stage, "is there already")

    return warmup


def _order(port: FleetPort, source: str, name: str, site: str, argument: int | None, unchanged: str) -> None:
    async def run() -> tuple[bool, list[dict[str, Any]]]:
        changed = await port.order(source, name, site, argument)
        return changed, await _rows(port, source)

    try:
        changed, rows = asyncio.run(run())
    except ValueError as error:
        raise Failure(str(error)) from error
    if not changed:
        raise Failure(f"source {source} at {site}: nothing changes, its warm-up {unchanged}")
    output().print(_table([row for row in rows if row["site"] == site]))


async def _rows(port: FleetPort, source: str | None) -> list[dict[str, Any]]:
    """One row per plan, with what the regions have handed out today."""
    names = [s.name for s in port.config.sources if source in (None, s.name)]
    owners, snapshot = await asyncio.gather(
        asyncio.gather(*(port.source(name) for name in names)), port.snapshot()
    )
    granted: dict[str, dict[str, int]] = {}
    for region in snapshot.get("regions", {}).values():
        granted.update(region.get("granted", {}))
    rows = []
    for owner in owners:
        for plan in owner["warmup"]:
            used = granted.get(owner["source"], {}).get(plan["site"], plan["attempts"])
            row = {"source": owner["source"], **plan, "granted": used}
            row["remaining"] = max(0, plan["day_cap"] - used)
            row["end_date"] = day_text(plan["end_day"])
            rows.append(row)
    return sorted(rows, key=lambda row: (row["source"], row["site"]))


def day_text(day: int) -> str:
    """A UTC day number as a date."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)).date().isoformat()


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for index, name in enumerate(COLUMNS):
        table.add_column(name, justify="left" if index in (0, 1, 2, 9) else "right", overflow="fold")
    for row in rows:
        is_over = row["phase"] == "finished"
        table.add_row(
            row["source"],
            row["site"],
            row["phase"] + (f" ({row['held_days']} days held)" if row["held_days"] else ""),
            f"{row['stage']}/{row['stages']}",
            "none" if is_over else str(row["day_cap"]),
            str(row["granted"]),
            str(row["delivered"]),
            "" if is_over else str(row["remaining"]),
            "none" if is_over else str(row["hour_cap"]),
            "" if is_over else row["end_date"],
        )
    return table

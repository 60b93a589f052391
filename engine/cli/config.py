"""`sendfleet config check` and `sendfleet config explain`."""

from pathlib import Path

import click
from rich.table import Table

from engine.cli.terminal import CommandGroup, fleet_option, output, read_fleet, tell_gaps
from engine.config.explain import explain
from engine.providers.profiles import load_profiles
from engine.values.stream import Stream


@click.group("config", cls=CommandGroup)
def config_group() -> None:
    """Check the fleet's configuration, or explain what it means for a message."""


@config_group.command("check")
@fleet_option
def check(fleet_path: Path) -> None:
    """Report everything that is wrong with a fleet.yaml; exit status 1 if anything is."""
    config = read_fleet(fleet_path)
    load_profiles(config.providers)
    tell_gaps(fleet_path, config)
    output().print(
        f"{fleet_path}: good: fleet {config.fleet.name}, {len(config.regions)} regions, "
        f"{len(config.sources)} sources, {len(config.routes)} routes"
    )


@config_group.command("explain")
@fleet_option
@click.option("--recipient", required=True, help="An address, as in user@example.com.")
@click.option("--stream", default="transactional", show_default=True, help="The message's stream.")
@click.option("--source", help="Name or IP of a source.")
@click.option("--from", "header_from", help="An address of the From header: who signs for it.")
@click.option("--tenant", default="default", show_default=True, help="The tenant, for the signing domain.")
def explain_command(
    fleet_path: Path, recipient: str, stream: str, source: str | None, header_from: str | None, tenant: str
) -> None:
    """Show each setting that decides about a message, with its value and where it comes from."""
    config = read_fleet(fleet_path)
    try:
        settings = explain(
            config,
            load_profiles(config.providers),
            recipient,
            str(Stream.parse(stream)),
            source,
            header_from=header_from,
            tenant=tenant,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    table = Table(box=None)
    for heading in ("setting", "value", "from"):
        table.add_column(heading, overflow="fold")
    for setting in settings:
        table.add_row(setting.name, setting.value, setting.origin)
    output().print(table)

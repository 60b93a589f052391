"""The `sendfleet` command: the commands of engine/cli, and those that start and stop a fleet.

Ray reads its settings when it is imported, so actors.client and actors.deploy are imported only after
actors.environment has prepared the process for the fleet that the command names.
"""

import asyncio
import importlib
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from actors.environment import prepare
from actors.local_cluster import LocalCluster
from actors.trial import UnsafeTrial, lines_of, run_trial, write_json, write_plot
from engine.cli.main import build_cli
from engine.config.load import ConfigError, load_fleet
from engine.config.schema import FleetConfig

console = Console(stderr=True)
fleet_option = click.option(
    "--fleet",
    "fleet_path",
    type=click.Path(path_type=Path),
    default=Path("fleet.yaml"),
    show_default=True,
    envvar="SENDFLEET_FLEET",
    help="The fleet's configuration.",
)


def _prepared(path: Path) -> FleetConfig:
    try:
        config = load_fleet(path)
    except ConfigError as error:
        raise click.ClickException(str(error)) from None
    prepare(config)
    return config


def connect_port(path: Path) -> Any:
    """A client of the running fleet, for the commands of engine/cli."""
    config = _prepared(path)
    deploy = importlib.import_module("actors.deploy")
    client = importlib.import_module("actors.client")
    try:
        deploy.connect_ray(config.ray.address or LocalCluster(config).address())
    except FileNotFoundError:
        raise click.ClickException(
            f"no fleet runs here for {path}: start it with `sendfleet up --fleet {path}`"
        ) from None
    return client.AsyncClient(config)


@click.command()
@fleet_option
def up(fleet_path: Path) -> None:
    """Start the fleet: on the cluster at ray.address, or on Ray nodes of this machine."""
    config = _prepared(fleet_path)
    deploy = importlib.import_module("actors.deploy")
    address = config.ray.address
    if address is None:
        console.print(f"starting {len(config.regions)} Ray nodes on this machine")
        address = LocalCluster(config).start()
    deploy.start_fleet(config, address)
    console.print(f"fleet [b]{config.fleet.name}[/b] is up: {', '.join(r.name for r in config.regions)}")


@click.command()
@fleet_option
def down(fleet_path: Path) -> None:
    """Stop the fleet. What is not sent yet stays on disk and goes out after the next `up`."""
    config = _prepared(fleet_path)
    deploy = importlib.import_module("actors.deploy")
    cluster = LocalCluster(config)
    try:
        address = config.ray.address or cluster.address()
    except FileNotFoundError:
        raise click.ClickException(f"no fleet runs here for {fleet_path}") from None
    try:
        deploy.connect_ray(address)
        deploy.stop_fleet(config)
    except ConnectionError as error:
        console.print(f"[yellow]the cluster does not answer, its processes are ended: {error}[/yellow]")
    cluster.stop()
    console.print(f"fleet [b]{config.fleet.name}[/b] is down")


@click.command("bench")
@fleet_option
@click.option("--messages", type=click.IntRange(1), default=20_000, show_default=True)
@click.option(
    "--size", type=click.IntRange(200), default=2_048, show_default=True, help="Bytes of each message."
)
@click.option(
    "--rate", type=click.FloatRange(0), default=0.0, help="Messages per second [default: no limit]."
)
@click.option(
    "--destinations", type=click.IntRange(1), default=10, show_default=True, help="Recipient domains."
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the figures here.")
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), help="Write a plot (SVG) here.")
def bench(
    fleet_path: Path,
    messages: int,
    size: int,
    rate: float,
    destinations: int,
    json_path: Path | None,
    plot_path: Path | None,
) -> None:
    """Measure the throughput of the running fleet against a sink on this machine."""
    client = connect_port(fleet_path)
    try:
        report = asyncio.run(
            run_trial(client, messages=messages, size=size, rate=rate, destinations=destinations)
        )
    except UnsafeTrial as error:
        raise click.ClickException(str(error)) from None
    for line in lines_of(report):
        click.echo(line)
    if json_path is not None:
        write_json(report, json_path)
    if plot_path is not None:
        write_plot(report, plot_path)


def main() -> None:
    cli = build_cli(connect_port)
    cli.add_command(up)
    cli.add_command(down)
    cli.add_command(bench)
    cli.main(args=sys.argv[1:], prog_name="sendfleet")

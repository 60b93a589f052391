"""The `sendfleet` command: the commands of engine/cli, and those that start and stop a fleet.

Ray reads its settings when it is imported, so actors.client and actors.deploy are imported only after
actors.environment has prepared the process for the fleet that the command names.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from actors.drill.command import Runner
from actors.environment import prepare
from actors.foreground import run_in_foreground
from actors.local_cluster import LocalCluster
from actors.temporary import TrialFleet
from engine.cli.bench import BenchFleets, build_bench
from engine.cli.drill import build_drill
from engine.cli.main import build_cli
from engine.cli.terminal import tell_gaps
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


def _library(name: str) -> Any:
    """A module that imports Ray, which must not be imported before the environment is prepared."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"the Python package {error.name} is not installed in {sys.prefix}: install sendfleet with what it needs "
            "(pip install sendfleet-*.whl, without --no-deps)"
        ) from error


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
    deploy = _library("actors.deploy")
    client = _library("actors.client")
    cluster = LocalCluster(config)
    if config.ray.address is None and not cluster.running():
        raise click.ClickException(
            f"no fleet runs here for {path}: start it with `sendfleet up --fleet {path}`"
        )
    deploy.connect_ray(config.ray.address or cluster.address())
    return client.AsyncClient(config)


@click.command()
@fleet_option
@click.option(
    "--foreground",
    is_flag=True,
    help="Stay, and stop the fleet at SIGTERM or Ctrl-C; for systemd. Only without ray.address.",
)
@click.option(
    "--without",
    "missing",
    metavar="REGION",
    multiple=True,
    help="Do not wait for this region, whose machine is away: it is started as soon as it has a node. May be repeated. "
    "Only with ray.address.",
)
def up(fleet_path: Path, foreground: bool, missing: tuple[str, ...]) -> None:
    """Start the fleet: on the cluster at ray.address, or on Ray nodes of this machine."""
    config = _prepared(fleet_path)
    _check_missing(config, missing)
    tell_gaps(fleet_path, config)
    deploy = _library("actors.deploy")
    if foreground:
        if config.ray.address is not None:
            raise click.UsageError(
                f"--foreground is for a fleet of one machine, and ray.address is {config.ray.address}: "
                "leave one of them out"
            )
        run_in_foreground(config, deploy, console.print)
        return
    if config.ray.address is None:
        console.print(f"starting {len(config.regions)} Ray nodes on this machine")
        cluster = LocalCluster(config)
        is_as_told = deploy.start_fleet(config, cluster.start(), cluster.check_nodes)
        console.print(f"logs: {cluster.logs()}")
    else:
        is_as_told = deploy.start_fleet(config, config.ray.address, missing=missing)
    if not is_as_told:
        raise click.ClickException(
            f"the fleet ran already, with a configuration that is not that of {fleet_path} any more, and goes on "
            "with it: `sendfleet down`, then `up`, to change it"
        )
    names = [region.name for region in config.regions if region.name not in missing]
    console.print(f"fleet [b]{config.fleet.name}[/b] is up: {', '.join(names)}")
    if missing:
        console.print(f"[yellow]without {', '.join(missing)}: started when there is a node for it[/yellow]")


def _check_missing(config: FleetConfig, missing: tuple[str, ...]) -> None:
    if missing and config.ray.address is None:
        raise click.UsageError(
            "--without is for a fleet on a cluster: this one has all of its nodes on this machine"
        )
    names = [region.name for region in config.regions]
    for name in missing:
        if name not in names:
            raise click.UsageError(f"--without {name}: allowed are {', '.join(names)}")
    if set(missing) == set(names):
        raise click.UsageError(
            f"--without {', '.join(missing)}: allowed is to leave out some of the regions, not all"
        )


@click.command()
@fleet_option
def down(fleet_path: Path) -> None:
    """Stop the fleet. What is not sent yet stays on disk and goes out after the next `up`."""
    config = _prepared(fleet_path)
    deploy = _library("actors.deploy")
    if config.ray.address is None:
        _stop_local(config, fleet_path, deploy)
    else:  # the cluster is not ours to end
        deploy.connect_ray(config.ray.address)
        deploy.stop_fleet(config)
    console.print(f"fleet [b]{config.fleet.name}[/b] is down")


def _stop_local(config: FleetConfig, fleet_path: Path, deploy: Any) -> None:
    cluster = LocalCluster(config)
    try:
        address = cluster.address()
    except FileNotFoundError:
        raise click.ClickException(f"no fleet runs here for {fleet_path}") from None
    try:
        deploy.connect_ray(address)
        deploy.stop_fleet(config)
    except ConnectionError as error:
        console.print(f"[yellow]the cluster does not answer, its processes are ended: {error}[/yellow]")
    cluster.stop()


def _is_running(path: Path) -> bool:
    """Whether the fleet of that fleet.yaml runs: on this machine; one on a cluster is taken to run."""
    config = load_fleet(path)
    return config.ray.address is not None or LocalCluster(config).running()


def main() -> None:
    cli = build_cli(connect_port)
    cli.add_command(up)
    cli.add_command(down)
    cli.add_command(
        build_bench(
            BenchFleets(
                is_running=_is_running,
                connect=connect_port,
                temporary=lambda sink, parent: TrialFleet(sink=sink, parent=parent),
            )
        )
    )
    cli.add_command(build_drill(Runner()))
    cli.main(args=sys.argv[1:], prog_name="sendfleet")

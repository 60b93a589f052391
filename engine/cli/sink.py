"""`sendfleet sink`: a loopback server that behaves like mailbox providers, for demos, tests and drills."""

from collections.abc import Mapping
from pathlib import Path

import click

from engine.cli.terminal import Failure, notes
from engine.sink.personality import PersonalityError
from engine.sink.server import run

MAX_PORT = 65_535


@click.command("sink")
@click.option(
    "--config",
    "config_path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Personalities file [default: the one that is shipped].",
)
@click.option("--log", "log_path", type=click.Path(path_type=Path), help="Where accepted mail is logged.")
@click.option("--only", multiple=True, metavar="NAME[=PORT]", help="Serve only this personality.")
def sink_command(config_path: Path | None, log_path: Path | None, only: tuple[str, ...]) -> None:
    """Accept, refuse and throw away mail on loopback ports, until interrupted."""
    ports: dict[str, int] = {}
    for text in only:
        name, _, port = text.partition("=")
        if port and not (port.isdecimal() and int(port) <= MAX_PORT):
            raise click.UsageError(f"--only {text}: the port must be a number, {MAX_PORT} at most")
        ports[name] = int(port or 0)
    try:
        run(config_path, log_path=log_path, only=tuple(ports), ports=ports, ready=_announce)
    except PersonalityError as error:
        raise Failure(str(error)) from error


def _announce(addresses: Mapping[str, tuple[str, int]]) -> None:
    for name, (host, port) in addresses.items():
        notes().print(f"sink: {name} on {host}:{port}")

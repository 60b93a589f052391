"""The command `sendfleet`: everything that needs no knowledge of how a fleet is run.

cli = build_cli(connect)       # connect: path of fleet.yaml -> FleetPort
cli.add_command(up)            # what starts and stops a fleet is added by whoever can (actors/command.py)
"""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from engine.cli.alerts import build_alerts
from engine.cli.audit import audit_command
from engine.cli.bounces import bounces_group
from engine.cli.config import config_group
from engine.cli.doctor import doctor_command
from engine.cli.drain import build_drain
from engine.cli.events import events_command
from engine.cli.forget_copies import forget_copies_command
from engine.cli.port import PortFactory
from engine.cli.send import build_send
from engine.cli.shaping import build_shaping
from engine.cli.simulate import simulate_command
from engine.cli.sink import sink_command
from engine.cli.status import build_status
from engine.cli.suppression import build_suppression
from engine.cli.tenants import build_tenants
from engine.cli.terminal import CommandGroup, read_fleet
from engine.cli.top import build_top
from engine.cli.trace import build_trace
from engine.cli.warmup import build_warmup
from engine.config.schema import FleetConfig


def build_cli(port_factory: PortFactory, *, read: Callable[[Path], FleetConfig] = read_fleet) -> click.Group:
    """The group with its commands; those that speak with a fleet get it from `port_factory` when they run.
    `read` gives the configuration to those that check names by it before."""

    @click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"]})
    @click.version_option(_version(), prog_name="sendfleet")
    def sendfleet() -> None:
        """Run a fleet of email sending nodes, and send through it.

        A first try: `sendfleet config check`, `up`, `send`, `status`, `audit`, each with --fleet FILE, or with the
        variable SENDFLEET_FLEET set to it.
        """

    for command in (
        build_send(port_factory),
        build_status(port_factory),
        build_top(port_factory),
        build_alerts(port_factory),
        audit_command,
        forget_copies_command,
        events_command,
        bounces_group,
        build_suppression(port_factory),
        config_group,
        doctor_command,
        sink_command,
        simulate_command,
        build_warmup(port_factory, read=read),
        build_shaping(port_factory, read=read),
        build_trace(port_factory),
        build_tenants(port_factory),
        *build_drain(port_factory, read=read),
    ):
        sendfleet.add_command(command)
    return sendfleet


def _version() -> str:
    try:
        return version("sendfleet")
    except PackageNotFoundError:
        return "not installed"

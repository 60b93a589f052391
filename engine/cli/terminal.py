"""How the commands speak: results to standard output, everything else to standard error, failures in red.

Exit status: 0 done, 1 failed or something was refused, 2 wrong usage, 130 interrupted.
"""

import math
import os
from pathlib import Path
from typing import IO, Any

import click
from rich.console import Console
from rich.text import Text

from engine.campaign.attachments import RenderError
from engine.campaign.eml import EmlError
from engine.campaign.giving import SendInterrupted
from engine.campaign.recipients import RecipientFileError
from engine.campaign.spec import SpecError
from engine.config.checks import find_gaps
from engine.config.load import ConfigError, load_fleet
from engine.config.schema import FleetConfig
from engine.failover.tsig import TsigKeyError, read_tsig_key
from engine.spool.errors import SpoolError

# what a user can put right; any other exception is a bug and keeps its traceback
EXPECTED = (
    ConfigError,
    SpecError,
    RecipientFileError,
    EmlError,
    RenderError,
    SendInterrupted,
    SpoolError,
    ConnectionError,
    TimeoutError,
    OSError,
)

UNFOLDED = 1000  # columns

fleet_option = click.option(
    "--fleet",
    "fleet_path",
    type=click.Path(path_type=Path),
    default=Path("fleet.yaml"),
    show_default=True,
    envvar="SENDFLEET_FLEET",
    help="The fleet's configuration.",
)


class NumberRange(click.FloatRange):
    """As click's, without nan: that is neither below a range nor above it, and would be let through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if isinstance(number, float) and math.isnan(number):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return number


def output() -> Console:
    """Standard output; made anew, because tests and pagers replace it. Tables are folded for screens only."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = UNFOLDED
    return console


def say(line: str) -> None:
    """A line of standard output in which a peer's words may stand, without what a terminal would obey or turn round."""
    shown = "".join([c if c.isprintable() else " " for c in line])
    output().print(shown, markup=False)


def notes() -> Console:
    """Standard error."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


class Failure(click.ClickException):
    """Ends the command with status 1, and says why in red."""

    def show(self, file: IO[Any] | None = None) -> None:
        notes().print(Text(f"error: {self.message}", style="red"))


class Interrupted(Failure):
    """The user ended the command."""

    exit_code = 130


class CommandGroup(click.Group):
    """Turns expected exceptions of its commands into Failures."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (Failure, click.UsageError):
            raise
        except click.ClickException as error:
            raise Failure(error.message) from error
        except EXPECTED as error:
            raise Failure(words(error)) from error


def words(error: Exception) -> str:
    """What a user is told; of files: which one, and why."""
    if isinstance(error, PermissionError) and error.filename:
        return f"{error.filename}: {error.strerror}: commands of a fleet run as the user who owns its files"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def check_report(bad_rows: Path, read: Path) -> None:
    """Refuse a report that would take the place of the file that is read."""
    if bad_rows.resolve() == read.resolve():
        raise click.UsageError(f"--bad-rows {bad_rows}: is the file that is read: allowed is any other")


def tell_gaps(path: Path, config: FleetConfig) -> None:
    """What fleet.yaml allows but probably does not mean, and a key for DNS updates that cannot be used here: it is
    needed where the Fleet runs, which may be another machine."""
    found = [str(gap) for gap in find_gaps(config)]
    if config.dns_failover is not None:
        try:
            read_tsig_key(config.dns_failover.key_file)
        except TsigKeyError as error:
            found.append(f"dns_failover.key_file: {error}: without it no record is changed")
    for text in found:
        notes().print(Text(f"{path}: {text}", style="yellow"))


def read_fleet(path: Path) -> FleetConfig:
    """The fleet's configuration; raises ConfigError."""
    return load_fleet(path)


def check_source(config: FleetConfig, source: str | None) -> None:
    """Refuse a name that is no source's; None is every source."""
    names = [entry.name for entry in config.sources]
    if source is not None and source not in names:
        raise Failure(f"source {source!r}: allowed are {', '.join(names)}")

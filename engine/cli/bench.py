"""`sendfleet bench`: a throughput trial on the running fleet, or on a temporary one when none runs here."""

import asyncio
import contextlib
import math
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Protocol

import click

from engine.cli.terminal import Failure, Interrupted, fleet_option, notes
from engine.config.types import split_host
from engine.trial.destinations import UnsafeTrial
from engine.trial.figures import TrialReport
from engine.trial.plot import write_plot
from engine.trial.run import Trial, TrialFailed, TrialFleet, run_trial
from engine.trial.text import lines_of, write_json


class TemporaryFleet(Protocol):
    """A fleet made for one trial."""

    client: Any

    def arrived(self) -> tuple[int, int] | None:
        """(messages that its own sink took, how many of them twice); None if the sink is somebody else's."""


@dataclass(frozen=True, slots=True)
class BenchFleets:
    """How the command gets at a fleet."""

    is_running: Callable[[Path], bool]
    connect: Callable[[Path], TrialFleet]
    temporary: Callable[[str | None, Path | None], AbstractContextManager[TemporaryFleet]]


def build_bench(fleets: BenchFleets) -> click.Command:
    @click.command("bench")
    @fleet_option
    @click.option("--messages", type=click.IntRange(1, 100_000_000), default=20_000, show_default=True)
    @click.option(
        "--size", type=click.IntRange(300), default=2_048, show_default=True, help="Bytes of each message."
    )
    @click.option(
        "--rate",
        type=click.FloatRange(0, min_open=True),
        help="Messages submitted per second [default: as fast as they are accepted].",
    )
    @click.option(
        "--destinations",
        type=click.IntRange(1, 100_000),
        default=10,
        show_default=True,
        help="Recipient domains.",
    )
    @click.option("--sink", metavar="HOST:PORT", help="The receiver: of the fleet's routes only those there.")
    @click.option("--may-leave", is_flag=True, help="The running fleet's routes may lead to other machines.")
    @click.option("--temporary", is_flag=True, help="On a temporary fleet, even if one runs here.")
    @click.option(
        "--directory",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Where a temporary fleet keeps its mail: choose the disk to measure [default: the system's].",
    )
    @click.option(
        "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Figures go here."
    )
    @click.option(
        "--plot", "plot_path", type=click.Path(dir_okay=False, path_type=Path), help="An SVG goes here."
    )
    @click.pass_context
    def bench(
        ctx: click.Context,
        fleet_path: Path,
        messages: int,
        size: int,
        rate: float | None,
        destinations: int,
        sink: str | None,
        may_leave: bool,
        temporary: bool,
        directory: Path | None,
        json_path: Path | None,
        plot_path: Path | None,
    ) -> None:
        """Measure what a fleet can do: rates, latencies, CPU and memory per actor, what held it back.

        Without a running fleet a temporary one is started on this machine, with a sink of its own, and removed
        afterwards. On a running fleet the mail goes only where its routes lead to this machine, unless --sink or
        --may-leave says otherwise. docs/bench.md explains the figures.
        """
        _check(ctx, fleet_path, sink, json_path, plot_path)
        if rate is not None and not math.isfinite(rate):
            raise click.UsageError(f"--rate {rate}: allowed is a number above zero")
        trial = Trial(messages, size, rate or 0.0, destinations, sink, may_leave)
        on_temporary = temporary or not (fleet_path.exists() and fleets.is_running(fleet_path))
        if directory is not None and not on_temporary:
            raise click.UsageError("--directory is for a temporary fleet: add --temporary")
        with _ended_in_order():
            if on_temporary:
                notes().print("a temporary fleet is started on this machine")
                with fleets.temporary(sink, directory) as fleet:
                    report = _run(fleet.client, trial)
                    if (arrived := fleet.arrived()) is not None:
                        report.sink_messages, report.sink_duplicates = arrived
                report.is_temporary = True
            else:
                report = _run(fleets.connect(fleet_path), trial)
        _show(report, json_path, plot_path)

    return bench


def _check(ctx: click.Context, fleet_path: Path, sink: str | None, *paths: Path | None) -> None:
    """Everything that can be wrong before minutes are spent."""
    given = ctx.get_parameter_source("fleet_path") is not click.core.ParameterSource.DEFAULT
    if given and not fleet_path.exists():
        raise click.UsageError(f"--fleet {fleet_path}: there is no such file")
    if sink is not None:
        try:
            split_host(sink)
        except ValueError as error:
            raise click.UsageError(f"--sink {sink}: {error}") from None
    for path in paths:
        if path is not None and not path.absolute().parent.is_dir():
            raise click.UsageError(f"{path}: there is no directory {path.absolute().parent}")


def _run(client: TrialFleet, trial: Trial) -> TrialReport:
    try:
        return asyncio.run(run_trial(client, trial))
    except (UnsafeTrial, TrialFailed) as error:
        raise Failure(str(error)) from None


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """SIGTERM ends the trial as an interrupt does, so that a temporary fleet is removed."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("interrupted; what a running fleet has accepted is still sent") from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _show(report: TrialReport, json_path: Path | None, plot_path: Path | None) -> None:
    for line in lines_of(report):
        click.echo(line)
    if json_path is not None:
        write_json(report, json_path)
    if plot_path is not None:
        write_plot(report, plot_path)
    if report.unsettled:
        raise Failure(f"{report.unsettled} messages were not settled: nothing moved for a minute")
    if report.refused:
        raise Failure(f"{report.refused} messages were refused: {report.first_refusal}")
    if report.sink_messages is not None and report.sink_messages - report.delivered:
        raise Failure(f"delivered {report.delivered}, but the sink took {report.sink_messages}")

"""`sendfleet drill`: a fault on purpose, on a temporary fleet or on the live one, measured and kept.

How a fleet is run is known to whoever builds the command (actors/command.py).
"""

import tempfile
import time
import webbrowser
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol

import click
from click.core import ParameterSource
from rich.text import Text

from engine.cli.drill_output import show_history, show_record, show_scenarios
from engine.cli.terminal import EXPECTED, Failure, NumberRange, fleet_option, notes, output, read_fleet, words
from engine.config.schema import FleetConfig
from engine.drill.record import DrillRecord, record_of, write_record
from engine.drill.report import html
from engine.drill.scenarios import (
    SCENARIOS,
    TEMPORARY_REGIONS,
    CannotRunHere,
    DrillOptions,
    DrillRefused,
    Scenario,
    caveat,
    refusal,
)

HISTORY = Path("var/drills")
NOT_RUN = 3
_WITH_LIVE = "allowed only together with --on-live"
_LIVE = {
    "--scenario",
    "--directory",
    "--region",
    "--before",
    "--after",
    "--on-live",
    "--yes",
    "--fleet",
    "--open",
}
_TEMPORARY = {"--scenario", "--directory", "--region", "--before", "--after", "--rate", "--open"}


class NotRun(Failure):
    """Nothing failed, but something could not be run on this machine."""

    exit_code = NOT_RUN

    def show(self, file: IO[Any] | None = None) -> None:
        notes().print(Text(self.message, style="yellow"))


class DrillRunner(Protocol):
    """Runs drills. Both raise DrillRefused, and what befalls a fleet; the notes of an exception go into the history."""

    def temporary(self, scenario: Scenario, options: DrillOptions) -> DrillRecord: ...

    def live(
        self,
        scenario: Scenario,
        config: FleetConfig,
        options: DrillOptions,
        confirm: Callable[[str], None],
    ) -> DrillRecord:
        """`confirm` is told what will be hit before anything is; what it raises ends the drill."""

    def again(self, arguments: Sequence[str]) -> int:
        """Run the command `sendfleet drill` with these arguments in a process of its own; its exit status."""


def build_drill(runner: DrillRunner) -> click.Command:
    @click.command("drill")
    @click.option(
        "--scenario",
        "names",
        multiple=True,
        type=click.Choice(list(SCENARIOS)),
        help="What to rehearse; may be given again [default: everything that a temporary fleet can be put to].",
    )
    @click.option("--list", "is_list", is_flag=True, help="Show the scenarios, and what each expects.")
    @click.option(
        "--history", "is_history", is_flag=True, help="Show the drills so far, and how their figures move."
    )
    @click.option(
        "--directory",
        type=click.Path(path_type=Path, file_okay=False),
        default=HISTORY,
        show_default=True,
        help="Where the history and the reports are kept.",
    )
    @click.option(
        "--region", metavar="NAME", help="Which region is hit [default: the last one of the configuration]."
    )
    @click.option("--on-live", is_flag=True, help="On the running fleet of --fleet, with its own traffic.")
    @click.option(
        "--yes", "confirmed", metavar="NAME", help="With --on-live: the fleet's name, instead of typing it."
    )
    @fleet_option
    @click.option(
        "--rate",
        type=NumberRange(1, 10_000),
        default=100.0,
        show_default=True,
        help="Messages per second of a temporary fleet's load.",
    )
    @click.option(
        "--before",
        "before_s",
        type=NumberRange(1, 3600),
        default=5.0,
        show_default=True,
        help="Seconds of load before the fault.",
    )
    @click.option(
        "--after",
        "after_s",
        type=NumberRange(1, 3600),
        default=15.0,
        show_default=True,
        help="Seconds of load after the fault.",
    )
    @click.option("--open", "is_open", is_flag=True, help="Show the report in a browser.")
    @click.pass_context
    def drill(
        context: click.Context,
        names: tuple[str, ...],
        is_list: bool,
        is_history: bool,
        directory: Path,
        region: str | None,
        on_live: bool,
        confirmed: str | None,
        fleet_path: Path,
        rate: float,
        before_s: float,
        after_s: float,
        is_open: bool,
    ) -> None:
        """Break something on purpose, and measure how the fleet copes.

        Without --on-live a fleet of two regions is made for it below a temporary directory, sends to a sink on this
        machine, and is taken away again: nothing leaves the machine, and no running fleet is touched. Exit status: 0
        all passed, 1 one was not passed or refused, 2 wrong usage, 3 none failed, but one could not be run on this
        machine (disk-full needs root, dns needs knot); the history has it as not run, with the reason.
        """
        given = _given(context)
        options = DrillOptions(rate, before_s, after_s, region)
        if is_list:
            _allow(given, {"--list"}, "not allowed together with --list")
            show_scenarios()
        elif is_history:
            allowed = {"--history", "--scenario", "--directory"}
            _allow(given, allowed, "not allowed together with --history")
            show_history(directory, names)
        elif on_live:
            reasons = {"--rate": "not allowed with --on-live: the load is the fleet's own traffic"}
            _allow(given, _LIVE, "not allowed with --on-live", reasons)
            if len(names) != 1:
                raise click.UsageError("--on-live needs exactly one --scenario")
            _live(runner, SCENARIOS[names[0]], fleet_path, directory, options, confirmed, is_open=is_open)
        else:
            reasons = {
                "--yes": _WITH_LIVE,
                "--fleet": f"{_WITH_LIVE}: without it a temporary fleet is drilled, not that of {fleet_path}",
            }
            _allow(given, _TEMPORARY, "not allowed", reasons)
            names = names or tuple(SCENARIOS)
            if is_open and len(names) > 1:
                raise click.UsageError("--open: allowed only with one --scenario")
            _check_region(region, names)
            _check_directory(directory)
            if len(names) == 1:
                blank = _blank(SCENARIOS[names[0]], "drill", is_live=False)
                run = partial(runner.temporary, SCENARIOS[names[0]], options)
                _keep_whatever(run, blank, directory, is_open=is_open)
            else:
                _run_all(runner, names, options, directory)

    return drill


def _given(context: click.Context) -> set[str]:
    """The options that were typed, by their first name."""
    return {
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    }


def _allow(
    given: Collection[str], allowed: Collection[str], why: str, reasons: Mapping[str, str] | None = None
) -> None:
    """UsageError: an option that would be passed over."""
    for option in sorted(set(given) - set(allowed)):
        raise click.UsageError(f"{option}: {(reasons or {}).get(option, why)}")


def _check_region(region: str | None, names: Sequence[str]) -> None:
    """UsageError: a temporary fleet has no such region, or a scenario hits none of one's choice."""
    fixed = [name for name in names if not SCENARIOS[name].picks_region]
    if region is not None and fixed:
        allowed = ", ".join(scenario.name for scenario in SCENARIOS.values() if scenario.picks_region)
        raise click.UsageError(
            f"--region: {', '.join(fixed)} does not hit a region of one's choice; allowed with {allowed}"
        )
    if region is not None and region not in TEMPORARY_REGIONS:
        raise click.UsageError(
            f"--region: {region!r}, allowed of a temporary fleet are {', '.join(TEMPORARY_REGIONS)}"
        )


def _check_directory(directory: Path) -> None:
    """UsageError: the result could not be kept. Looked at before anything is broken."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".drill-"):
            pass
    except OSError as error:
        raise click.UsageError(
            f"--directory: {directory}: {error.strerror}; allowed is one that can be made or written to"
        ) from None


def _blank(scenario: Scenario, fleet: str, *, is_live: bool) -> DrillRecord:
    return record_of(scenario, fleet=fleet, is_live=is_live, target="", at_s=time.time())


def _keep_whatever(
    run: Callable[[], DrillRecord], blank: DrillRecord, directory: Path, *, is_open: bool
) -> None:
    """Run the drill, and keep what becomes of it: a fleet that does not start, or breaks, is its worst outcome.

    `blank` is kept if there is no other record. A bug is kept, too, and raised again, for its traceback.
    """
    try:
        record = run()
    except (click.ClickException, click.Abort):
        raise  # it was not confirmed
    except DrillRefused as error:
        record = blank
        record.not_run, record.is_lacking = str(error), isinstance(error, CannotRunHere)
    except Exception as error:
        record = blank
        record.failure = words(error) if isinstance(error, EXPECTED) else f"{type(error).__name__}: {error}"
        record.notes += getattr(error, "__notes__", [])
        if not isinstance(error, EXPECTED):
            _write(record, directory)
            raise
    _keep(record, directory, is_open=is_open)


def _live(
    runner: DrillRunner,
    scenario: Scenario,
    fleet_path: Path,
    directory: Path,
    options: DrillOptions,
    confirmed: str | None,
    *,
    is_open: bool,
) -> None:
    if options.region is not None and not scenario.picks_region:
        _check_region(options.region, [scenario.name])
    config = read_fleet(fleet_path)
    name = config.fleet.name
    _check_directory(directory)
    blank = _blank(scenario, name, is_live=True)

    def confirm(target: str) -> None:
        """The fleet's name, typed or given; nothing else will do."""
        notes().print(
            f"[red]This does to the live fleet [b]{name}[/b]: {scenario.title}. It hits [b]{target}[/b].[/red] "
            f"{caveat(scenario, config)}"
        )
        if confirmed is None:
            _check_name(click.prompt("Type the fleet's name to go on", err=True), name)
        blank.target = target

    def run() -> DrillRecord:
        reason = refusal(scenario, config, options.region)
        if reason:
            raise DrillRefused(reason)
        if confirmed is not None:
            _check_name(confirmed, name)
        return runner.live(scenario, config, options, confirm)

    _keep_whatever(run, blank, directory, is_open=is_open)


def _check_name(answer: str, name: str) -> None:
    if answer != name:
        raise Failure(f"{answer!r} is not the name of the fleet: nothing was done")


def _keep(record: DrillRecord, directory: Path, *, is_open: bool) -> None:
    """Show it, keep it in the history, and end the command with its verdict."""
    if not record.reason:
        show_record(record)
    report = _write(record, directory)
    if is_open:
        webbrowser.open(report.resolve().as_uri())
    if record.is_lacking:
        raise NotRun(f"drill {record.scenario} not run: {record.not_run}")
    if record.reason:
        raise Failure(f"drill {record.scenario} {record.verdict}: {record.reason}")
    if not record.is_passed:
        failed = [check.name for check in record.checks if check.is_met is False] or ["nothing was measured"]
        raise Failure(f"drill {record.scenario} not passed: {', '.join(failed)}")


def _write(record: DrillRecord, directory: Path) -> Path:
    """Into the history; returns the report's path."""
    report = write_record(record, directory).with_suffix(".html")
    report.write_text(html(record), encoding="utf-8")
    output().print(f"report: {report}")
    return report


def _run_all(runner: DrillRunner, names: Sequence[str], options: DrillOptions, directory: Path) -> None:
    """Each in a process of its own, because a process can join one cluster only."""
    common = ["--directory", str(directory), "--rate", f"{options.rate:g}"]
    common += ["--before", f"{options.before_s:g}", "--after", f"{options.after_s:g}"]
    if options.region is not None:
        common += ["--region", options.region]
    statuses = []
    for name in names:
        output().print(f"\n[b]drill {name}[/b]")
        statuses.append((name, runner.again(["--scenario", name, *common])))
    not_run = [name for name, status in statuses if status == NOT_RUN]
    failed = [name for name, status in statuses if status not in (0, NOT_RUN)]
    if failed and not_run:
        notes().print(Text(f"not run on this machine: {', '.join(not_run)}", style="yellow"))
    if failed:
        raise Failure(f"not passed or refused: {', '.join(failed)}")
    if not_run:
        raise NotRun(f"not run on this machine: {', '.join(not_run)}; none of the others failed")

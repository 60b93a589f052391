"""`sendfleet drill`: a fault on purpose, on a temporary fleet or on the live one, measured and kept.

How a fleet is run is known to whoever builds the command (actors/command.py).
"""

import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import click
from rich.table import Table
from rich.text import Text

from engine.cli.terminal import Failure, fleet_option, notes, output, read_fleet
from engine.config.schema import FleetConfig
from engine.drill.record import DrillRecord, read_records, write_record
from engine.drill.report import html, rows
from engine.drill.scenarios import SCENARIOS, DrillRefused, Scenario, caveat, refusal

HISTORY = Path("var/drills")


class DrillRunner(Protocol):
    """Runs drills. Both raise DrillRefused."""

    def temporary(
        self, scenario: Scenario, *, rate: float, before_s: float, after_s: float
    ) -> DrillRecord: ...

    def live(
        self, scenario: Scenario, config: FleetConfig, *, before_s: float, after_s: float
    ) -> DrillRecord: ...

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
    @click.option("--on-live", is_flag=True, help="On the running fleet of --fleet, with its own traffic.")
    @click.option(
        "--yes", "confirmed", metavar="NAME", help="With --on-live: the fleet's name, instead of typing it."
    )
    @fleet_option
    @click.option(
        "--rate",
        type=click.FloatRange(1, 10_000),
        default=100.0,
        show_default=True,
        help="Messages per second of a temporary fleet's load.",
    )
    @click.option(
        "--before",
        "before_s",
        type=click.FloatRange(1, 3600),
        default=5.0,
        show_default=True,
        help="Seconds of load before the fault.",
    )
    @click.option(
        "--after",
        "after_s",
        type=click.FloatRange(1, 3600),
        default=15.0,
        show_default=True,
        help="Seconds of load after the fault.",
    )
    @click.option("--open", "is_open", is_flag=True, help="Show the report in a browser.")
    def drill(
        names: tuple[str, ...],
        is_list: bool,
        is_history: bool,
        directory: Path,
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
        passed, 1 not passed or refused, 2 wrong usage.
        """
        if is_list:
            _list()
            return
        if is_history:
            _show_history(directory, names)
            return
        if confirmed is not None and not on_live:
            raise click.UsageError("--yes is allowed only together with --on-live")
        if on_live:
            if len(names) != 1:
                raise click.UsageError("--on-live needs exactly one --scenario")
            config = read_fleet(fleet_path)
            scenario = SCENARIOS[names[0]]
            reason = refusal(scenario, config, on_live=True)
            if reason:
                raise Failure(f"{scenario.name}: {reason}")
            _confirm(scenario, config, confirmed)
            record = _run(lambda: runner.live(scenario, config, before_s=before_s, after_s=after_s))
        elif len(names) == 1:
            scenario = SCENARIOS[names[0]]
            record = _run(lambda: runner.temporary(scenario, rate=rate, before_s=before_s, after_s=after_s))
        else:
            common = ["--directory", str(directory), "--rate", f"{rate:g}"]
            common += ["--before", f"{before_s:g}", "--after", f"{after_s:g}"]
            _run_all(runner, names or tuple(SCENARIOS), common)
            return
        path = write_record(record, directory)
        report = path.with_suffix(".html")
        report.write_text(html(record), encoding="utf-8")
        _show(record)
        output().print(f"report: {report}")
        if is_open:
            webbrowser.open(report.resolve().as_uri())
        if not record.is_passed:
            failed = [check.name for check in record.checks if not check.is_met]
            raise Failure(f"drill {record.scenario} not passed: {', '.join(failed)}")

    return drill


def _run(run: Callable[[], DrillRecord]) -> DrillRecord:
    try:
        return run()
    except DrillRefused as error:
        raise Failure(str(error)) from None


def _run_all(runner: DrillRunner, names: Sequence[str], common: Sequence[str]) -> None:
    """Each in a process of its own, because a process can join one cluster only."""
    failed = []
    for name in names:
        output().print(f"\n[b]drill {name}[/b]")
        if runner.again(["--scenario", name, *common]) != 0:
            failed.append(name)
    if failed:
        raise Failure(f"not passed or refused: {', '.join(failed)}")


def _confirm(scenario: Scenario, config: FleetConfig, confirmed: str | None) -> None:
    """The fleet's name, typed or given; nothing else will do."""
    name = config.fleet.name
    notes().print(
        f"[red]This does to the live fleet [b]{name}[/b]: {scenario.title}.[/red] {caveat(scenario, config)}"
    )
    answer = click.prompt("Type the fleet's name to go on", err=True) if confirmed is None else confirmed
    if answer != name:
        raise Failure(f"{answer!r} is not the name of the fleet: nothing was done")


def _list() -> None:
    for scenario in SCENARIOS.values():
        live = f"not on a live fleet: {scenario.needs_temporary}" if scenario.needs_temporary else ""
        output().print(f"[b]{scenario.name}[/b]: {scenario.title}")
        for line in filter(None, (f"expected: {scenario.expects}", live)):
            output().print(Text(f"    {line}"))


def _show(record: DrillRecord) -> None:
    table = Table(title=f"drill {record.scenario}: {record.target}", title_justify="left", box=None)
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in rows(record):
        table.add_row(name, value)
    console = output()
    console.print(table)
    for check in record.checks:
        state = "[green]met[/green]" if check.is_met else "[red]not met[/red]"
        console.print(f"{state}: {check.name} ({check.text})")
    for note in record.notes:
        console.print(Text(f"note: {note}"))
    if record.caveat:
        console.print(Text(f"not rehearsed: {record.caveat}"))


def _show_history(directory: Path, names: Sequence[str]) -> None:
    records, problems = read_records(directory)
    for problem in problems:
        notes().print(Text(problem, style="yellow"))
    shown = [record for record in records if not names or record.scenario in names]
    if not shown:
        raise Failure(f"no drill is in {directory}")
    table = Table(box=None, padding=(0, 1, 0, 0))
    for heading in ("day", "scenario", "verdict"):
        table.add_column(heading)
    for heading in ("detection", "reroute", "drain", "lost", "twice"):
        table.add_column(heading, justify="right")
    before: dict[tuple[str, str], DrillRecord] = {}
    for record in shown:
        key = record.scenario, record.fleet
        last = before.get(key)
        found, old = record.figures, last.figures if last is not None else None
        table.add_row(
            f"{record.at[:4]}-{record.at[4:6]}-{record.at[6:8]}",
            f"{record.scenario}, {record.fleet}" if record.is_live else record.scenario,
            Text("passed", style="green") if record.is_passed else Text("failed", style="red"),
            _trend(found.detection_s, old.detection_s if old else None),
            _trend(found.gap_s, old.gap_s if old else None),
            _trend(found.drain_s, old.drain_s if old else None),
            str(found.lost),
            str(found.duplicated),
        )
        before[key] = record
    output().print(table)


def _trend(value: float | None, before: float | None) -> str:
    """Seconds, and whether they grew since the drill before of the same kind on the same fleet."""
    if value is None:
        return "-"
    if before is None:
        return f"{value:.2f} s  "
    return f"{value:.2f} s {'↑' if value > before else '↓' if value < before else '='}"

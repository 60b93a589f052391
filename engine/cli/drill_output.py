"""What `sendfleet drill` shows: the scenarios, a drill, the history."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from engine.cli.terminal import Failure, notes, output
from engine.drill.record import DrillRecord, read_records
from engine.drill.report import rows
from engine.drill.scenarios import SCENARIOS

COLOURS = {True: "green", False: "red", None: "yellow"}
VERDICTS = {"passed": "green", "not passed": "red", "not run": "yellow", "refused": "red"}


def show_scenarios() -> None:
    for scenario in SCENARIOS.values():
        live = f"not on a live fleet: {scenario.needs_temporary}" if scenario.needs_temporary else ""
        output().print(f"[b]{scenario.name}[/b]: {scenario.title}")
        for line in filter(None, (f"expected: {scenario.expects}", live)):
            output().print(Text(f"    {line}"))


def show_record(record: DrillRecord) -> None:
    console = output()
    table = Table(title=f"drill {record.scenario}: {record.target}", title_justify="left", box=None)
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in rows(record):
        table.add_row(name, value)
    console.print(table)
    for check in record.checks:
        colour = COLOURS[check.is_met]
        words = "" if check.text == check.state else f" ({check.text})"
        console.print(f"[{colour}]{check.state}[/{colour}]: {check.name}{words}")
    for note in record.notes:
        console.print(Text(f"note: {note}"))
    if record.caveat:
        console.print(Text(f"not rehearsed: {record.caveat}"))


def show_history(directory: Path, names: Sequence[str]) -> None:
    """Of these scenarios, or of all. Failure: there is no drill."""
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
    before: dict[tuple[object, ...], DrillRecord] = {}
    for record in shown:
        table.add_row(
            f"{record.at[:4]}-{record.at[4:6]}-{record.at[6:8]}",
            f"{record.scenario}, {record.fleet}" if record.is_live else record.scenario,
            Text(record.verdict, style=VERDICTS[record.verdict]),
            *([] if record.reason else _figures(record, before.get(record.kind))),
        )
        if not record.reason:
            before[record.kind] = record
    output().print(table)
    for reason in dict.fromkeys(f"{r.scenario} {r.verdict}: {r.reason}" for r in shown if r.reason):
        output().print(Text(reason))


def _figures(record: DrillRecord, last: DrillRecord | None) -> list[str]:
    found, old = record.figures, last.figures if last is not None else None
    return [
        _trend(found.detection_s, old.detection_s if old else None),
        _trend(found.gap_s, old.gap_s if old else None),
        _trend(found.drain_s, old.drain_s if old else None),
        "-" if found.lost is None else str(found.lost),
        "-" if found.duplicated is None else str(found.duplicated),
    ]


def _trend(value: float | None, before: float | None) -> str:
    """Seconds, and whether they grew since the drill before of the same kind."""
    if value is None:
        return "-"
    if before is None:
        return f"{value:.2f} s  "
    return f"{value:.2f} s {'↑' if value > before else '↓' if value < before else '='}"

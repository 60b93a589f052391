"""`sendfleet audit`: the conservation law (contract, promise 2), checked id by id on the disk of every region
here.

It reads the spools and needs no running fleet; beside a running one it sees one moment of each region.
"""

import json
from pathlib import Path

import click

from engine.cli.terminal import Failure, fleet_option, notes, output, read_fleet
from engine.spool.audit import AuditReport, audit

PARTS = ("delivered", "bounced", "expired", "suppressed", "cancelled", "queued")


@click.command("audit")
@fleet_option
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
def audit_command(fleet_path: Path, as_json: bool) -> None:
    """Account for every message that was ever accepted; exit status 1 if one is not accounted for."""
    config = read_fleet(fleet_path)
    root = Path(config.spool.directory)
    reports: dict[str, AuditReport] = {}
    for region in config.regions:
        if (root / region.name).is_dir():
            reports[region.name] = audit(root / region.name)
        else:
            notes().print(f"[yellow]region {region.name}: no spool on this machine[/yellow]")
    if not reports:
        raise Failure(f"no spool of this fleet is in {root}")
    if as_json:
        click.echo(json.dumps({name: _plain(report) for name, report in reports.items()}, indent=2))
    else:
        for name, report in reports.items():
            output().print(f"region {name}: {equation([report])}")
            for problem in report.problems:
                notes().print(f"[red]region {name}: {problem}[/red]")
        output().print(f"audit: {equation(list(reports.values()))}")
    problems = sum(report.problem_count for report in reports.values())
    if problems:
        raise Failure(f"{problems} problems: not every message is accounted for")


def equation(reports: list[AuditReport]) -> str:
    """The law with the sums of several spools."""
    accepted = sum(report.accepted for report in reports)
    parts = " + ".join(f"{kind} {sum(report.counts.get(kind, 0) for report in reports)}" for kind in PARTS)
    moved = sum(
        report.counts.get("moved", 0) for report in reports
    )  # to another region, which counts them too
    return f"accepted {accepted} = {parts}" + (f" + moved {moved}" if moved else "")


def _plain(report: AuditReport) -> dict[str, object]:
    return {
        "path": report.path,
        "accepted": report.accepted,
        "counts": report.counts,
        "problems": report.problem_count,
        "first_problems": report.problems,
    }

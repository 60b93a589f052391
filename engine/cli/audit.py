"""`sendfleet audit`: the conservation law (contract, promise 2), checked id by id on the disk of every region
here.

It reads the spools and needs no running fleet; beside a running one it sees one moment of each region. What has moved
from one region to another is accounted for over all of them (engine/spool/audit_moved.py).
"""

import json
from pathlib import Path

import click

from engine.cli.terminal import Failure, fleet_option, notes, output, read_fleet
from engine.failover.spans import size
from engine.spool.audit import AuditReport, audit
from engine.spool.audit_moved import audit_moved

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
    moved = audit_moved(
        reports,
        all_here=len(reports) == len(config.regions),
        has_copies=bool(config.fleet.replicas),
    )
    if as_json:
        click.echo(json.dumps({name: _plain(report) for name, report in reports.items()}, indent=2))
    else:
        for name, report in reports.items():
            output().print(f"region {name}: {equation([report])}")
            for problem in report.problems:
                notes().print(f"[red]region {name}: {problem}[/red]")
        output().print(f"audit: {equation(list(reports.values()), is_whole=True)}")
        if moved.twice:
            output().print(
                f"{size(moved.twice)} of these are counted in two regions: handed over just now, or of a region "
                "that was called dead"
            )
    for problem in moved.problems:
        notes().print(f"[red]{problem}[/red]")
    problems = sum(report.problem_count for report in reports.values()) + len(moved.problems)
    if problems:
        raise Failure(f"{problems} problems: not every message is accounted for")


def equation(reports: list[AuditReport], *, is_whole: bool = False) -> str:
    """The law with the sums of several spools. `is_whole`: what has moved, or was replaced, counts where it is."""
    accepted = sum(report.accepted for report in reports)
    parts = " + ".join(f"{kind} {sum(report.counts.get(kind, 0) for report in reports)}" for kind in PARTS)
    elsewhere = {
        word: number
        for word in ("moved", "replaced")
        if (number := sum(report.counts.get(word, 0) for report in reports))
    }
    if is_whole:
        return f"accepted {accepted - sum(elsewhere.values())} = {parts}"
    return " + ".join(
        [f"accepted {accepted} = {parts}", *(f"{word} {number}" for word, number in elsewhere.items())]
    )


def _plain(report: AuditReport) -> dict[str, object]:
    return {
        "path": report.path,
        "accepted": report.accepted,
        "counts": report.counts,
        "problems": report.problem_count,
        "first_problems": report.problems,
    }

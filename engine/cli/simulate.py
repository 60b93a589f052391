"""`sendfleet simulate plan.yaml`: days of a fleet in minutes, against modelled providers."""

import logging
import time
from pathlib import Path

import click
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from engine.cli.terminal import notes, output
from engine.config.units import parse_duration
from engine.simulator.plan import load_plan
from engine.simulator.report import html_text, json_text
from engine.simulator.simulation import Simulation


@click.command("simulate")
@click.argument("plan_path", metavar="PLAN", type=click.Path(path_type=Path))
@click.option(
    "--html", "html_path", type=click.Path(path_type=Path), help="Write the report here [PLAN.html]."
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the data here [PLAN.json].")
@click.option("--seed", type=click.IntRange(0, 2**31), help="Instead of the plan's.")
@click.option("--duration", help="Instead of the plan's, as in 12h.")
def simulate_command(
    plan_path: Path, html_path: Path | None, json_path: Path | None, seed: int | None, duration: str | None
) -> None:
    """Run PLAN: the engine's own scheduler, reputation, warm-up and shaping on a virtual clock.

    Writes a page with plots and the data behind it, in the present folder. The same plan and seed give the same bytes.
    """
    plan = load_plan(plan_path)
    if seed is not None:
        plan = plan.model_copy(update={"seed": seed})
    if duration is not None:
        try:
            seconds = parse_duration(duration)
        except ValueError as error:
            raise click.UsageError(f"--duration {duration!r}: {error}") from None
        if seconds < plan.tick:
            raise click.UsageError(f"--duration {duration!r}: allowed is at least the plan's tick")
        plan = plan.model_copy(update={"duration": seconds})
    # what the region would log is in the report, as events
    logging.getLogger("engine.region").setLevel(logging.CRITICAL)
    begin = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=notes(), transient=True) as progress:
        task = progress.add_task(plan.name, total=1.0)
        record = Simulation(plan).run(lambda part: progress.update(task, completed=part))
    spent = time.perf_counter() - begin
    data = record.as_json()
    html_path = html_path or Path(f"{plan_path.stem}.html")
    json_path = json_path or Path(f"{plan_path.stem}.json")
    html_path.write_text(html_text(data), encoding="utf-8")
    json_path.write_text(json_text(data), encoding="utf-8")
    for name, value in data["totals"].items():
        output().print(f"{name:<17}{value:>15,}")
    attempts = record.delivered_count + record.attempts_refused
    output().print(f"{attempts:,} attempts in {spent:.1f} s: {attempts / spent:,.0f} a second", markup=False)
    output().print(f"{html_path}, {json_path}", markup=False)

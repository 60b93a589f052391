"""`sendfleet forget-copies`: a region goes on without copies although another may own the same messages.

For a fleet that cannot be brought to rest any more, because a region is gone for good. It works on the spools of this
machine, while the fleet is down. All that is queued and due soon is marked as perhaps sent.
"""

from collections.abc import Iterator
from concurrent.futures import Future
from itertools import chain
from pathlib import Path
from typing import Any

import click

from engine.cli.terminal import Failure, fleet_option, notes, output, read_fleet
from engine.region.resting import drop_copies, mark_all, release_all
from engine.spool.errors import SpoolError
from engine.spool.options import SpoolOptions
from engine.spool.store import Spool
from engine.values.clock import SystemClock


@click.command("forget-copies")
@fleet_option
@click.option("--region", "only", help="This one alone.")
@click.confirmation_option(
    prompt="What two regions own is then sent by both, marked as perhaps sent. Go on without copies?"
)
def forget_copies_command(fleet_path: Path, only: str | None) -> None:
    """Let the regions of this machine start with `replicas: 0` after they were not all stopped in order.

    The fleet must be down. What is queued is marked as a possible duplicate; copies of others' messages are dropped.
    """
    config = read_fleet(fleet_path)
    if config.fleet.replicas:
        raise Failure("fleet.replicas: 1: copies are kept; this is for a fleet with 0")
    numbers = {region.name: region.number for region in config.regions}
    if only is not None and only not in numbers:
        raise Failure(f"no region {only} in {fleet_path}: there are {', '.join(numbers)}")
    options = SpoolOptions.from_config(config.spool)
    for name in [only] if only is not None else list(numbers):
        path = Path(config.spool.directory) / name
        if not path.is_dir():
            notes().print(f"[yellow]region {name}: no spool on this machine[/yellow]")
            continue
        try:
            spool = Spool.open(path, region_number=numbers[name], clock=SystemClock(), options=options)
        except SpoolError as error:
            raise Failure(f"region {name}: {error}") from None
        try:
            is_needed = spool.rest() is not None
            if is_needed:
                _forget(spool, numbers)
        finally:
            spool.close()
        output().print(f"region {name}: {'goes on without copies' if is_needed else 'has none to forget'}")


def _forget(spool: Spool, numbers: dict[str, int]) -> None:
    steps: Iterator[Future[Any]] = chain(
        release_all(spool, numbers), mark_all(spool, numbers), drop_copies(spool, numbers)
    )
    for step in steps:
        step.result()
    spool.begin_alone().result()

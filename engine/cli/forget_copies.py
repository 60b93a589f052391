"""`sendfleet forget-copies`: a region goes on without copies although another may own the same messages.

For a fleet that cannot be brought to rest any more, because a region is gone for good. It works on the spools of this
machine, while the fleet is down. All that is queued and due soon is marked as perhaps sent.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import click

from engine.cli.terminal import Failure, fleet_option, notes, output, read_fleet
from engine.config.schema import FleetConfig
from engine.region.resting import drop_copies, mark_all, release_all
from engine.spool.errors import SpoolError
from engine.spool.options import SpoolOptions
from engine.spool.store import Spool
from engine.values.clock import SystemClock


@click.command("forget-copies")
@fleet_option
@click.option("--region", "only", help="This one alone.")
@click.option("--yes", "is_sure", is_flag=True, help="Do not ask.")
def forget_copies_command(fleet_path: Path, only: str | None, is_sure: bool) -> None:
    """Let the regions of this machine start with `replicas: 0` after they were not all stopped in order.

    The fleet must be down. What is queued is marked as a possible duplicate; copies of others' messages are dropped:
    how many, and whose, is said before.
    """
    config = read_fleet(fleet_path)
    if config.fleet.replicas:
        raise Failure("fleet.replicas: 1: copies are kept; this is for a fleet with 0")
    numbers = {region.name: region.number for region in config.regions}
    if only is not None and only not in numbers:
        raise Failure(f"no region {only} in {fleet_path}: there are {', '.join(numbers)}")
    with ExitStack() as opened:
        spools: dict[str, Spool] = {}
        for name in [only] if only is not None else list(numbers):
            spool = _opened(config, name, numbers[name])
            if spool is None:
                notes().print(f"[yellow]region {name}: no spool on this machine[/yellow]")
                continue
            opened.callback(spool.close)
            if spool.rest() is None:
                output().print(f"region {name}: has none to forget")
                continue
            spools[name] = spool
            for owner, count in sorted(spool.copies(numbers).items()):
                output().print(
                    f"region {name}: copies of {count} messages of {_described(owner, numbers)} are dropped"
                )
        if spools and not is_sure:
            click.confirm(
                "If a region's disk is lost, copies of its messages are the last there are. What two regions own is "
                "then sent by both, marked as perhaps sent. Go on without copies?",
                abort=True,
            )
        for name, spool in spools.items():
            _forget(spool, numbers)
            output().print(f"region {name}: goes on without copies")


def _opened(config: FleetConfig, name: str, number: int) -> Spool | None:
    """None: there is none on this machine."""
    path = Path(config.spool.directory) / name
    if not path.is_dir():
        return None
    options = SpoolOptions.from_config(config.spool)
    try:
        return Spool.open(path, region_number=number, clock=SystemClock(), options=options)
    except SpoolError as error:
        raise Failure(f"region {name}: {error}") from None


def _described(owner: str, numbers: Mapping[str, int]) -> str:
    return f"region {owner}" if owner in numbers else f"region {owner}, which is not in fleet.yaml,"


def _forget(spool: Spool, numbers: Mapping[str, int]) -> None:
    steps: Iterator[Future[Any]] = chain(
        release_all(spool, numbers), mark_all(spool, numbers), drop_copies(spool, spool.copy_owners(numbers))
    )
    for step in steps:
        step.result()
    spool.begin_alone().result()

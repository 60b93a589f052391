"""Drills as the command `sendfleet drill` runs them (engine/cli/drill.py, DrillRunner)."""

import fcntl
import importlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from actors.drill.fleets import LiveFleet, TemporaryFleet
from actors.drill.machines import ANOTHER
from actors.drill.run import run_live, run_temporary
from actors.environment import prepare, run_directory
from actors.local_cluster import LocalCluster
from actors.undertaker import Undertaker
from engine.config.schema import FleetConfig
from engine.drill.record import DrillRecord
from engine.drill.scenarios import DrillOptions, DrillRefused, Scenario
from engine.ops.own_module import own_module

console = Console(stderr=True, highlight=False)


def _kept(directory: Path) -> str:
    """Says so, for the history, too."""
    text = f"the fleet's files are kept in {directory}"
    console.print(text)
    return text


@contextmanager
def _only_drill(config: FleetConfig) -> Iterator[None]:
    """DrillRefused: another is run from this machine. On a cluster actors/drill/nodes.py sees the others, too."""
    with (run_directory(config) / "drill.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DrillRefused(ANOTHER) from None
        yield


class Runner:
    """See the module docstring."""

    def temporary(self, scenario: Scenario, options: DrillOptions) -> DrillRecord:
        directory = Path(tempfile.mkdtemp(prefix="sf-drill-"))
        block_after = round(options.rate / 4 * options.before_s)  # one of four sources, at about its share
        try:
            console.print("starting a temporary fleet")
            with Undertaker() as undertaker:
                undertaker.take(directory)
                with TemporaryFleet(directory, scenario.name, block_after=block_after) as fleet:
                    record = run_temporary(scenario, fleet, options, console.print)
        except DrillRefused:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        except Exception as error:
            error.add_note(_kept(directory))
            raise
        if record.is_passed:
            shutil.rmtree(directory, ignore_errors=True)
        else:
            record.notes.append(_kept(directory))
        return record

    def live(
        self,
        scenario: Scenario,
        config: FleetConfig,
        options: DrillOptions,
        confirm: Callable[[str], None],
    ) -> DrillRecord:
        prepare(config)
        deploy = importlib.import_module("actors.deploy")
        try:
            deploy.connect_ray(config.ray.address or LocalCluster(config).address())
        except FileNotFoundError:
            raise DrillRefused(f"no fleet {config.fleet.name} runs here") from None
        with _only_drill(config), LiveFleet(config) as fleet:
            return run_live(scenario, fleet, options, console.print, confirm)

    def again(self, arguments: Sequence[str]) -> int:
        command = [*own_module("actors"), "drill", *arguments]
        with Undertaker():
            return subprocess.run(command, check=False).returncode

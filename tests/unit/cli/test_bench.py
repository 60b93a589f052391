"""`sendfleet bench`: which fleet it takes, what it refuses, how it ends."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from engine.cli import bench as bench_module
from engine.cli.bench import BenchFleets, build_bench
from engine.cli.terminal import CommandGroup
from engine.trial.destinations import UnsafeTrial
from engine.trial.figures import TrialReport
from engine.trial.run import Trial

FLEET = Path(__file__).parents[3] / "examples" / "fleet.yaml"


class Stage:
    """Stands for the fleets and for the trial; keeps what was asked of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_running = True
        self.trials: list[tuple[str, Trial]] = []
        self.temporary: list[tuple[str | None, Path | None]] = []
        self.removed = 0
        self.report = TrialReport(10, 300, 0.0, 1, accepted=10, delivered=10)
        self.arrived: tuple[int, int] | None = (10, 0)
        self.error: BaseException | None = None

        async def run_trial(client: str, trial: Trial) -> TrialReport:
            self.trials.append((client, trial))
            if self.error is not None:
                raise self.error
            return self.report

        monkeypatch.setattr(bench_module, "run_trial", run_trial)

    @contextmanager
    def make(self, sink: str | None, parent: Path | None) -> Iterator[Any]:
        self.temporary.append((sink, parent))
        try:
            yield SimpleNamespace(client="temporary", arrived=lambda: self.arrived)
        finally:
            self.removed += 1

    def invoke(self, *arguments: object) -> Result:
        fleets: Any = BenchFleets(lambda _: self.is_running, lambda _: "running", self.make)
        group = CommandGroup("sendfleet", commands=[build_bench(fleets)])
        return CliRunner().invoke(group, ["bench", *map(str, arguments)])


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)


def test_the_running_fleet_is_taken(stage: Stage) -> None:
    result = stage.invoke("--fleet", FLEET, "--messages", 10, "--size", 300, "--rate", 5, "--destinations", 2)
    assert result.exit_code == 0, result.output
    assert stage.trials == [("running", Trial(10, 300, 5.0, 2))]
    assert stage.temporary == []


def test_a_temporary_one_when_none_runs_or_it_is_asked_for(stage: Stage, tmp_path: Path) -> None:
    assert stage.invoke("--fleet", FLEET, "--temporary", "--directory", tmp_path).exit_code == 0
    stage.is_running = False
    assert stage.invoke("--fleet", FLEET, "--sink", "127.0.0.1:2599").exit_code == 0
    assert stage.temporary == [(None, tmp_path), ("127.0.0.1:2599", None)]
    assert [client for client, _ in stage.trials] == ["temporary"] * 2
    assert stage.removed == 2


@pytest.mark.parametrize(
    "error", [UnsafeTrial("it would leave"), ConnectionError("no answer"), KeyboardInterrupt()]
)
def test_a_temporary_fleet_is_removed_however_the_trial_ends(stage: Stage, error: BaseException) -> None:
    stage.error = error
    result = stage.invoke("--temporary")
    assert result.exit_code == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert str(error) in result.output
    assert stage.removed == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--messages", "0"], "--messages"),
        (["--size", "10"], "--size"),
        (["--rate", "0"], "--rate"),
        (["--rate", "nan"], "--rate nan"),
        (["--rate", "inf"], "--rate inf"),
        (["--destinations", "0"], "--destinations"),
        (["--sink", "127.0.0.1:99999"], "port from 1 to 65535"),
        (["--sink", "a b"], "--sink a b"),
        (["--fleet", "nowhere.yaml"], "there is no such file"),
        (["--json", "nowhere/x.json"], "there is no directory"),
        (["--plot", "nowhere/x.svg"], "there is no directory"),
        (["--directory", "/tmp"], "add --temporary"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_started(
    stage: Stage, arguments: list[str], said: str
) -> None:
    fleet = [] if "--fleet" in arguments else ["--fleet", FLEET]
    result = stage.invoke(*fleet, *arguments)
    assert result.exit_code == 2
    assert said in result.output
    assert (stage.trials, stage.temporary) == ([], [])


def test_confirmations_reach_the_trial(stage: Stage) -> None:
    assert stage.invoke("--fleet", FLEET, "--may-leave").exit_code == 0
    assert stage.invoke("--fleet", FLEET, "--sink", "192.0.2.1:25").exit_code == 0
    assert [(trial.may_leave, trial.sink) for _, trial in stage.trials] == [
        (True, None),
        (False, "192.0.2.1:25"),
    ]


def test_figures_are_written_and_a_trial_that_lost_something_fails(stage: Stage, tmp_path: Path) -> None:
    paths = ["--json", tmp_path / "x.json", "--plot", tmp_path / "x.svg"]
    stage.report.unsettled = 1
    result = stage.invoke("--temporary", *paths)
    assert result.exit_code == 1
    assert "1 messages were not settled" in result.output
    assert json.loads((tmp_path / "x.json").read_text())["is_temporary"] is True
    assert (tmp_path / "x.svg").read_text().startswith("<svg")
    stage.report.unsettled, stage.report.refused = 0, 2
    assert "2 messages were refused" in stage.invoke("--temporary").output
    stage.report.refused, stage.arrived = 0, (11, 1)
    assert "delivered 10, but the sink took 11" in stage.invoke("--temporary").output

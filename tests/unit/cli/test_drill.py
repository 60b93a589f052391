"""`sendfleet drill`: what it asks before it touches a live fleet, its history, its exit status."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from engine.cli.drill import build_drill
from engine.config.schema import FleetConfig
from engine.drill.figures import Figures
from engine.drill.record import Check, DrillRecord
from engine.drill.scenarios import DrillRefused, Scenario
from tests.unit.cli.support import FLEET


class FakeRunner:
    """Makes records instead of drills; `done` has what was asked for."""

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.detection_s = 1.0
        self.is_met = True
        self.refuses = ""

    def _record(self, scenario: Scenario, name: str) -> DrillRecord:
        if self.refuses:
            raise DrillRefused(self.refuses)
        return DrillRecord(
            scenario=scenario.name,
            title=scenario.title,
            expects=scenario.expects,
            at="20260131T120000Z",
            fleet=name,
            is_live=False,
            target="x",
            rate=1.0,
            figures=Figures(detection_s=self.detection_s),
            checks=[Check("nothing lost", self.is_met, "0 lost")],
        )

    def temporary(self, scenario: Scenario, *, rate: float, before_s: float, after_s: float) -> DrillRecord:
        self.done.append(("temporary", scenario.name, rate, before_s, after_s))
        return self._record(scenario, "drill")

    def live(
        self, scenario: Scenario, config: FleetConfig, *, before_s: float, after_s: float
    ) -> DrillRecord:
        self.done.append(("live", scenario.name, config.fleet.name))
        return replace(self._record(scenario, config.fleet.name), is_live=True)

    def again(self, arguments: Sequence[str]) -> int:
        self.done.append(list(arguments))
        return 1 if "dns" in arguments else 0


@pytest.fixture
def runner() -> FakeRunner:
    return FakeRunner()


def run(runner: FakeRunner, *arguments: str | Path, typed: str = "") -> Result:
    return CliRunner().invoke(build_drill(runner), [str(a) for a in arguments], input=typed)


def live(runner: FakeRunner, tmp_path: Path, *arguments: str, typed: str = "") -> Result:
    common = ("--on-live", "--fleet", FLEET, "--directory", tmp_path)
    return run(runner, *common, *arguments, typed=typed)


def test_a_live_fleet_is_touched_only_after_its_name_was_given(runner: FakeRunner, tmp_path: Path) -> None:
    pool = ("--scenario", "pool-kill")
    for typed in ("", "y\n", "yes\n", "Demo\n"):
        assert live(runner, tmp_path, *pool, typed=typed).exit_code == 1
    assert live(runner, tmp_path, *pool, "--yes", "other").exit_code == 1
    assert live(runner, tmp_path).exit_code == 2
    assert live(runner, tmp_path, *pool, "--scenario", "dns").exit_code == 2
    assert run(runner, *pool, "--yes", "demo").exit_code == 2
    assert live(runner, tmp_path, "--scenario", "source-block", "--yes", "demo").exit_code == 1
    assert live(runner, tmp_path, "--scenario", "partition", "--yes", "demo").exit_code == 1
    assert runner.done == []
    assert live(runner, tmp_path, *pool, typed="demo\n").exit_code == 0
    assert live(runner, tmp_path, *pool, "--yes", "demo").exit_code == 0
    assert runner.done == [("live", "pool-kill", "demo")] * 2


def test_a_temporary_drill_writes_its_reports(runner: FakeRunner, tmp_path: Path) -> None:
    result = run(runner, "--scenario", "pool-kill", "--directory", tmp_path, "--rate", "20")
    assert result.exit_code == 0, result.output
    assert runner.done == [("temporary", "pool-kill", 20.0, 5.0, 15.0)]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".html", ".json"]
    assert "met: nothing lost (0 lost)" in result.output


def test_not_passed_and_refused_are_status_1(runner: FakeRunner, tmp_path: Path) -> None:
    runner.is_met = False
    result = run(runner, "--scenario", "pool-kill", "--directory", tmp_path)
    assert (result.exit_code, "not passed: nothing lost" in result.output) == (1, True)
    assert len(list(tmp_path.glob("*.json"))) == 1, "also kept"
    runner.refuses = "no root"
    result = run(runner, "--scenario", "disk-full", "--directory", tmp_path)
    assert (result.exit_code, "no root" in result.output) == (1, True)


def test_all_scenarios_each_in_a_process_of_its_own(runner: FakeRunner, tmp_path: Path) -> None:
    result = run(runner, "--directory", tmp_path)
    assert result.exit_code == 1
    assert "not passed or refused: dns" in result.output
    assert [arguments[1] for arguments in runner.done] == [
        "pool-kill",
        "source-block",
        "region-kill",
        "region-freeze",
        "partition",
        "partition-in",
        "partition-out",
        "head-kill",
        "disk-full",
        "dns",
    ]


def test_the_history_shows_how_figures_move(runner: FakeRunner, tmp_path: Path) -> None:
    assert run(runner, "--history", "--directory", tmp_path).exit_code == 1
    for detection_s in (1.0, 0.75):
        runner.detection_s = detection_s
        run(runner, "--scenario", "pool-kill", "--directory", tmp_path)
    (tmp_path / "20260131T130000Z-dns.json").write_text("{")
    result = run(runner, "--history", "--directory", tmp_path)
    assert result.exit_code == 0
    assert "0.75 s ↓" in result.output
    assert "not a drill's record" in result.output
    assert run(runner, "--history", "--scenario", "dns", "--directory", tmp_path).exit_code == 1


def test_the_list(runner: FakeRunner) -> None:
    result = run(runner, "--list")
    assert result.exit_code == 0
    assert "not on a live fleet: a live disk is not filled on purpose" in result.output

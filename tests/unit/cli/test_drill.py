"""`sendfleet drill`: what it asks before it touches a live fleet, its history, its exit status."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from engine.cli.drill import build_drill
from engine.config.schema import FleetConfig
from engine.drill.figures import Figures
from engine.drill.record import Check, DrillRecord, read_records
from engine.drill.scenarios import CannotRunHere, DrillOptions, DrillRefused, Scenario
from tests.unit.cli.support import FLEET


class FakeRunner:
    """Makes records instead of drills; `done` has what was asked for."""

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.detection_s = 1.0
        self.is_met = True
        self.refuses: Exception | None = None
        self.fails_to_find: Exception | None = None
        self.rate, self.machine = 1.0, ""
        self.unable: set[str] = set()
        self.statuses: list[int] = []

    def _record(self, scenario: Scenario, name: str) -> DrillRecord:
        if self.refuses is not None:
            raise self.refuses
        return DrillRecord(
            scenario=scenario.name,
            title=scenario.title,
            expects=scenario.expects,
            at="20260131T120000Z",
            fleet=name,
            is_live=False,
            target="x",
            rate=self.rate,
            machine=self.machine,
            figures=Figures(detection_s=self.detection_s),
            checks=[Check("nothing lost", self.is_met, "0 lost")],
        )

    def temporary(self, scenario: Scenario, options: DrillOptions) -> DrillRecord:
        self.done.append(
            ("temporary", scenario.name, options.rate, options.before_s, options.after_s, options.region)
        )
        return self._record(scenario, "drill")

    def live(
        self,
        scenario: Scenario,
        config: FleetConfig,
        options: DrillOptions,
        confirm: Callable[[str], None],
    ) -> DrillRecord:
        if self.fails_to_find is not None:
            raise self.fails_to_find
        confirm(f"region {options.region}, process 4711")
        self.done.append(("live", scenario.name, config.fleet.name))
        return replace(self._record(scenario, config.fleet.name), is_live=True)

    def again(self, arguments: Sequence[str]) -> int:
        self.done.append(list(arguments))
        name = arguments[1]
        if self.statuses:
            return self.statuses.pop(0)
        return 3 if name in self.unable else 1 if name == "dns" else 0


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
    assert runner.done == [("temporary", "pool-kill", 20.0, 5.0, 15.0, None)]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".html", ".json"]
    assert "met: nothing lost (0 lost)" in result.output


def test_not_passed_and_refused_are_status_1(runner: FakeRunner, tmp_path: Path) -> None:
    runner.is_met = False
    result = run(runner, "--scenario", "pool-kill", "--directory", tmp_path)
    assert (result.exit_code, "not passed: nothing lost" in result.output) == (1, True)
    assert len(list(tmp_path.glob("*.json"))) == 1, "also kept"
    runner.refuses = DrillRefused("no load")
    result = run(runner, "--scenario", "pool-kill", "--directory", tmp_path)
    assert (result.exit_code, "refused: no load" in result.output) == (1, True)


def test_what_this_machine_cannot_run_is_status_3_and_in_the_history(
    runner: FakeRunner, tmp_path: Path
) -> None:
    runner.refuses = CannotRunHere("disk-full: only root can")
    result = run(runner, "--scenario", "disk-full", "--directory", tmp_path)
    assert (result.exit_code, "not run: disk-full: only root can" in result.output) == (3, True)
    history = run(runner, "--history", "--directory", tmp_path)
    assert "disk-full not run: disk-full: only root can" in history.output
    (record,), problems = read_records(tmp_path)
    assert (record.verdict, problems) == ("not run", [])


def test_status_3_if_none_failed_and_some_could_not_be_run(runner: FakeRunner, tmp_path: Path) -> None:
    runner.unable = {"disk-full"}
    result = run(runner, "--directory", tmp_path)
    assert result.exit_code == 1
    assert "not run on this machine: disk-full" in result.output
    runner.unable = {"disk-full", "dns"}
    result = run(runner, "--directory", tmp_path)
    assert result.exit_code == 3
    assert "not run on this machine: disk-full, dns; none of the others failed" in result.output


def test_a_failure_is_not_forgotten_when_the_same_scenario_passes_afterwards(
    runner: FakeRunner, tmp_path: Path
) -> None:
    runner.statuses = [1, 0]
    twice = ("--scenario", "pool-kill", "--scenario", "pool-kill")
    assert run(runner, *twice, "--directory", tmp_path).exit_code == 1


def test_what_is_hit_is_named_before_the_name_is_typed(runner: FakeRunner, tmp_path: Path) -> None:
    freeze = ("--scenario", "region-freeze", "--region", "eu")
    result = live(runner, tmp_path, *freeze, typed="no\n")
    assert (result.exit_code, runner.done) == (1, [])
    assert "It hits region eu, process 4711." in result.output
    assert list(tmp_path.iterdir()) == [], "nothing was done, nothing is kept"


def test_a_live_drill_that_is_refused_after_it_was_confirmed_is_kept(
    runner: FakeRunner, tmp_path: Path
) -> None:
    runner.refuses = DrillRefused("too little traffic")
    result = live(runner, tmp_path, "--scenario", "pool-kill", "--yes", "demo")
    assert (result.exit_code, "refused: too little traffic" in result.output) == (1, True)
    (record,), _ = read_records(tmp_path)
    assert (record.verdict, record.fleet, record.is_live) == ("refused", "demo", True)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionError("no node started"), "no node started"),
        (TimeoutError(), "TimeoutError"),
        (RuntimeError("a bug"), "RuntimeError: a bug"),
    ],
)
def test_a_fleet_that_breaks_is_in_the_history(
    runner: FakeRunner, tmp_path: Path, error: Exception, reason: str
) -> None:
    error.add_note("the fleet's files are kept in /tmp/x")
    runner.refuses = error
    result = run(runner, "--scenario", "pool-kill", "--directory", tmp_path)
    assert result.exit_code == 1
    assert isinstance(result.exception, RuntimeError) == isinstance(error, RuntimeError), "a traceback"
    (record,), problems = read_records(tmp_path)
    assert (record.verdict, record.reason, problems) == ("not passed", reason, [])
    assert record.notes == ["the fleet's files are kept in /tmp/x"]
    history = run(runner, "--history", "--directory", tmp_path)
    assert f"pool-kill not passed: {reason}" in history.output
    (report,) = tmp_path.glob("*.html")
    assert f"Not passed: {reason}" in report.read_text()


def test_a_live_drill_that_did_not_come_to_its_question_is_kept(runner: FakeRunner, tmp_path: Path) -> None:
    verdicts = []
    for error in (TimeoutError("the region does not say"), DrillRefused("no fleet demo runs here")):
        runner.fails_to_find = error
        directory = tmp_path / type(error).__name__
        result = live(runner, directory, "--scenario", "pool-kill", "--yes", "demo")
        assert result.exit_code == 1
        (record,), _ = read_records(directory)
        verdicts.append((record.verdict, record.reason, record.is_live))
    assert verdicts == [
        ("not passed", "the region does not say", True),
        ("refused", "no fleet demo runs here", True),
    ]
    assert live(runner, tmp_path, "--scenario", "disk-full", "--yes", "demo").exit_code == 1
    (record,), _ = read_records(tmp_path)
    assert (record.verdict, "a live disk is not filled" in record.reason) == ("refused", True)


def test_a_region_is_chosen(runner: FakeRunner, tmp_path: Path) -> None:
    where = ("--directory", tmp_path)
    for arguments, said in (
        (("--scenario", "pool-kill", "--region", "asia"), "'asia', allowed of a temporary fleet are eu, us"),
        (("--scenario", "head-kill", "--region", "eu"), "head-kill does not hit a region"),
        (("--region", "eu"), "allowed with pool-kill, region-kill"),
    ):
        result = run(runner, *arguments, *where)
        assert (result.exit_code, said in result.output) == (2, True), result.output
    result = live(runner, tmp_path, "--scenario", "pool-kill", "--region", "asia", "--yes", "demo")
    assert (result.exit_code, "--region: 'asia', allowed are " in result.output) == (1, True)
    result = live(runner, tmp_path, "--scenario", "head-kill", "--region", "eu", "--yes", "demo")
    assert result.exit_code == 2
    assert runner.done == []
    assert run(runner, "--scenario", "pool-kill", "--region", "eu", *where).exit_code == 0
    pools = ("--scenario", "pool-kill", "--scenario", "region-kill")
    assert run(runner, *pools, "--region", "eu", *where).exit_code == 0
    assert runner.done[0][-1] == "eu"
    assert [arguments[-2:] for arguments in runner.done[1:]] == [["--region", "eu"]] * 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--fleet", FLEET], "--fleet: allowed only together with --on-live"),
        (["--yes", "demo"], "--yes: allowed only together with --on-live"),
        (
            ["--on-live", "--scenario", "dns", "--rate", "100"],
            "--rate: not allowed with --on-live: the load is the fleet's own",
        ),
        (["--open"], "--open: allowed only with one --scenario"),
        (["--scenario", "dns", "--scenario", "pool-kill", "--open"], "--open: allowed only with one"),
        (["--list", "--history"], "--history: not allowed together with --list"),
        (["--list", "--on-live", "--yes", "x"], "--on-live: not allowed together with --list"),
        (["--history", "--on-live"], "--on-live: not allowed together with --history"),
        (["--history", "--before", "9"], "--before: not allowed together with --history"),
        (["--rate", "nan"], "nan is not in the range"),
        (["--before", "nan"], "nan is not in the range"),
        (["--after", "inf"], "inf is not in the range"),
    ],
)
def test_an_option_that_would_be_passed_over_is_an_error(
    runner: FakeRunner, tmp_path: Path, arguments: list[str], said: str
) -> None:
    where = [] if "--list" in arguments else ["--directory", str(tmp_path)]
    result = run(runner, *arguments, *where)
    assert (result.exit_code, said in result.output) == (2, True), result.output
    assert runner.done == []


def test_the_fleet_of_the_environment_is_not_in_the_way(runner: FakeRunner, tmp_path: Path) -> None:
    arguments = ["--scenario", "pool-kill", "--directory", str(tmp_path)]
    environment = {"SENDFLEET_FLEET": str(FLEET)}
    assert CliRunner().invoke(build_drill(runner), arguments, env=environment).exit_code == 0


@pytest.mark.parametrize("kind", [["--yes", "demo", "--fleet", str(FLEET), "--on-live"], []])
def test_a_directory_that_cannot_be_written_is_told_before_anything_is_done(
    runner: FakeRunner, tmp_path: Path, kind: list[str]
) -> None:
    (tmp_path / "file").touch()
    for directory in (tmp_path / "file" / "drills", Path("/proc/self")):
        result = run(runner, "--scenario", "pool-kill", *kind, "--directory", directory)
        assert (result.exit_code, f"--directory: {directory}: " in result.output) == (2, True), result.output
    assert runner.done == []


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


def test_only_drills_of_the_same_rate_on_the_same_machine_are_compared(
    runner: FakeRunner, tmp_path: Path
) -> None:
    for detection_s, rate, machine in (
        (1.0, 100.0, "a, 2 cores, x86_64, Linux 6.1"),
        (2.0, 200.0, "a, 2 cores, x86_64, Linux 6.1"),
        (3.0, 100.0, "b, 8 cores, x86_64, Linux 6.1"),
        (0.5, 100.0, "a, 2 cores, x86_64, Linux 6.2"),
    ):
        runner.detection_s, runner.rate, runner.machine = detection_s, rate, machine
        run(runner, "--scenario", "pool-kill", "--directory", tmp_path)
    shown = run(runner, "--history", "--directory", tmp_path).output
    assert "0.50 s ↓" in shown
    assert not any(f"{value} s ↑" in shown for value in ("2.00", "3.00"))


def test_the_list(runner: FakeRunner) -> None:
    result = run(runner, "--list")
    assert result.exit_code == 0
    assert "not on a live fleet: a live disk is not filled on purpose" in result.output

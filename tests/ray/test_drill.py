"""Drills on a temporary fleet and on a live one: what they find and write. Times are the machine's, and not judged."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from actors.drill.fleets import temporary_config
from engine.drill.record import DrillRecord, read_records
from engine.sink.process import SinkProcess
from engine.spool.audit import audit
from tests.support.sinks import accepting_sink

pytestmark = [pytest.mark.ray, pytest.mark.crash]
ROOT = Path(__file__).parents[2]
PATIENCE_S = 300


def sendfleet(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "actors", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, **environment},
        cwd=ROOT,
    )


def test_a_pool_of_a_temporary_fleet_is_killed(tmp_path: Path) -> None:
    arguments = ["--scenario", "pool-kill", "--directory", tmp_path, "--region", "eu"]
    done = sendfleet(
        "drill", *arguments, "--rate", "30", "--before", "1", "--after", "3", TMPDIR=str(tmp_path)
    )
    (record,), problems = read_records(tmp_path)
    assert problems == []
    checks = {check.name: check for check in record.checks}
    for name in (
        "nothing lost",
        "duplicates are marked",
        "there was load",
        "the audit accounts for every message",
    ):
        assert checks[name].is_met, (checks[name].text, done.stderr)
    assert done.returncode == (0 if record.is_passed else 1), done.stderr
    figures = record.figures
    assert figures.accepted == figures.delivered > 0
    assert figures.detection_s is not None
    assert figures.share_gap_s is not None
    assert figures.share_gap_s >= figures.gap_s > 0
    assert " of region eu, process " in record.target
    assert [text for _, text in record.marks] == ["pool-kill", "detected"]
    assert figures.duplicated is not None
    assert sum(record.delivered) == figures.accepted + figures.duplicated
    assert 0 < sum(record.delivered_share) < sum(record.delivered)
    (report,) = tmp_path.glob("*.html")
    assert "<svg" in report.read_text()
    (data,) = tmp_path.glob("*.json")
    assert json.loads(data.read_text())["scenario"] == "pool-kill"


@contextmanager
def live_fleet(sink: SinkProcess) -> Iterator[Path]:
    """Its fleet.yaml. In a short directory, because Ray puts sockets below it."""
    directory = Path(tempfile.mkdtemp(prefix="sf-", dir="/tmp"))
    copies = {"fleet": {"name": "drill", "replicas": 1, "degraded": "accept_local"}}
    fleet = directory / "fleet.yaml"
    try:
        fleet.write_text(
            temporary_config(directory, sink.addresses["accept"][1], copies).model_dump_json(
                exclude_unset=True
            )
        )
        assert (up := sendfleet("up", "--fleet", fleet, RAY_TMPDIR=str(directory))).returncode == 0, up.stderr
        yield fleet
    finally:
        sendfleet("down", "--fleet", fleet, RAY_TMPDIR=str(directory))
        shutil.rmtree(directory, ignore_errors=True)


def drill(fleet: Path, scenario: str, region: str) -> DrillRecord:
    history = fleet.parent / "drills" / scenario
    arguments = ["--on-live", "--fleet", fleet, "--yes", "drill", "--scenario", scenario, "--region", region]
    done = sendfleet("drill", *arguments, "--before", "2", "--after", "5", "--directory", history)
    records, problems = read_records(history)
    assert (len(records), problems) == (1, []), done.stderr
    assert f"It hits region {region}, process " in done.stderr
    assert done.returncode == (0 if records[0].is_passed else 1), done.stderr
    return records[0]


def test_a_region_of_a_live_fleet_does_not_hear(tmp_path: Path) -> None:
    with accepting_sink(tmp_path) as sink, live_fleet(sink) as fleet:
        command = [sys.executable, "-m", "tests.support.drill_load", str(fleet)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        ) as load:
            try:
                assert load.stdout is not None
                assert float(load.stdout.readline()) > 0
                deadline = time.monotonic() + PATIENCE_S
                while len({row.client for row in sink.log().acceptances}) < 4:
                    assert time.monotonic() < deadline, "not every source delivers"
                    time.sleep(0.1)
                parted = drill(fleet, "partition-in", "eu")
                accepted, _ = load.communicate("", timeout=PATIENCE_S)
            finally:
                load.kill()
        recipients = set(json.loads(accepted))
        while not recipients <= sink.log().recipients().keys():
            assert time.monotonic() < deadline, "what was accepted has not arrived"
            time.sleep(0.1)
        reports = [audit(fleet.parent / "spool" / region) for region in ("eu", "us")]
    assert [report.problems for report in reports] == [[], []]

    assert parted.target.startswith("region eu, process ")
    assert [text for _, text in parted.marks][:2] == ["partition-in", "detected"]
    figures = parted.figures
    assert (figures.accepted, figures.lost, figures.duplicated, figures.drain_s) == (None,) * 4
    assert figures.detection_s is not None
    assert figures.delivered > 0
    checks = {check.name: check.is_met for check in parted.checks}
    assert (checks["nothing lost"], checks["duplicates are marked"]) == (None, None)
    assert checks["the events of all machines were read to the end"] is True
    assert checks["a region that is called dead sends nothing"] is True
    assert checks["it returns"] is True

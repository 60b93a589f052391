"""Drills on a real temporary fleet: what they find and write. Times are not judged, they are the machine's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.drill.record import read_records

pytestmark = [pytest.mark.ray, pytest.mark.crash]


@pytest.mark.parametrize("scenario", ["pool-kill", "region-kill"])
def test_a_process_is_killed(tmp_path: Path, scenario: str) -> None:
    command = [
        sys.executable,
        "-m",
        "actors",
        "drill",
        "--scenario",
        scenario,
        "--directory",
        str(tmp_path),
    ]
    command += ["--rate", "30", "--before", "1", "--after", "3"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
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
    assert [text for _, text in record.marks] == [scenario, "detected"]
    assert sum(record.delivered) == figures.accepted + figures.duplicated
    assert 0 < sum(record.delivered_share) < sum(record.delivered)
    (report,) = tmp_path.glob("*.html")
    assert "<svg" in report.read_text()
    (data,) = tmp_path.glob("*.json")
    assert json.loads(data.read_text())["scenario"] == scenario

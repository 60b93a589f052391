"""`sendfleet bench` as a user runs it: on a temporary fleet, which leaves nothing behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.ray
MESSAGES = 3000


def test_a_trial_on_a_temporary_fleet_measures_and_leaves_nothing(tmp_path: Path) -> None:
    home = tmp_path / "f"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "RAY_TMPDIR"}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "actors", "bench", "--temporary", "--messages", str(MESSAGES)),
            *("--size", "1000", "--directory", str(home), "--json", str(tmp_path / "figures.json")),
        ],
        capture_output=True,
        text=True,
        timeout=180,
        env=environment | {"SENDFLEET_TRIAL": str(tmp_path)},
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    read = json.loads((tmp_path / "figures.json").read_text())
    assert (read["accepted"], read["delivered"], read["refused"]) == (MESSAGES, MESSAGES, 0)
    assert (read["sink_messages"], read["sink_duplicates"]) == (MESSAGES, 0)
    assert read["receipt"]["count"] == MESSAGES / 200
    assert read["delivery"]["count"] == MESSAGES
    assert {"region:trial", "pool:trial:default.0", "source:trial-1", "fleet", "client"} <= set(
        read["actors"]
    )
    assert all(usage["peak_anonymous_bytes"] > 0 for usage in read["actors"].values())
    assert read["actors"]["region:trial"]["cpu_s"] > 0
    assert list(home.iterdir()) == []
    assert left_over(str(tmp_path)) == []


def left_over(mark: str) -> list[str]:
    """Processes that were started below the command and still live."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SENDFLEET_TRIAL") == mark:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found

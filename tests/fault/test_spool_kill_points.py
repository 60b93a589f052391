"""A spool killed at every durable step, then opened again: tests/support/spool_crash.py says what is compared.

Each mode of tests/support/diskfault.c at each step from the first file made on: killed, killed within a write, and a
power failure that undoes a random part of what was not synced (twice, as what is undone is drawn).
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support import diskfault

SHM = Path("/dev/shm")  # syncs cost nothing there; what they are for is told by the preloaded library
LAST_STEP = 135
LEAST_KILLS = 500


@pytest.mark.crash
def test_every_acknowledged_message_survives_every_kill(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=SHM if SHM.is_dir() else tmp_path) as directory:
        command = [sys.executable, "-m", "tests.support.spool_crash", directory, "KILL,TORN,POWER,POWER", "1"]
        ran = subprocess.run(
            [*command, str(LAST_STEP)],
            env=diskfault.environment(tmp_path),
            capture_output=True,
            text=True,
            timeout=600,
        )
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert result["problems"] == [], ran.stderr
    assert sum(result["kills"].values()) >= LEAST_KILLS
    assert result["messages"] >= LEAST_KILLS

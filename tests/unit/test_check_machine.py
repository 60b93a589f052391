"""tools/check_machine.sh: a machine on which sendfleet cannot be built is told so in one message."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "tools" / "check_machine.sh"


def check(python: str, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", str(SCRIPT), python], capture_output=True, text=True, env={"PATH": path}, timeout=60
    )


def test_a_python_that_is_too_old_is_named_with_its_version(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\ncase "$1" in -V) echo "Python 3.9.2" ;; *) exit 1 ;; esac\n')
    old.chmod(0o755)
    done = check(str(old))
    assert done.returncode == 1
    assert done.stderr.startswith(f"sendfleet needs Python 3.11 or newer; {old} is Python 3.9.2.")
    assert "make PYTHON3=" in done.stderr


def test_what_is_missing_can_be_pasted(tmp_path: Path) -> None:
    done = check("no-such-python", str(tmp_path))
    assert done.returncode == 1
    assert "sudo apt-get install -y" in done.stderr
    assert {"python3", "python3-venv", "python3-dev", "gcc"} <= set(done.stderr.split())


def test_this_machine_will_do() -> None:
    done = check(sys.executable)
    assert done.returncode == 0, done.stderr

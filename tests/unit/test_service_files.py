"""examples/systemd against systemd itself, where it is there, and against what the commands and their deadlines are."""

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from actors import foreground, local_cluster
from actors.command import up

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "examples" / "systemd").glob("*.service"))


def read(path: Path) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str  # type: ignore[assignment]
    unit.read(path)
    return unit


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_them(tmp_path: Path) -> None:
    for unit in UNITS:
        text = unit.read_text()
        assert "/opt/sendfleet/bin/" in text, "as docs/operations.md installs it"
        text = re.sub(r"/opt/sendfleet/bin/\w+", "/bin/true", text)  # what is not there is a fault to systemd
        (tmp_path / unit.name).write_text(re.sub(r"^(User|Group)=.*\n", "", text, flags=re.MULTILINE))
    done = subprocess.run(
        ["systemd-analyze", "verify", *(str(tmp_path / unit.name) for unit in UNITS)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) not in done.stderr


def test_the_service_waits_longer_than_an_orderly_stop_takes() -> None:
    deploy = (ROOT / "actors" / "deploy.py").read_text()  # imports Ray, which reads its settings then

    def seconds(name: str) -> float:
        found = re.search(rf"^{name} = ([\d.]+)", deploy, re.MULTILINE)
        assert found is not None
        return float(found[1])

    service = read(ROOT / "examples" / "systemd" / "sendfleet.service")["Service"]
    stop_s = (
        foreground.LOOK_S
        + seconds("CONNECT_TIMEOUT_S")
        + 2 * seconds("STOP_DEADLINE_S")  # gateways, regions
        + seconds("ENDING_S")
        + local_cluster.STOP_GRACE_S
        + 2 * local_cluster.WORKER_GRACE_S
    )
    assert float(service["TimeoutStopSec"]) > stop_s
    assert (
        float(service["TimeoutStartSec"]) > seconds("START_DEADLINE_S") + local_cluster.NODE_START_TIMEOUT_S
    )
    assert service["KillMode"] == "mixed", "the regions must not get the signal that the command gets"
    assert service["Type"] == "notify"
    assert service["Restart"] == "always"


def test_the_service_runs_a_command_that_there_is() -> None:
    command = read(ROOT / "examples" / "systemd" / "sendfleet.service")["Service"]["ExecStart"].split()
    assert command[:2] == ["/opt/sendfleet/bin/sendfleet", "up"]
    up.make_context("up", command[2:])  # a usage error otherwise

"""Commands work in any directory, also where somebody has folders with the names of our packages."""

import subprocess
from pathlib import Path

import pytest

from engine.ops.own_module import own_module
from engine.sink.process import SinkProcess
from tests.support.sinks import accepting_sink


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("engine", "actors", "native"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('not ours')\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("module", ["actors", "actors.local_node", "engine.sink"])
def test_a_module_is_ours(elsewhere: Path, module: str) -> None:
    done = subprocess.run([*own_module(module), "--help"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_sink_starts_there(elsewhere: Path) -> None:
    process: SinkProcess
    with accepting_sink(elsewhere) as process:
        assert process.addresses["accept"][1] > 0

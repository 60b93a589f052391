"""`sendfleet bounces new-key | add-key | use-key | drop-key`."""

from pathlib import Path

from engine.bounces.key_files import read_keys
from tests.unit.cli.support import invoke


def test_the_keys_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert invoke("bounces", "new-key", str(path)).exit_code == 0
    (first,) = read_keys(path)
    again = invoke("bounces", "new-key", str(path))
    assert (again.exit_code, "never replaced" in again.stderr) == (1, True)
    alone = invoke("bounces", "use-key", str(path))
    assert (alone.exit_code, "one key only" in alone.stderr) == (1, True)
    assert invoke("bounces", "add-key", str(path)).exit_code == 0
    assert read_keys(path)[0] == first
    assert invoke("bounces", "use-key", str(path)).exit_code == 0
    second, last = read_keys(path)
    assert last == first
    assert invoke("bounces", "drop-key", str(path)).exit_code == 0
    assert read_keys(path) == (second,)
    for command in ("drop-key", "add-key"):
        result = invoke("bounces", command, str(path if command == "drop-key" else tmp_path / "missing"))
        assert (result.exit_code, "token key" in result.stderr) == (1, True)
        assert "Traceback" not in result.output

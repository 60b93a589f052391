"""The command as a whole."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from engine.cli import sink as sink_module
from engine.cli.main import build_cli
from tests.unit.cli.support import MemoryFleet, invoke


def test_every_command_has_help_and_no_fleet_is_asked_for_it() -> None:
    def no_fleet(path: Path) -> MemoryFleet:
        raise AssertionError("asked for the fleet")

    cli = build_cli(no_fleet)
    looking = {"alerts", "audit", "doctor", "events", "status", "top", "trace"}
    groups = {"bounces", "config", "shaping", "suppression", "tenants", "warmup"}
    changing = {"send", "drain", "undrain", "forget-copies"}
    assert set(cli.commands) == {"simulate", "sink", *changing, *looking, *groups}
    for name in cli.commands:
        result = CliRunner().invoke(cli, [name, "--help"])
        assert result.exit_code == 0
        assert name in result.output
    assert CliRunner().invoke(cli, ["--version"]).output.startswith("sendfleet")


def test_commands_can_be_added_and_their_errors_are_shown_alike() -> None:
    @click.command()
    def up() -> None:
        raise ConnectionError("no node")

    cli = build_cli(lambda path: MemoryFleet())
    cli.add_command(up)
    result = CliRunner().invoke(cli, ["up"])
    assert (result.exit_code, result.stderr) == (1, "error: no node\n")


def test_a_bug_keeps_its_traceback() -> None:
    @click.command()
    def broken() -> None:
        raise AssertionError("a bug")

    cli = build_cli(lambda path: MemoryFleet())
    cli.add_command(broken)
    assert isinstance(CliRunner().invoke(cli, ["broken"]).exception, AssertionError)


def test_sink_hands_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, object] = {}

    def fake_run(config_path: Path | None, **options: object) -> None:
        seen.update(options, config_path=config_path)

    monkeypatch.setattr(sink_module, "run", fake_run)
    assert invoke("sink", "--log", tmp_path / "x", "--only", "accept=2599", "--only", "google").exit_code == 0
    assert seen["ports"] == {"accept": 2599, "google": 0}
    assert seen["only"] == ("accept", "google")
    assert seen["log_path"] == tmp_path / "x"
    assert invoke("sink", "--only", "accept=x").exit_code == 2
    assert invoke("sink", "--only", "accept=99999").exit_code == 2

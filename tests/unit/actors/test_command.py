"""What `up`, `down` and the commands that need a fleet say to somebody who has none. No Ray is started."""

import json
import os
import sys
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from actors import command
from engine.config.load import load_fleet
from engine.ops.free_port import free_port
from tests.support.fleets import fleet_data


@pytest.fixture
def fleet_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(
        os, "environ", dict(os.environ)
    )  # what is prepared for a fleet is not for the next test
    path = tmp_path / "fleet.yaml"
    path.write_text(yaml.safe_dump({**fleet_data(), "spool": {"directory": str(tmp_path / "spool")}}))
    return path


def test_no_fleet_runs_here(fleet_path: Path) -> None:
    with pytest.raises(click.ClickException, match=r"no fleet runs here for .*: start it with `sendfleet up"):
        command.connect_port(fleet_path)
    result = CliRunner().invoke(command.down, ["--fleet", str(fleet_path)])
    assert result.exit_code == 1
    assert "no fleet runs here" in result.output


def test_a_fleet_whose_processes_are_dead_does_not_run(fleet_path: Path) -> None:
    run = fleet_path.parent / "run"
    run.mkdir()
    state = {"address": "127.0.0.1:20001", "boot": "another", "nodes": {"eu": [1, 1]}}
    (run / "cluster.json").write_text(json.dumps(state))
    with pytest.raises(click.ClickException, match="no fleet runs here"):
        command.connect_port(fleet_path)


def test_ray_is_not_installed(fleet_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name in ("actors.deploy", "actors.client", "ray")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    for arguments in (["--fleet", str(fleet_path)], ["--foreground", "--fleet", str(fleet_path)]):
        result = CliRunner().invoke(command.up, arguments)
        assert result.exit_code == 1, result.output
        assert f"the Python package ray is not installed in {sys.prefix}" in result.output


def test_nobody_answers_at_the_address_of_the_cluster(fleet_path: Path) -> None:
    text = fleet_path.read_text() + f"ray: {{address: '127.0.0.1:{free_port()}'}}\n"
    fleet_path.write_text(text)
    result = CliRunner().invoke(command.up, ["--fleet", str(fleet_path)])
    assert isinstance(result.exception, ConnectionError)  # which the group of commands shows as one line
    assert "no head of a Ray cluster answers at 127.0.0.1:" in str(result.exception)
    result = CliRunner().invoke(command.up, ["--foreground", "--fleet", str(fleet_path)])
    assert result.exit_code == 2
    assert "--foreground is for a fleet of one machine" in result.output


def test_what_a_fleet_cannot_be_started_without(fleet_path: Path) -> None:
    names = [region.name for region in load_fleet(fleet_path).regions]

    def said(*missing: str) -> str:
        arguments = [part for name in missing for part in ("--without", name)]
        result = CliRunner().invoke(command.up, ["--fleet", str(fleet_path), *arguments])
        assert result.exit_code == 2, result.output
        return " ".join(result.output.split())

    assert "--without is for a fleet on a cluster" in said(names[0])
    text = fleet_path.read_text() + f"ray: {{address: '127.0.0.1:{free_port()}'}}\n"
    fleet_path.write_text(text)
    assert f"--without ap: allowed are {', '.join(names)}" in said("ap")
    assert "allowed is to leave out some of the regions, not all" in said(*names)


@pytest.mark.parametrize("address", ["10.0.0.1", "10.0.0.1:0", "head:", "[::1]", "auto"])
def test_an_address_of_a_cluster_has_a_port(fleet_path: Path, address: str) -> None:
    fleet_path.write_text(fleet_path.read_text() + f"ray: {{address: '{address}'}}\n")
    result = CliRunner().invoke(command.up, ["--fleet", str(fleet_path)])
    assert result.exit_code == 1
    assert "ray.address" in result.output
    assert "allowed is" in result.output

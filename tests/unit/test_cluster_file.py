"""cluster.yaml against Ray's own schema and against the example fleet."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from actors.environment import SETTINGS
from engine.config.load import load_fleet

RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"
ROOT = Path(__file__).parents[2]
CLUSTER: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())


def schema() -> Any:
    """Ray's schema, found without importing Ray."""
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    return json.loads((Path(spec.origin).parent / "autoscaler" / "ray-schema.json").read_text())


def test_ray_accepts_the_file() -> None:
    jsonschema.validate(CLUSTER, schema())


LAUNCHER = """
import sys, yaml
from ray.autoscaler._private.util import prepare_config, validate_config
config = prepare_config(yaml.safe_load(sys.stdin))
validate_config(config)
print(sorted(config["available_node_types"]))
"""


@pytest.mark.parametrize(("change", "status"), [({}, 0), ({"nonsense": 1}, 1), ({"head_node_type": "x"}, 1)])
def test_ray_up_takes_it_as_it_is(change: dict[str, Any], status: int) -> None:
    """With the launcher's own code: defaults are filled in, then it is validated."""
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER],
        input=yaml.safe_dump({**CLUSTER, **change}),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == status, done.stderr
    if not status:
        assert "['head', 'region-eu', 'region-us']" in done.stdout


def test_nodes_are_started_with_the_token() -> None:
    token = "RAY_AUTH_TOKEN_PATH=/srv/sendfleet/run/ray-token"
    for kind in ("head", "worker"):
        (start,) = [c for c in CLUSTER[f"{kind}_start_ray_commands"] if "ray start" in c]
        assert f"RAY_AUTH_MODE=token {token}" in start
    assert any("/srv/sendfleet/run/ray-token" in command for command in CLUSTER["setup_commands"])
    assert "ray-token" in CLUSTER["file_mounts"].values()


def test_the_head_can_return_to_its_nodes() -> None:
    outlive = f"{RECONNECT}={SETTINGS[RECONNECT]}"
    for kind in ("head", "worker"):
        (start,) = [c for c in CLUSTER[f"{kind}_start_ray_commands"] if "ray start" in c]
        assert outlive in start
        assert ("RAY_gcs_storage=rocksdb RAY_gcs_storage_path=/srv/sendfleet/run/head" in start) == (
            kind == "head"
        )
    unit = (ROOT / "examples" / "systemd" / "sendfleet-head.service").read_text()
    assert "Environment=RAY_gcs_storage=rocksdb RAY_gcs_storage_path=/srv/sendfleet/run/head\n" in unit
    assert f"    {outlive}\n" in (ROOT / "docs" / "operations.md").read_text()


def test_one_node_type_per_region_carries_its_resource() -> None:
    types = CLUSTER["available_node_types"]
    for region in load_fleet(ROOT / "examples" / "fleet.yaml").regions:
        carriers = [name for name, kind in types.items() if f"region:{region.name}" in kind["resources"]]
        assert carriers == [f"region-{region.name}"]
        assert types[carriers[0]]["min_workers"] == 1
    assert CLUSTER["head_node_type"] in types
    assert CLUSTER["max_workers"] >= sum(kind["min_workers"] for kind in types.values())
    assert CLUSTER["provider"]["type"] != "local", "Ray's local provider refuses available_node_types"

"""cluster.yaml against Ray's own schema and against the example fleet."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from engine.config.load import load_fleet

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


def test_one_node_type_per_region_carries_its_resource() -> None:
    types = CLUSTER["available_node_types"]
    for region in load_fleet(ROOT / "examples" / "fleet.yaml").regions:
        carriers = [name for name, kind in types.items() if f"region:{region.name}" in kind["resources"]]
        assert carriers == [f"region-{region.name}"]
        assert types[carriers[0]]["min_workers"] == 1
    assert CLUSTER["head_node_type"] in types
    assert CLUSTER["max_workers"] >= sum(kind["min_workers"] for kind in types.values())
    assert CLUSTER["provider"]["type"] != "local", "Ray's local provider refuses available_node_types"

"""Which nodes a fleet can start on."""

from typing import Any

import pytest

from actors.placing import describe, find_faults, placement, without_node
from engine.config.load import parse_fleet
from tests.support.fleets import shards_data

CONFIG = parse_fleet(shards_data())


def node(address: str, *resources: str) -> dict[str, Any]:
    return {
        "NodeManagerAddress": address,
        "Resources": {"CPU": 4.0, f"node:{address}": 1.0} | dict.fromkeys(resources, 1.0),
    }


NODES = [
    node("10.0.0.1"),
    node("10.0.0.11", "region:eu", "shard:eu-1"),
    node("10.0.0.12", "region:eu", "shard:eu-2"),
    node("10.0.0.21", "region:us"),
]


def test_a_shards_node_carries_its_region_and_itself() -> None:
    assert [placement(region) for region in CONFIG.regions] == [
        ("region:eu", "shard:eu-1"),
        ("region:eu", "shard:eu-2"),
        ("region:us",),
    ]
    assert find_faults(CONFIG, NODES) == []


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        (NODES[:3], "no node carries region:us: on the machine of region us: ray start"),
        (
            [*NODES[:2], node("10.0.0.12", "region:eu"), NODES[3]],
            "no node carries region:eu and shard:eu-2: on the machine of shard eu-2: "
            """ray start --address=HEAD --resources='{"region:eu": 1, "shard:eu-2": 1}'""",
        ),
        (
            [*NODES[:2], node("10.0.0.12", "region:us", "shard:eu-2"), NODES[3]],
            "no node carries region:eu and",
        ),
        (
            [*NODES, node("10.0.0.13", "region:eu", "shard:eu-2")],
            "2 nodes carry region:eu and shard:eu-2, 10.0.0.12 and 10.0.0.13: only one has the spool of shard eu-2",
        ),
        ([*NODES, node("10.0.0.22", "region:us")], "only one has the spool of region us"),
        (
            [NODES[0], node("10.0.0.11", "region:eu", "shard:eu-1", "shard:eu-2"), NODES[3]],
            "10.0.0.11 carries the shards eu-1 and eu-2: each needs a machine of its own",
        ),
        (
            [NODES[0], NODES[1], node("10.0.0.11", "region:eu", "shard:eu-2"), NODES[3]],
            "10.0.0.11 carries the shards eu-1 and eu-2",
        ),
        (
            [node("mta", "region:eu", "shard:eu-1"), node("mta", "region:eu", "shard:eu-2"), NODES[3]],
            "mta carries the shards eu-1 and eu-2",
        ),
    ],
)
def test_what_is_wrong_with_the_nodes_is_said(nodes: list[dict[str, Any]], said: str) -> None:
    assert any(said in fault for fault in find_faults(CONFIG, nodes)), find_faults(CONFIG, nodes)


def test_a_region_whose_machine_is_away_is_not_missed_if_that_is_said() -> None:
    assert find_faults(CONFIG, NODES[:3], missing=["us"]) == []
    assert find_faults(CONFIG, [NODES[0], *NODES[2:]], missing=["eu-1"]) == []
    on_a_cluster = parse_fleet({**shards_data(), "ray": {"address": "10.0.0.1:6379"}})
    (fault,) = find_faults(on_a_cluster, NODES[:3])
    assert fault.endswith("(or, if that machine is lost for long: `sendfleet up --without us`)")
    (fault,) = find_faults(CONFIG, NODES, missing=["us"])
    assert fault == (
        "--without us: 10.0.0.21 carries region:us: stop that node, or start the fleet with region us"
    )


def test_who_has_no_node_is_known() -> None:
    assert without_node(CONFIG, NODES) == []
    assert without_node(CONFIG, NODES[:2]) == ["eu-2", "us"]


def test_one_machine_may_carry_a_whole_fleet_for_a_trial() -> None:
    nodes = [node("127.0.0.1", *placement(region)) for region in CONFIG.regions]
    assert find_faults(CONFIG, nodes) == []


def test_what_is_there_is_told() -> None:
    assert describe(NODES[3:]) == "10.0.0.21 has CPU, region:us"
    assert describe([]) == "none"

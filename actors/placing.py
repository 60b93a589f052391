"""Which node of the Ray cluster is whose: the custom resources that it must carry, and what is wrong with those there.

A region's actors find the disk with its spool again by that resource, so exactly one node may carry it. Does not import
Ray.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from engine.config.schema import FleetConfig, RegionConfig


def placement(region: RegionConfig) -> tuple[str, ...]:
    """The custom resources that the node of a region, or of a shard of one, carries."""
    if region.shard_of is None:
        return (f"region:{region.name}",)
    return (f"region:{region.shard_of}", f"shard:{region.name}")


def find_faults(
    config: FleetConfig, nodes: Sequence[Mapping[str, Any]], *, missing: Collection[str] = ()
) -> list[str]:
    """Why a fleet cannot start on these nodes, which live (entries of `ray.nodes()`); none if it can.

    `missing`: regions that are to have none.
    """
    faults = []
    shards_at: dict[str, list[str]] = {}
    for region in config.regions:
        wanted = placement(region)
        own = [node for node in nodes if set(wanted) <= set(node["Resources"])]
        kind = "region" if region.shard_of is None else "shard"
        if region.name in missing:
            if own:
                faults.append(
                    f"--without {region.name}: {own[0]['NodeManagerAddress']} carries {' and '.join(wanted)}: stop "
                    f"that node, or start the fleet with {kind} {region.name}"
                )
            continue
        if not own:
            start = f"ray start --address=HEAD --resources='{json.dumps(dict.fromkeys(wanted, 1))}'"
            fault = f"no node carries {' and '.join(wanted)}: on the machine of {kind} {region.name}: {start}"
            if config.ray.address is not None:
                fault += f" (or, if that machine is lost for long: `sendfleet up --without {region.name}`)"
            faults.append(fault)
        if len(own) > 1:
            addresses = " and ".join(sorted(node["NodeManagerAddress"] for node in own))
            faults.append(
                f"{len(own)} nodes carry {' and '.join(wanted)}, {addresses}: only one has the spool of "
                f"{kind} {region.name}"
            )
        if region.shard_of is not None:
            for node in own:
                shards_at.setdefault(node["NodeManagerAddress"], []).append(region.name)
    for address, shards in sorted(shards_at.items()):
        if len(shards) > 1 and not _is_loopback(address):
            faults.append(
                f"{address} carries the shards {' and '.join(shards)}: each needs a machine of its own, or they fail "
                "together"
            )
    return faults


def without_node(config: FleetConfig, nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Regions that have no node among these, which live."""
    return [
        region.name
        for region in config.regions
        if not any(set(placement(region)) <= set(node["Resources"]) for node in nodes)
    ]


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:  # a host name
        return False


def describe(nodes: Sequence[Mapping[str, Any]]) -> str:
    """The nodes that are there, with what they carry, for an error message."""
    return (
        "; ".join(
            f"{node['NodeManagerAddress']} has "
            + ", ".join(sorted(name for name in node["Resources"] if not name.startswith("node:")))
            for node in nodes
        )
        or "none"
    )

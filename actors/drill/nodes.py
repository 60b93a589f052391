"""The machines of a fleet on a cluster: an actor of the drill on each region's node and on the head's."""

from collections.abc import Sequence
from typing import Any

import ray

from actors.deploy import HEAD, RESOURCE_SHARE, live_nodes
from actors.drill.machine import DrillMachine
from actors.drill.machines import Machine, Machines
from actors.placing import placement, without_node
from actors.ray_calls import call
from engine.config.schema import FleetConfig

CALLS_AT_ONCE = 4


class OnNode:
    """An actor on the node that carries these resources; it ends with this command. See machines.Calls."""

    def __init__(
        self, config_json: str, regions: Sequence[str], resources: Sequence[str], address: str
    ) -> None:
        self.where = f" on {address}"
        self._handle: Any = (
            ray.remote(DrillMachine)
            .options(
                num_cpus=0,
                max_concurrency=CALLS_AT_ONCE,
                resources=dict.fromkeys(resources, RESOURCE_SHARE),
            )
            .remote(config_json, tuple(regions))
        )

    async def call(self, method: str, *args: Any, timeout_s: float) -> Any:
        return await call(self._handle, method, *args, timeout_s=timeout_s)


def machines_on_nodes(config: FleetConfig) -> Machines:
    """ConnectionError: Ray's head does not say which nodes live."""
    config_json = config.model_dump_json()
    nodes = live_nodes()
    away = without_node(config, nodes)

    def on(resources: Sequence[str], regions: Sequence[str]) -> Machine:
        node = next(node for node in nodes if set(resources) <= set(node["Resources"]))
        return Machine(OnNode(config_json, regions, resources, node["NodeManagerAddress"]))

    of_regions = {
        region.name: on(placement(region), [region.name])
        for region in config.regions
        if region.name not in away
    }
    return Machines(of_regions, on((HEAD,), []))

"""The machines of a fleet on a cluster: an actor of the drill on each region's node and on the head's."""

from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.deploy import HEAD, live_nodes
from actors.drill.machine import DrillMachine
from actors.drill.machines import ANOTHER, Machine, Machines
from actors.names import NAMESPACE
from actors.placing import placement, without_node
from actors.ray_calls import call
from engine.config.schema import FleetConfig
from engine.drill.scenarios import DrillRefused

CALLS_AT_ONCE = 4
DRILL = "drill"  # the actor on the head's node: one drill at a time


class OnNode:
    """An actor on a node (an entry of `ray.nodes()`); it ends with this command. See machines.Calls.

    `name`: of which there is one in the fleet. DrillRefused: there is one already.
    """

    def __init__(
        self, config_json: str, regions: Sequence[str], node: Mapping[str, Any], name: str | None = None
    ) -> None:
        self.where = f" on {node['NodeManagerAddress']}"
        options = {
            "num_cpus": 0,
            "max_concurrency": CALLS_AT_ONCE,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            "namespace": NAMESPACE,
            "name": name,
        }
        try:
            self._handle: Any = (
                ray.remote(DrillMachine).options(**options).remote(config_json, tuple(regions))
            )
        except ValueError as error:
            if name is None:
                raise
            raise DrillRefused(ANOTHER) from error

    async def call(self, method: str, *args: Any, timeout_s: float) -> Any:
        try:
            return await call(self._handle, method, *args, timeout_s=timeout_s)
        except (ConnectionError, TimeoutError) as error:
            raise type(error)(f"the drill{self.where}: {error}") from error


def machines_on_nodes(config: FleetConfig) -> Machines:
    """ConnectionError: Ray's head does not say which nodes live. DrillRefused: another drill runs."""
    config_json = config.model_dump_json()
    nodes = live_nodes()

    def of(resources: Sequence[str]) -> Mapping[str, Any]:
        return next(node for node in nodes if set(resources) <= set(node["Resources"]))

    of_fleet = Machine(OnNode(config_json, [], of((HEAD,)), DRILL))
    away = without_node(config, nodes)
    of_regions = {
        region.name: Machine(OnNode(config_json, [region.name], of(placement(region))))
        for region in config.regions
        if region.name not in away
    }
    return Machines(of_regions, of_fleet)

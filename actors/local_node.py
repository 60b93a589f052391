"""`ray start` with every port on loopback, for actors/local_cluster.py: `python -m actors.local_node start ...`.

Ray replaces a node address of 127.0.0.1 by the machine's own and then listens on all interfaces, for whoever comes.
Only where it takes clusters for unsupported (its setting for desktop systems, which actors/environment.py makes) it
stays on loopback, but there it refuses a second node. Here the second node is allowed again.
"""

import os

from ray._private import ray_constants, services
from ray._private.node import Node
from ray.scripts.scripts import main

from actors.environment import HEAD_STORAGE
from actors.head_keeper import HeadKeeper
from actors.names import LOOPBACK


def _own_address(address: str | None = None) -> str:
    return LOOPBACK


if __name__ == "__main__":
    ray_constants.ENABLE_RAY_CLUSTER = True  # of this process; those that it starts have the environment's
    services.get_node_ip_address = _own_address
    if HEAD_STORAGE.items() <= os.environ.items():
        keeper = HeadKeeper(Node.dead_processes)
        setattr(Node, "dead_processes", lambda node: keeper.look(node))  # noqa: B010 - mypy refuses to assign a method
    main()  # type: ignore[no-untyped-call]

"""`ray start` with every port on loopback, for actors/local_cluster.py: `python -m actors.local_node start ...`.

Ray replaces a node address of 127.0.0.1 by the machine's own and then listens on all interfaces, for whoever comes.
Only where it takes clusters for unsupported (its setting for desktop systems, which actors/environment.py makes) it
stays on loopback, but there it refuses a second node. Here the second node is allowed again.
"""

from ray._private import ray_constants, services
from ray.scripts.scripts import main

from actors.names import LOOPBACK


def _own_address(address: str | None = None) -> str:
    return LOOPBACK


if __name__ == "__main__":
    ray_constants.ENABLE_RAY_CLUSTER = True  # of this process; those that it starts have the environment's
    services.get_node_ip_address = _own_address
    main()  # type: ignore[no-untyped-call]

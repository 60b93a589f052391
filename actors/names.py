"""Names of the actors in Ray, all in one namespace."""

NAMESPACE = "sendfleet"
FLEET = "fleet"
POOLS = "pool:"  # what the names of their processes begin with
LOOPBACK = "127.0.0.1"  # Ray binds to nothing else only if a node has exactly this address


def region_actor(region: str) -> str:
    return f"region:{region}"


def gateway_actor(region: str) -> str:
    return f"gateway:{region}"


def source_actor(source: str) -> str:
    return f"source:{source}"


def pool_actor(region: str, number: int) -> str:
    """A process of pools; which pool it is, it says itself (actors/pool_processes.py)."""
    return f"{POOLS}{region}:{number}"


def parse_pool(actor_name: str, region: str) -> int | None:
    """The number in such a name, or None if it is not of this region."""
    prefix, _, number = actor_name.rpartition(":")
    return int(number) if f"{prefix}:" == f"{POOLS}{region}:" else None

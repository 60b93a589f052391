"""Names of the actors in Ray, all in one namespace."""

from engine.region.ports import PoolName

NAMESPACE = "sendfleet"
FLEET = "fleet"
LOOPBACK = "127.0.0.1"  # Ray binds to nothing else only if a node has exactly this address


def region_actor(region: str) -> str:
    return f"region:{region}"


def gateway_actor(region: str) -> str:
    return f"gateway:{region}"


def source_actor(source: str) -> str:
    return f"source:{source}"


def pool_actor(region: str, name: PoolName) -> str:
    return f"pool:{region}:{name}"


def parse_pool(actor_name: str, region: str) -> PoolName | None:
    """The pool that an actor name stands for, or None if it is not a pool of this region."""
    prefix = f"pool:{region}:"
    if not actor_name.startswith(prefix):
        return None
    provider, _, shard = actor_name[len(prefix) :].rpartition(".")
    return PoolName(provider, int(shard))

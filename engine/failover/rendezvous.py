"""Rendezvous hashing: every process ranks the regions for a key in the same order, without a table.

A region that goes or comes moves only the keys that it ranked first for. Client, owner and standby use the same rank:
the client's second choice for a batch is the region that holds its copy.
"""

import hashlib
import math
from collections.abc import Container, Iterable, Mapping


def rank(key: bytes, regions: Iterable[str], weights: Mapping[str, int] | None = None) -> list[str]:
    """The regions in the order of preference for this key.

    `weights`: of all keys each region is preferred for a share in proportion to its weight, 100 if it is not named;
    those of weight 0 are last. Whatever the weights, a key moves only from a region that got less or to one that got
    more.
    """
    if not weights:
        return sorted(regions, key=lambda name: _hash(key, name))

    def distance(name: str) -> tuple[float, bytes]:
        digest = _hash(key, name)
        weight = weights.get(name, 100)
        # -log of an even random number, divided by the weight: the least of them falls on each in proportion
        return (
            -math.log1p(-(int.from_bytes(digest, "big") / 2**64)) / weight if weight else math.inf
        ), digest

    return sorted(regions, key=distance)


def _hash(key: bytes, name: str) -> bytes:
    return hashlib.blake2b(key + name.encode(), digest_size=8).digest()


def keep_together(
    order: Iterable[str], region_of: Mapping[str, str], first: Container[str] = ()
) -> list[str]:
    """That order, but those in `first` at the beginning, and the shards of one region behind each other.

    So what one of them does not take goes to its siblings, and only then to other regions.
    """
    names = sorted(order, key=lambda name: name not in first)
    places: dict[str, int] = {}
    for name in names:
        places.setdefault(region_of[name], len(places))
    return sorted(names, key=lambda name: places[region_of[name]])

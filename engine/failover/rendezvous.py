"""Rendezvous hashing: every process ranks the regions for a key in the same order, without a table.

A region that goes or comes moves only the keys that it ranked first for. Client, owner and standby use the same rank:
the client's second choice for a batch is the region that holds its copy.
"""

import hashlib
from collections.abc import Iterable


def rank(key: bytes, regions: Iterable[str]) -> list[str]:
    """The regions in the order of preference for this key."""
    return sorted(regions, key=lambda name: hashlib.blake2b(key + name.encode(), digest_size=8).digest())

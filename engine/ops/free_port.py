"""A port for a server of one's own, which will be named to others before the server listens on it.

The kernel takes ports for outgoing connections, and for servers that leave the choice to it, from its ephemeral range
(ip(7), ip_local_port_range). A port asked of the kernel and given back at once is therefore soon another's on a busy
machine; one outside of that range is not. Ray's workers take theirs from 10002 to 19999.
"""

import random
import socket
from contextlib import suppress
from pathlib import Path

FIRST = 20_000
LAST = 32_767
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port(address: str = "127.0.0.1") -> int:
    """A port that is free there now for TCP and UDP, outside of the ephemeral range where that leaves room."""
    low, high = map(int, _RANGE.read_text().split())
    ports = [port for port in range(FIRST, LAST + 1) if not low <= port <= high]
    for port in random.SystemRandom().sample(ports, len(ports)):
        if _is_free(address, port):
            return port
    while True:
        with socket.socket() as probe:
            probe.bind((address, 0))
            port = int(probe.getsockname()[1])
        if _is_free(address, port):
            return port


def _is_free(address: str, port: int) -> bool:
    with suppress(OSError):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with socket.socket(socket.AF_INET, kind) as probe:
                probe.bind((address, port))
        return True
    return False

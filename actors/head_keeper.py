"""Starts the process of Ray's head (GCS) again when it has ended, for actors/local_node.py. Does not import Ray.

`ray start --block` ends the whole node if one of its processes dies. The head's state is on disk
(actors/local_cluster.py), and regions, pools and sources go on while it is away, so it alone is started again (ADR
0031). One that does not stay up ends the node as before.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

GCS = "gcs_server"  # as Ray's Node calls it
MOST_STARTS, WITHIN_S = 5, 60.0


class HeadKeeper:
    """Stands in for `Node.dead_processes` of Ray, which is `dead_processes`."""

    def __init__(
        self,
        dead_processes: Callable[[Any], list[tuple[str, Any]]],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._dead_processes = dead_processes
        self._now_s = now_s
        self._starts: deque[float] = deque(maxlen=MOST_STARTS)

    def look(self, node: Any) -> list[tuple[str, Any]]:
        """Kinds and processes of the node that are dead, without a head that was started again just now."""
        dead = self._dead_processes(node)
        if all(kind != GCS for kind, _ in dead):
            return dead
        now_s = self._now_s()
        if len(self._starts) == MOST_STARTS and now_s - self._starts[0] < WITHIN_S:
            log.critical("the head of Ray has ended %d times within %.0f s", MOST_STARTS + 1, WITHIN_S)
            return dead
        self._starts.append(now_s)
        log.warning("the head of Ray has ended, it is started again")
        del node.all_processes[GCS]
        node._gcs_address = node._gcs_client = None  # as Node.kill_gcs_server does
        node.start_gcs_server()
        return [(kind, process) for kind, process in dead if kind != GCS]

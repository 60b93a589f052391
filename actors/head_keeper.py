"""Starts the process of Ray's head (GCS) again when it has ended, for actors/local_node.py. Does not import Ray.

`ray start --block` ends the whole node if one of its processes dies, and a region with it. Mail does not need the head,
whose state is on disk (actors/local_cluster.py), so it alone is started again (ADR 0031): at once; one that does not
stay up (a full disk, say) after pauses that grow to half a minute, for as long as it takes.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

GCS = "gcs_server"  # as Ray's Node calls it
STABLE_S = 60.0  # one that lived for so long is started again at once
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0


class HeadKeeper:
    """Stands in for `Node.dead_processes` of Ray, which is `dead_processes`."""

    def __init__(
        self,
        dead_processes: Callable[[Any], list[tuple[str, Any]]],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._dead_processes = dead_processes
        self._now_s = now_s
        self._started_s = float("-inf")
        self._pause_s = 0.0
        self._again_s: float | None = None  # None: it runs, as far as is known

    def look(self, node: Any) -> list[tuple[str, Any]]:
        """Kinds and processes of the node that are dead, without the head; that is started again, if it is time."""
        dead = self._dead_processes(node)
        for _, process in (entry for entry in dead if entry[0] == GCS):
            del node.all_processes[GCS]
            node._gcs_address = node._gcs_client = None  # as Node.kill_gcs_server does
            self._ended(getattr(process, "returncode", None))
        if self._again_s is not None and self._now_s() >= self._again_s:
            self._start(node)
        return [entry for entry in dead if entry[0] != GCS]

    def _ended(self, status: int | None) -> None:
        now_s = self._now_s()
        if now_s - self._started_s >= STABLE_S:
            self._pause_s = 0.0
        else:
            self._pause_s = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, 2 * self._pause_s))
        self._again_s = now_s + self._pause_s
        log.warning("the head of Ray has ended (status %s), started again in %.0f s", status, self._pause_s)

    def _start(self, node: Any) -> None:
        self._started_s = self._now_s()
        try:
            node.start_gcs_server()
            self._again_s = None
        except OSError as error:
            log.error("the head of Ray does not start: %s", error)
            self._ended(None)

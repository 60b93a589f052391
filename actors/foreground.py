"""`sendfleet up --foreground`: a fleet of this machine that stays with its command, for systemd and for containers.

SIGTERM and SIGINT stop it as `down` does: in order, everything unsent on disk. If a Ray node ends, the rest is ended
and the command fails, so that whoever supervises it starts all of it again; the regions go on from their spools.
"""

import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from actors.local_cluster import LocalCluster
from engine.config.schema import FleetConfig

LOOK_S = 1.0
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run_in_foreground(config: FleetConfig, deploy: Any, say: Callable[[str], None]) -> None:
    """Returns when the fleet was stopped in order. ConnectionError: it does not start, or a Ray node has ended.

    `deploy` is the module of that name, which imports Ray.
    """
    cluster = LocalCluster(config)
    stop = threading.Event()

    def ask_to_stop(number: int, frame: FrameType | None) -> None:
        stop.set()

    def refuse_to_start(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    _handle(refuse_to_start)
    try:
        deploy.start_fleet(config, cluster.start(), cluster.check_nodes)
        deploy.leave_ray()  # whose library would end this process with the cluster
        _handle(ask_to_stop)  # after Ray, which puts its own there
        notify("READY=1")
        say(f"logs: {cluster.logs()}")
        say(f"fleet {config.fleet.name} is up; SIGTERM stops it")
        while not stop.wait(LOOK_S):
            cluster.check_nodes()
        notify("STOPPING=1")
        deploy.connect_ray(cluster.address())
        _handle(ask_to_stop)  # again: what follows has its own deadlines, a second signal does not help
        deploy.stop_fleet(config)
        say(f"fleet {config.fleet.name} is down")
    finally:
        deploy.leave_ray()
        cluster.stop()


def _handle(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, handler)


def notify(state: str) -> None:
    """Tell systemd (sd_notify(3)), if it has started this process as a service of Type=notify."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        sender.sendall(state.encode())

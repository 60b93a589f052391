"""A fleet that lives as long as a `with` block, on this machine, in a directory of its own that is removed afterwards.

For trials and benches. If its process is killed, actors/undertaker.py ends and removes all of it. Ray's session files
are kept in that directory too, so nothing of it is left elsewhere, and no other Ray on this machine is met. Ray and
what imports it are loaded only after the environment is prepared; so there can be one such fleet in the life of a
process.
"""

import importlib
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from actors.environment import prepare
from actors.local_cluster import LocalCluster
from actors.undertaker import Undertaker
from engine.config.load import parse_fleet
from engine.config.schema import FleetConfig
from engine.config.types import split_host
from engine.sink.process import SinkProcess
from engine.trial.destinations import is_loopback
from engine.trial.load import USER

PREFIX = "sf-"  # short: Ray puts sockets below it, whose paths have at most 107 bytes
LONGEST_PARENT = 30
SOURCES = 4


class TemporaryFleet:
    """A context manager. `client` is an AsyncClient, `config` what `build` made of the directory."""

    def __init__(self, build: Callable[[Path], FleetConfig], *, parent: Path | None = None) -> None:
        self._build = build
        self._parent = parent
        self._stack = ExitStack()
        self.directory = Path()
        self.ray_directory = Path()
        self.config: Any = None
        self.client: Any = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            undertaker = stack.enter_context(Undertaker())
            self.directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self._parent))
            undertaker.take(self.directory)
            stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            self.config = self._build(self.directory)
            self.ray_directory = self._ray_directory(stack)
            undertaker.take(self.ray_directory)
            os.environ["RAY_TMPDIR"] = str(self.ray_directory)
            prepare(self.config)
            deploy = importlib.import_module("actors.deploy")
            client = importlib.import_module("actors.client")
            cluster = LocalCluster(self.config)
            stack.callback(cluster.stop)
            address = cluster.start()
            stack.callback(self._leave, deploy)
            deploy.start_fleet(self.config, address, cluster.check_nodes)
            self.client = client.AsyncClient(self.config)
            self._stack = stack.pop_all()
        return self

    def _ray_directory(self, stack: ExitStack) -> Path:
        """Below the fleet's directory, or in /tmp if that is too deep for Ray's sockets."""
        if len(str(self.directory)) <= LONGEST_PARENT:
            return self.directory
        other = Path(tempfile.mkdtemp(prefix=PREFIX, dir="/tmp"))
        stack.callback(shutil.rmtree, other, ignore_errors=True)
        return other

    def _leave(self, deploy: Any) -> None:
        try:
            deploy.connect_ray(LocalCluster(self.config).address())
            deploy.stop_fleet(self.config)
        finally:
            deploy.leave_ray()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def trial_config(directory: Path, sink: str) -> FleetConfig:
    """One region without limits, everything routed to `sink` (HOST:PORT), no TLS; durable as every fleet."""
    addresses = _source_addresses(*split_host(sink))
    data: dict[str, Any] = {
        "fleet": {"name": "trial"},
        "spool": {"directory": str(directory / "spool"), "map_size": "16GiB"},
        "events": {"directory": str(directory / "events")},
        "regions": [{"name": "trial", "number": 1}],
        "sources": [
            {
                "name": f"trial-{number}",
                "region": "trial",
                "ip": address,
                "ehlo": f"mta{number}.bench.invalid",
                "streams": ["transactional", "notification", "marketing"],
            }
            for number, address in enumerate(addresses, 1)
        ],
        "routes": [{"domains": ["*"], "hosts": [sink]}],
        "providers": {
            "default": {"rate": "unlimited", "max_connections": 5, "messages_per_connection": 100_000}
        },
        # without spares: one would be started beside the first messages
        "limits": {"ready_window": 20_000, "pool_credits": 4_000, "batch": 500, "pool_spares": 0},
        "tls": {"exceptions": [{"provider": "default", "mode": "disabled", "reason": "a throughput trial"}]},
    }
    return parse_fleet(data)


def _source_addresses(host: str, port: int) -> list[str]:
    """Addresses from which the sink can be reached: several of loopback, else the one that the kernel would take."""
    if is_loopback(host) and ":" not in host:
        return [f"127.0.0.{20 + number}" for number in range(SOURCES)]
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # sends nothing
        return [str(probe.getsockname()[0])]


class TrialFleet:
    """A temporary fleet for `sendfleet bench`, with a sink of its own unless `sink` names another."""

    def __init__(self, *, sink: str | None = None, parent: Path | None = None) -> None:
        self._sink = sink
        self._parent = parent
        self._stack = ExitStack()
        self._own: SinkProcess | None = None
        self.client: Any = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            undertaker = stack.enter_context(Undertaker())
            sink = self._sink or self._start_sink(stack, undertaker)
            fleet = TemporaryFleet(lambda directory: trial_config(directory, sink), parent=self._parent)
            self.client = stack.enter_context(fleet).client
            self._stack = stack.pop_all()
        return self

    def _start_sink(self, stack: ExitStack, undertaker: Undertaker) -> str:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=PREFIX, dir=self._parent)))
        undertaker.take(directory)
        personalities = directory / "sink.yaml"
        personalities.write_text("personalities: {accept: {port: 0}}\n")
        self._own = stack.enter_context(SinkProcess(personalities, directory / "sink.jsonl"))
        host, port = self._own.addresses["accept"]
        return f"{host}:{port}"

    def arrived(self) -> tuple[int, int] | None:
        """Messages that the own sink took of the trial, and how many of these came twice; None of another's sink."""
        if self._own is None:
            return None
        counts = [n for recipient, n in self._own.log().recipients().items() if recipient.startswith(USER)]
        return sum(counts), sum(counts) - len(counts)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

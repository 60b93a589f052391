"""A fleet for benches: one region on a temporary local Ray cluster, everything routed to one sink."""

import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from actors.environment import prepare, run_directory
from actors.local_cluster import LocalCluster
from engine.config.load import parse_fleet
from engine.config.schema import FleetConfig

SOURCES = 4


def bench_config(directory: Path, port: int, **sections: Any) -> FleetConfig:
    """Unlimited rates, no TLS (both written in the configuration), durable as always."""
    data: dict[str, Any] = {
        "fleet": {"name": "bench"},
        "spool": {"directory": str(directory / "spool"), "map_size": "16GiB"},
        "events": {"directory": str(directory / "events")},
        "regions": [{"name": "bench", "number": 1}],
        "sources": [
            {
                "name": f"bench-{number}",
                "region": "bench",
                "ip": f"127.0.0.{20 + number}",
                "ehlo": f"mta{number}.bench.example.com",
                "streams": ["transactional", "notification", "marketing"],
            }
            for number in range(SOURCES)
        ],
        "routes": [{"domains": ["*"], "hosts": [f"127.0.0.1:{port}"]}],
        "providers": {
            "default": {"rate": "unlimited", "max_connections": 5, "messages_per_connection": 100000}
        },
        "limits": {"ready_window": 20000, "pool_credits": 4000, "batch": 500},
        "tls": {"exceptions": [{"provider": "default", "mode": "disabled", "reason": "sink on loopback"}]},
    }
    return parse_fleet({**data, **sections})


class BenchFleet:
    """Starts and ends the cluster; a context manager. `client` is an AsyncClient."""

    def __init__(self, port: int, **sections: Any) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="sendfleet-bench-"))
        self.config = bench_config(self.directory, port, **sections)
        prepare(self.config)  # before Ray is imported
        from actors import client, deploy

        self._deploy = deploy
        self._cluster = LocalCluster(self.config)
        self._client = client.AsyncClient
        self.client: Any = None

    def __enter__(self) -> Self:
        self._deploy.start_fleet(self.config, self._cluster.start())
        self.client = self._client(self.config)
        return self

    def session(self) -> str:
        """What the command lines of this cluster's Ray processes have in common."""
        import ray

        node: Any = ray._private.worker._global_node
        return str(node.get_session_dir_path())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import ray

        self._deploy.stop_fleet(self.config)
        ray.shutdown()
        self._cluster.stop()
        if kind is None:
            shutil.rmtree(self.directory, ignore_errors=True)
        else:
            print(f"left for a look: {run_directory(self.config)}")

"""A fleet for benches: one region on a temporary local Ray cluster, everything routed to one sink."""

from pathlib import Path
from typing import Any

from actors.temporary import TemporaryFleet
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
        # without spares: one would be started beside the first messages
        "limits": {"ready_window": 20000, "pool_credits": 4000, "batch": 500, "pool_spares": 0},
        "tls": {"exceptions": [{"provider": "default", "mode": "disabled", "reason": "sink on loopback"}]},
    }
    return parse_fleet({**data, **sections})


class BenchFleet(TemporaryFleet):
    """A context manager. `client` is an AsyncClient."""

    def __init__(self, port: int, *, parent: Path | None = None, **sections: Any) -> None:
        super().__init__(lambda directory: bench_config(directory, port, **sections), parent=parent)

    def session(self) -> str:
        """What the command lines of this cluster's Ray processes have in common."""
        return str(self.ray_directory)

"""Plain data of small fleets, to be changed by a test and then parsed."""

from typing import Any

from engine.config.load import parse_fleet
from engine.config.schema import FleetConfig


def fleet_data(**sections: Any) -> dict[str, Any]:
    """One region with one source for everything; `sections` are added or replaced."""
    data: dict[str, Any] = {
        "regions": [{"name": "eu", "number": 1}],
        "sources": [
            {
                "name": "eu-1",
                "region": "eu",
                "ip": "127.0.0.11",
                "ehlo": "mta1.example.com",
                "streams": ["transactional", "notification", "marketing"],
            }
        ],
    }
    return data | sections


def shards_data(**sections: Any) -> dict[str, Any]:
    """Region eu of two nodes and us of one, with a source each; `sections` are added."""
    first = fleet_data()["sources"][0]
    names = ("eu-1", "eu-2", "us")
    return fleet_data(
        regions=[
            {"name": "eu-1", "number": 1, "shard_of": "eu"},
            {"name": "eu-2", "number": 2, "shard_of": "eu"},
            {"name": "us", "number": 3},
        ],
        sources=[
            {**first, "name": f"{name}-a", "region": name, "ip": f"127.0.0.{20 + n}"}
            for n, name in enumerate(names)
        ],
        **sections,
    )


def fleet(**sections: Any) -> FleetConfig:
    return parse_fleet(fleet_data(**sections))

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


def fleet(**sections: Any) -> FleetConfig:
    return parse_fleet(fleet_data(**sections))

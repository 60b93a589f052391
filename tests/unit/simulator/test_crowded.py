"""A provider that bears fewer connections than it allows: the same windows as in a region find how many."""

import pytest

from engine.simulator.plan import parse_plan
from engine.simulator.simulation import Simulation


@pytest.mark.parametrize("model", [{}, {"crowd_defers": 1.0, "service": "10ms"}], ids=["slow", "defers"])
def test_a_crowded_provider_gets_fewer_connections(model: dict[str, object]) -> None:
    plan = parse_plan(
        {
            "name": "crowded",
            "duration": "6m",
            "tick": "5s",
            "report": "5s",
            "sources": [
                {"name": "s", "region": "eu", "count": 1, "first_ip": "192.0.2.1", "history": 50_000_000}
            ],
            "traffic": [{"name": "t", "per_day": 50_000_000, "shares": {"google": 1}, "unknown": 0.0}],
            "models": {"google": {"bears": 2, "service": "500ms", **model}},
            "fleet": {
                "providers": {"google": {"max_connections": 10, "rate": "unlimited"}},
                # the deferrals must not take the only source out of the rotation
                "reputation": {"removed_below": 1, "degraded_below": 2},
            },
        }
    )
    simulation = Simulation(plan)
    simulation.run()
    (node,) = simulation.nodes
    site = node.sites.site(node.sites.number("google"))
    assert node.sites.pace(site, 0)[1] in (2, 3)
    assert node.owners["s-1"].shaping.adapted("google") in (2, 3)
    assert any(event["event"] == "shaping" for event in simulation.record.events)
    assert simulation.record.delivered_count > 0

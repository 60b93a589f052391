"""A bad tenant beside good ones: whose sources burn, with the classes of tenants and without."""

from pathlib import Path
from typing import Any

import pytest

from engine.simulator.plan import load_plan, parse_plan
from engine.simulator.simulation import Simulation

SCENARIO = Path(__file__).parents[3] / "examples" / "scenarios" / "bad-tenant.yaml"
ALL_GOOD = {"tenants": {name: {"quality": "good"} for name in ("acme", "bulkco")}}


def run(fleet: dict[str, Any]) -> Simulation:
    """The first part of the scenario, at a third of its volume."""
    data = load_plan(SCENARIO).model_dump(mode="json", exclude_none=True)
    for traffic in data["traffic"]:
        traffic["per_day"] //= 3
    simulation = Simulation(
        parse_plan(data | {"duration": "12h", "tick": "1m", "report": "1m", "fleet": fleet})
    )
    simulation.run()
    return simulation


def states(simulation: Simulation, prefix: str) -> set[str]:
    names = [source.name for source in simulation.config.sources]
    found: set[str] = set()
    for (number, _), pair in simulation.record.pairs.items():
        if names[number].startswith(prefix):
            found |= set(pair.state)
    return found


@pytest.fixture(scope="module")
def apart() -> Simulation:
    return run({})


def test_the_sources_of_the_good_tenants_stay_active(apart: Simulation) -> None:
    assert states(apart, "shared") == {"active"}
    assert "removed" in states(apart, "acme")
    ends = {row["tenant"]: row["quality"] for row in apart.record.tenants}
    assert (ends["acme"], ends["bulkco"]) == ("poor", "poor")
    assert {ends["goodco"], ends["fineco"]} <= {"new", "good"}


def test_what_the_bad_ones_send_afterwards_goes_over_the_pool_apart(apart: Simulation) -> None:
    names = [source.name for source in apart.config.sources]
    used = {names[number] for number, _ in apart.record.pairs}
    assert "apart-1" in used
    events = {(e["tenant"], e["state"]) for e in apart.record.events if e["event"] == "tenant"}
    assert {("acme", "poor"), ("bulkco", "poor")} <= events


def test_without_classes_the_others_sources_burn() -> None:
    assert states(run(ALL_GOOD), "shared") != {"active"}

"""The warm-up of eight new addresses beside four warm ones, as the scenario has it, at a twentieth of its volume."""

from pathlib import Path

import pytest

from engine.simulator.plan import load_plan, parse_plan
from engine.simulator.simulation import Simulation
from engine.warmup.tables import shipped

SCENARIO = Path(__file__).parents[3] / "examples" / "scenarios" / "warm-eight.yaml"
SCALE = 20
DAYS = 8
DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    data = load_plan(SCENARIO).model_dump(mode="json", exclude_none=True)
    data["traffic"][0]["per_day"] //= SCALE
    changes = {
        "duration": f"{DAYS}d",
        "tick": "20m",
        "report": "20m",
        "fleet": {"warmup": {"tables": {"standard": {"stages": stages()}}}},
    }
    simulation = Simulation(parse_plan(data | changes))
    simulation.run()
    return simulation


def stages() -> list[int]:
    return [max(1, stage.day // SCALE) for stage in shipped()["standard"].stages]


def days_of(simulation: Simulation, source: int, site: str) -> list[int]:
    first = simulation.plan.start_ms // DAY_MS
    return [simulation.record.pairs[source, site].days[first + day] for day in range(DAYS)]


def test_no_day_exceeds_its_stage_and_the_stages_go_on_while_there_is_mail_for_them(
    simulation: Simulation,
) -> None:
    """The first day shows in which hours there is mail. From then on each stage is used, or what there is for one of
    twelve addresses."""
    (traffic,) = simulation.plan.traffic
    new = [n for n, source in enumerate(simulation.config.sources) if source.warmup]
    assert len(new) == 8
    for source in new:
        for site, share in traffic.shares.items():
            part = traffic.per_day * share / len(simulation.config.sources)
            first, *days = days_of(simulation, source, site)
            assert 0 < first <= stages()[0], (source, site)
            for cap, count in zip(stages(), days, strict=False):
                assert min(0.85 * cap, 0.8 * part) <= count <= cap, (source, site, cap, part, days)
            assert days[6] > 400


def test_everything_else_goes_over_the_warm_ones(simulation: Simulation) -> None:
    assert simulation.record.queued == 0
    assert simulation.record.expired == 0

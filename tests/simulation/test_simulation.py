"""The protocol over random schedules, and the proof that the simulation would notice a broken one.

More, or one with its trace: python -m tests.simulation --help. A long run: bench/results/failover_simulation.json.
"""

import pytest

from tests.simulation.mutations import MUTATIONS
from tests.simulation.schedule import run

SCHEDULES = 600
FOUND_WITHIN = 1500


def test_random_schedules_keep_every_promise() -> None:
    results = [run(seed) for seed in range(SCHEDULES)]
    broken = [(r.seed, r.violation) for r in results if r.violation]
    assert broken == []
    assert sum(r.accepted for r in results) > 5 * SCHEDULES
    assert sum(r.sent_twice for r in results) > 0  # the marks are needed


def test_a_seed_is_a_schedule() -> None:
    lines: tuple[list[str], list[str]] = ([], [])
    for out in lines:
        run(7, trace=out.append)
    assert lines[0] == lines[1]
    assert len(lines[0]) > 50


@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_a_broken_protocol_is_found(name: str) -> None:
    found = next((s for s in range(FOUND_WITHIN) if run(s, **MUTATIONS[name]).violation), None)
    assert found is not None
    assert run(found).violation == ""

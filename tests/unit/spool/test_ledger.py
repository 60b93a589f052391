"""The ledger's pages: many ids at once are marked as they are one by one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.spool.draft import PAGE_IDS, Draft, Totals
from engine.spool.due_index import DueIndex
from engine.spool.environment import Environment
from engine.values.ids import make_id
from engine.values.outcome import OutcomeKind

REGION = 1


@pytest.fixture
def env(tmp_path: Path) -> Iterator[Environment]:
    made = Environment(tmp_path, map_size=1 << 20)
    yield made
    made.close()


@pytest.mark.parametrize("first", [1, 2, PAGE_IDS - 1, PAGE_IDS])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 500, PAGE_IDS, 2 * PAGE_IDS + 1])
def test_a_run_of_ids_is_marked_and_its_neighbours_are_not(env: Environment, first: int, count: int) -> None:
    with env.write() as txn:
        draft = Draft(env, txn, Totals(REGION), {}, DueIndex(env, 16))
        for seq in range(1, 5 * PAGE_IDS):
            draft.mark(make_id(REGION, seq), OutcomeKind.DELIVERED)
        draft.mark_range(first, count, OutcomeKind.QUEUED)
        marked = [
            seq for seq in range(1, 5 * PAGE_IDS) if draft.word(make_id(REGION, seq)) == OutcomeKind.QUEUED
        ]
    assert marked == list(range(first, first + count))

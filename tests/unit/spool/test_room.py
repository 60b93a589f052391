"""Where acceptance stops, everything that was accepted can still be settled: deferred again and again, in any order."""

import random
from pathlib import Path

import pytest

from engine.spool.errors import SpoolFull
from tests.support.room import defer_all, fill_index
from tests.support.spools import PATIENCE_S, accept, assert_conserved, batch, open_spool, settlement

MAP_BYTES = 1 << 20


@pytest.mark.parametrize("watermark", [0.8, 0.95])
def test_where_the_map_is_full_all_can_be_deferred_in_any_order(tmp_path: Path, watermark: float) -> None:
    draw = random.Random(1)
    spool = open_spool(tmp_path, map_size=MAP_BYTES, watermark=watermark)
    keys, refusal = fill_index(spool)
    assert refusal.what == "map"
    assert len(keys) > 2000
    keys = defer_all(spool, keys, draw)
    assert (tmp_path / "data.mdb").stat().st_size > MAP_BYTES
    with pytest.raises(SpoolFull, match="map"):  # what adds to it does not get what settling needs
        accept(spool, batch())
    spool.close()
    spool = open_spool(tmp_path, map_size=MAP_BYTES, watermark=watermark)
    keys = defer_all(spool, keys, draw)
    for start in range(0, len(keys), 1000):
        spool.settle([settlement(key) for key in keys[start : start + 1000]]).result(PATIENCE_S)
        spool.trim_outbox(1 << 40)
    accept(spool, batch())
    spool.close()
    assert_conserved(tmp_path, delivered=len(keys), queued=1)

"""Where acceptance stops, everything that was accepted can still be settled: deferred again and again, in any order."""

import random
from pathlib import Path

import pytest

from engine.failover.messages import Copy
from engine.failover.store import Apply, SaveEpoch
from engine.spool.errors import SpoolFull
from tests.support.room import defer_all, fill_index
from tests.support.spools import PATIENCE_S, accept, assert_conserved, batch, id_of, open_spool, settlement

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


def test_copies_for_other_regions_need_room_as_well(tmp_path: Path) -> None:
    """Their owners' deferrals change them."""
    own, other = open_spool(tmp_path / "own"), open_spool(tmp_path / "other", region=2)
    other.failover(SaveEpoch(1), {"eu": 1, "us": 2}).result(PATIENCE_S)
    keys = accept(own, batch(recipients=500))
    spans, payload = own.exporter().messages(((id_of(keys[0]), 500),), [])
    before = other.room()["reserve"]
    copied = other.failover(Apply("eu", 1, 1, 0, Copy(spans, payload, b"k" * 16)), {"eu": 1, "us": 2})
    assert copied.result(PATIENCE_S) == ""
    assert other.room()["reserve"] >= before + 500 * 500
    own.close()
    other.close()

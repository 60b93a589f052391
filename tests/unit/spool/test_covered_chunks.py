"""Chunks of campaigns in a fleet whose regions cover for each other: what a region says that it has, and how long the
others know."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.failover.messages import Copy
from engine.failover.store import Accept, Adopt, Apply, LookUp, Release
from engine.spool.accepting import CHUNK_KEY_TTL_MS
from engine.values.submission import chunk_key_of
from tests.support.spools import CAMPAIGN, chunk
from tests.unit.spool.test_standby import Pair

DIGEST = b"d" * 16


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    pair = Pair(tmp_path)
    yield pair
    pair.close()


def key_of(number: int) -> bytes:
    return chunk_key_of(CAMPAIGN.tenant, CAMPAIGN.campaign, number, DIGEST)


def test_a_chunk_without_a_receipt_is_not_said_to_be_there(pair: Pair) -> None:
    """It is on one disk only: who skips it would lose it with that."""
    spool = pair.spools["a"]
    campaign_no = spool.put_campaign(CAMPAIGN).result(10)
    spans = {n: pair.do("a", Accept(key_of(n), chunk(campaign_no, n)))[0].spans for n in (1, 2)}
    progress = (CAMPAIGN.tenant, CAMPAIGN.campaign)
    assert spool.campaign_progress(*progress) == {}
    pair.do("a", Release(key_of(2), spans[2]))
    assert spool.campaign_progress(*progress) == {2: DIGEST}
    pair.do("a", Release(key_of(1), spans[1]))
    assert spool.campaign_progress(*progress) == {1: DIGEST, 2: DIGEST}


def test_a_chunk_of_a_dead_region_is_known_for_months(pair: Pair) -> None:
    campaign_no = pair.spools["a"].put_campaign(CAMPAIGN).result(10)
    key = key_of(7)
    accepted, _ = pair.do("a", Accept(key, chunk(campaign_no, 7)))
    found, payload = pair.spools["a"].exporter().messages(accepted.spans, [key])
    pair.do("b", Apply("a", 1, 1, 0, Copy(found, payload, key)))
    pair.do("b", Adopt("a", 2, 3))
    pair.clock.step_wall(CHUNK_KEY_TTL_MS / 1000 - 3600)
    for n in range(3):  # each group forgets some of what is old
        pair.do("b", Accept(bytes([n]) * 16, chunk(pair.spools["b"].put_campaign(CAMPAIGN).result(10), n)))
    assert pair.do("b", LookUp(key, "", 0)).spans == accepted.spans
    again, result = pair.do("b", Accept(key, chunk(1, 7)))
    assert (again.known, again.spans, result.repeated) == (True, accepted.spans, True)

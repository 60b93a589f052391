"""Chunks of campaigns in a fleet whose regions cover for each other: what a region says that it has, and how long the
others know."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engine.failover.messages import Copy
from engine.failover.spans import ids_of
from engine.failover.store import Accept, Adopt, Apply, LookUp, Release, TakeQueued
from engine.spool.accepting import CHUNK_KEY_TTL_MS
from engine.spool.errors import CampaignUnknown
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


def copied(pair: Pair, numbers: range, told: dict[int, bytes] | None, *, campaign_no: int = 1) -> list[int]:
    """Send copies of these chunks to b; the sizes of what travels."""
    sizes = []
    for n in numbers:
        accepted, _ = pair.do("a", Accept(key_of(n), chunk(campaign_no, n)))
        found, payload = pair.spools["a"].exporter().messages(accepted.spans, [key_of(n)], told)
        assert found == accepted.spans
        sizes.append(len(payload))
        assert pair.do("b", Apply("a", 1, 1, n, Copy(found, payload, key_of(n)))) == ""
    return sizes


def test_a_template_travels_once_in_a_session(pair: Pair) -> None:
    large = replace(CAMPAIGN, template={"subject": "x", "html": "y" * 60_000})
    pair.spools["a"].put_campaign(large).result(10)
    pair.spools["b"].put_campaign(CAMPAIGN).result(10)  # another template under the same name
    first, *later = copied(pair, range(3), told := {})
    assert first > 60_000 > 10_000 > max(later)
    assert copied(pair, range(3, 4), {})[0] > 60_000, "another session brings it again"
    assert copied(pair, range(4, 5), None)[0] > 60_000, "a standby of an earlier release"
    pair.do("b", Adopt("a", 2, 3))
    reader = pair.spools["b"].reader()
    ids = list(ids_of(pair.do("b", TakeQueued(False, 0)).spans))
    assert len(ids) == 50
    records = reader.fetch(b"".join(id_.to_bytes(8, "little") for id_ in ids))
    assert {reader.campaign(record.content[0]).template["html"] for record in records} == {"y" * 60_000}
    assert len(told) == 1
    pair.assert_clean()


def test_a_template_that_has_not_come_is_asked_for(pair: Pair) -> None:
    """The session ends, and the next one brings it."""
    campaign_no = pair.spools["a"].put_campaign(CAMPAIGN).result(10)
    accepted, _ = pair.do("a", Accept(key_of(1), chunk(campaign_no, 1)))
    told = {campaign_no: bytes(16)}
    found, payload = pair.spools["a"].exporter().messages(accepted.spans, [key_of(1)], told)
    with pytest.raises(CampaignUnknown, match="no template"):
        pair.do("b", Apply("a", 1, 1, 0, Copy(found, payload, key_of(1))))
    assert pair.do("b", LookUp(key_of(1), "a", 0)) is None
    copied(pair, range(2, 3), {})
    pair.assert_clean()

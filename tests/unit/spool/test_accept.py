"""Accepting: records, bodies, due keys, idempotency, campaigns."""

from pathlib import Path

import pytest

from engine.failover.store import Accept
from engine.spool.accepting import KEY_TTL_MS
from engine.spool.errors import CampaignConflict, SpoolError
from engine.values.ids import format_id, make_id
from engine.values.outcome import OutcomeKind
from tests.support.clock import ManualClock
from tests.support.spools import (
    CAMPAIGN,
    NOW_MS,
    PATIENCE_S,
    accept,
    assert_conserved,
    batch,
    chunk,
    due,
    id_of,
    letter,
    open_spool,
    settlement,
)


def test_what_is_accepted_can_be_read_back(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    letters = [letter(1), letter(2, 5000)]
    result = spool.accept(batch(letters=letters, recipients=2)).result(PATIENCE_S)
    assert [list(ids) for ids in result.ids] == [
        [make_id(1, 1), make_id(1, 2)],
        [make_id(1, 3), make_id(1, 4)],
    ]
    assert not result.repeated
    assert [id_of(key) for key in result.due_keys] == [make_id(1, seq) for seq in (1, 2, 3, 4)]
    reader = spool.reader()
    for index, ids in enumerate(result.ids):
        for place, id_ in enumerate(ids):
            record = spool.message(id_)
            assert record is not None
            assert record.recipient == f"u{index}.{place}@example.net"
            assert record.sender == "sender@example.com"
            assert (record.attempts, record.flags, record.last) == (0, 0, None)
            assert (record.accepted_ms, record.due_ms) == (NOW_MS, NOW_MS)
            assert reader.body(record.content) == letters[index]
    assert spool.counts()["accepted"] == spool.counts()["queued"] == 4
    assert spool.status(make_id(1, 1)) == {
        "id": format_id(make_id(1, 1)),
        "state": "queued",
        "recipient": "u0.0@example.net",
        "accepted_ms": NOW_MS,
        "due_ms": NOW_MS,
        "expires_ms": NOW_MS + 48 * 3_600_000,
        "attempts": 0,
        "last": None,
    }
    assert spool.status(make_id(1, 5)) is None
    assert spool.status(make_id(2, 1)) is None
    reader.close()
    spool.close()
    assert_conserved(tmp_path, queued=4)


def test_a_batch_is_accepted_once(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    first = spool.accept(batch(b"k" * 16, letters=[letter(1), letter(2)], recipients=2)).result(PATIENCE_S)
    again = spool.accept(batch(b"k" * 16, letters=[letter(1), letter(2)], recipients=2)).result(PATIENCE_S)
    assert again.repeated
    assert [list(ids) for ids in again.ids] == [list(ids) for ids in first.ids]
    assert list(again.due_keys) == []
    spool.close()
    spool = open_spool(tmp_path)
    assert spool.accept(batch(b"k" * 16)).result(PATIENCE_S).repeated
    spool.close()
    assert_conserved(tmp_path, queued=4)


def test_an_item_key_is_accepted_once_per_tenant(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    first = spool.accept(batch(letters=[letter(1), letter(2)], keys=["a", "b"])).result(PATIENCE_S)
    mixed = spool.accept(batch(letters=[letter(3), letter(2)], keys=["c", "b"])).result(PATIENCE_S)
    assert list(mixed.ids[1]) == list(first.ids[1])
    assert [id_of(key) for key in mixed.due_keys] == list(mixed.ids[0])
    twice = spool.accept(batch(letters=[letter(4), letter(4)], keys=["d", "d"])).result(PATIENCE_S)
    assert list(twice.ids[0]) == list(twice.ids[1])
    assert len(twice.due_keys) == 1
    other = spool.accept(batch(letters=[letter(5)], keys=["a"], tenant="other")).result(PATIENCE_S)
    assert list(other.ids[0]) != list(first.ids[0])
    spool.close()
    assert_conserved(tmp_path, queued=5)


def test_keys_are_forgotten_after_their_time(tmp_path: Path) -> None:
    clock = ManualClock()
    spool = open_spool(tmp_path, clock)
    for number in range(100):
        accept(spool, batch(number.to_bytes(16, "big"), keys=[f"k{number}"]))
    clock.advance(KEY_TTL_MS / 1000 - 1)
    assert spool.accept(batch((0).to_bytes(16, "big"))).result(PATIENCE_S).repeated
    clock.advance(2)
    for number in range(100, 200):
        accept(spool, batch(number.to_bytes(16, "big"), keys=[f"k{number}"]))
    assert not spool.accept(batch((0).to_bytes(16, "big"), keys=["k0"])).result(PATIENCE_S).repeated
    spool.close()
    assert_conserved(tmp_path, queued=201)


def test_a_key_that_is_used_anew_is_forgotten_after_its_own_time(tmp_path: Path) -> None:
    """With copies a message's key comes in a batch under that key, and what stood for it before is overwritten."""
    clock = ManualClock()
    spool = open_spool(tmp_path, clock)
    accept(spool, batch(bytes(16), keys=["k"]))
    clock.advance(KEY_TTL_MS / 1000 / 2)
    again = batch(b"again" + bytes(11), keys=["k"])
    spool.failover(Accept(again.batch_key, again), {"eu": 1}).result(PATIENCE_S)
    clock.advance(KEY_TTL_MS / 1000 / 2 + 1)
    for number in range(100, 200):
        accept(spool, batch(number.to_bytes(16, "big"), keys=[f"k{number}"]))
    tenant = again.items[0].tenant
    assert spool.recipients_of(tenant, "k") is not None
    clock.advance(KEY_TTL_MS / 1000 / 2)
    for number in range(200, 300):
        accept(spool, batch(number.to_bytes(16, "big"), keys=[f"k{number}"]))
    assert spool.recipients_of(tenant, "k") is None
    spool.close()


def test_scheduled_messages_are_found_by_their_due_time(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    keys = [accept(spool, batch(due_ms=NOW_MS + 1000 * n))[0] for n in (3, 1, 2)]
    [(queue, domain, stream, tenant, campaign, first_due)] = list(spool.queues())
    assert (domain, stream, tenant, campaign, first_due) == ("example.net", 0, "default", "", NOW_MS + 1000)
    in_order = [keys[1], keys[2], keys[0]]
    assert [key for key, _ in spool.scan_due(queue, None, NOW_MS + 9000, 10)] == in_order
    assert [key for key, _ in spool.scan_due(queue, None, NOW_MS + 2000, 10)] == in_order[:2]
    assert [key for key, _ in spool.scan_due(queue, in_order[0], NOW_MS + 9000, 1)] == [in_order[1]]
    assert spool.scan_due(queue, None, NOW_MS + 999, 10) == []
    assert spool.scan_due(queue + 1, None, NOW_MS + 9000, 10) == []
    assert spool.first_due_after(queue, None) == NOW_MS + 1000
    assert spool.first_due_after(queue, in_order[0]) == NOW_MS + 2000
    assert spool.first_due_after(queue, in_order[2]) is None
    assert spool.due_key_of(id_of(in_order[0])) == in_order[0]
    spool.close()


def test_each_domain_stream_tenant_and_campaign_has_its_queue(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    accept(spool, batch(domain="a.example"))
    accept(spool, batch(domain="b.example"))
    accept(spool, batch(domain="a.example", tenant="t"))
    accept(spool, batch(domain="a.example", campaign="c"))
    accept(spool, batch(domain="a.example"))
    rows = [(domain, tenant, campaign) for _, domain, _, tenant, campaign, _ in spool.queues()]
    assert sorted(rows) == [
        ("a.example", "default", ""),
        ("a.example", "default", "c"),
        ("a.example", "t", ""),
        ("b.example", "default", ""),
    ]
    spool.close()


def test_a_queue_without_messages_has_no_first_due_time(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    [key] = accept(spool, batch())
    spool.settle([settlement(key)]).result(PATIENCE_S)
    assert [row[-1] for row in spool.queues()] == [None]
    spool.close()


def test_a_campaign_is_stored_once(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    number = spool.put_campaign(CAMPAIGN).result(PATIENCE_S)
    assert spool.put_campaign(CAMPAIGN).result(PATIENCE_S) == number
    assert spool.campaign(number).template == CAMPAIGN.template
    changed = type(CAMPAIGN)(
        CAMPAIGN.campaign, CAMPAIGN.tenant, 1, CAMPAIGN.sender, ("name",), {"subject": "other"}
    )
    with pytest.raises(CampaignConflict, match="'spring' of tenant 'default' exists with another template"):
        spool.put_campaign(changed).result(PATIENCE_S)
    with pytest.raises(SpoolError, match="no campaign number 9"):
        spool.campaign(9)
    spool.close()


def test_a_part_of_a_campaign_is_accepted_once(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    number = spool.put_campaign(CAMPAIGN).result(PATIENCE_S)
    first = spool.accept_chunk(chunk(number, 0)).result(PATIENCE_S)
    again = spool.accept_chunk(chunk(number, 0)).result(PATIENCE_S)
    assert again.repeated
    assert again.ids == first.ids
    spool.accept_chunk(chunk(number, 2, 3)).result(PATIENCE_S)
    assert spool.campaign_progress("default", "spring") == {0: b"d" * 16, 2: b"d" * 16}
    assert spool.campaign_progress("default", "autumn") == {}
    with pytest.raises(CampaignConflict, match="part 0 was accepted before with other recipients"):
        spool.accept_chunk(chunk(number, 0, digest=b"e" * 16)).result(PATIENCE_S)
    record = spool.message(first.ids[3][0])
    assert record is not None
    assert record.sender == CAMPAIGN.sender
    assert record.content == [number, ["n0.3"]]
    assert len(due(spool)) == 13
    spool.close()
    spool = open_spool(tmp_path)
    assert spool.accept_chunk(chunk(number, 2, 3)).result(PATIENCE_S).repeated
    assert spool.reader().campaign(number).sender == CAMPAIGN.sender
    spool.close()
    assert_conserved(tmp_path, queued=13)


def test_cancel(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    keys = accept(spool, batch(letters=[letter(1)], recipients=3))
    ids = [id_of(key) for key in keys]
    assert spool.cancel([ids[0], ids[0], make_id(1, 77)]).result(PATIENCE_S) == 1
    assert due(spool) == keys[1:]
    status = spool.status(ids[0])
    assert status is not None
    assert status["state"] == str(OutcomeKind.CANCELLED)
    spool.close()
    assert_conserved(tmp_path, queued=2, cancelled=1)


def test_only_queues_that_hold_messages_are_waiting(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    keys = [
        accept(spool, batch(bytes([n]) * 16, letters=[letter(n)], domain=f"d{n}.example"))[0]
        for n in range(1, 9)
    ]
    assert [row[0] for row in spool.waiting_queues()] == list(range(1, 9))
    spool.settle([settlement(key) for n, key in enumerate(keys) if n % 3]).result(PATIENCE_S)
    expected = [row for row in spool.queues() if row[-1] is not None]
    assert [row[0] for row in expected] == [1, 4, 7]
    assert list(spool.waiting_queues()) == expected
    spool.settle([settlement(key) for key in keys[::3]]).result(PATIENCE_S)
    assert list(spool.waiting_queues()) == []
    spool.close()

"""Rows that are damaged on disk: each holds up itself and no other, and the audit tells of it."""

from pathlib import Path
from typing import Any

import pytest

from engine.failover.messages import Copy, Drop, Update
from engine.failover.spans import Spans
from engine.failover.store import Accept, Adopt, Apply, GiveUp, Release, SaveEpoch
from engine.spool.audit import audit
from engine.spool.environment import Environment
from engine.spool.records import pack
from engine.spool.store import Spool
from engine.values.outcome import OutcomeKind
from tests.support.spools import (
    CAMPAIGN,
    PATIENCE_S,
    accept,
    batch,
    chunk,
    due,
    id_of,
    open_spool,
    packed,
    settlement,
)

NUMBERS = {"a": 1, "b": 2}
KEY = b"k" * 16


def damage(spool: Spool, table: str, key: bytes) -> None:
    with spool._env.write() as txn:
        assert txn.get(key, db=spool._env.db[table]) is not None
        txn.put(key, b"\x01damaged", db=spool._env.db[table])


def damage_name(path: Path, spool: Spool, number: int) -> Spool:
    damage(spool, "queues", number.to_bytes(4, "big"))
    spool.close()
    return open_spool(path)


def test_a_damaged_name_stops_no_other_queue(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = open_spool(tmp_path)
    for number in range(3):
        accept(spool, batch(domain=f"d{number}.example"))
    spool = damage_name(tmp_path, spool, 2)
    assert [row[1] for row in spool.waiting_queues()] == ["d0.example", "d2.example"]
    assert [row[1] for row in spool.queues()] == ["d0.example", "d2.example"]
    assert "the name of queue 2 is damaged" in caplog.text
    with pytest.raises(KeyError, match="queue 2"):
        spool.queue(2)
    with pytest.raises(KeyError, match="queue 2"):
        spool.reader().queue(2)
    spool.close()
    assert "the name of its queue is damaged" in audit(tmp_path).problems[0]


def test_what_became_of_a_message_counts_though_its_queue_has_no_name(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    keys = accept(spool, batch(recipients=4))
    spool = damage_name(tmp_path, spool, 1)
    assert spool.dispatch(1, packed([id_of(key) for key in keys]), {}).result(PATIENCE_S) == []
    outcomes = [settlement(keys[0], batch_no=1), settlement(keys[1], OutcomeKind.DEFERRED, batch_no=1)]
    assert spool.settle(outcomes).result(PATIENCE_S).stale == 0
    assert spool.cancel([id_of(keys[2])]).result(PATIENCE_S) == 1
    assert spool.counts()["delivered"] == spool.counts()["cancelled"] == 1
    spool.close()


def test_a_name_is_written_anew_with_the_next_message_for_its_queue(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    accept(spool, batch())
    spool = damage_name(tmp_path, spool, 1)
    assert list(spool.waiting_queues()) == []
    accept(spool, batch())
    assert spool.queue(1)[0] == "example.net"
    assert len(list(spool.waiting_queues())) == 1
    spool.close()
    assert audit(tmp_path).is_clean


def test_a_damaged_record_is_not_cancelled_and_others_are(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    keys = accept(spool, batch(recipients=3))
    damage(spool, "messages", keys[1][10:])
    assert spool.cancel([id_of(key) for key in keys]).result(PATIENCE_S) == 2
    assert spool.counts()["queued"] == 1
    spool.close()


class Pair:
    """An owner and its standby, which holds copies of three messages; the second copy is damaged."""

    def __init__(self, path: Path) -> None:
        self.owner = open_spool(path / "a", region=1)
        self.standby = open_spool(path / "b", region=2)
        accepted, _ = self.do(self.owner, Accept(KEY, batch(KEY, recipients=3)))
        self.spans: Spans = accepted.spans
        self.ids = range(self.spans[0][0], self.spans[0][0] + 3)

    def do(self, spool: Spool, operation: Any) -> Any:
        return spool.failover(operation, NUMBERS).result(PATIENCE_S)

    def copy(self) -> None:
        found, payload = self.owner.exporter().messages(self.spans, [KEY])
        assert self.do(self.standby, Apply("a", 1, 1, 0, Copy(found, payload, KEY))) == ""

    def damage_copy(self) -> None:
        damage(self.standby, "copies", (1).to_bytes(2, "big") + self.ids[1].to_bytes(8, "big"))

    def close(self) -> None:
        self.owner.close()
        self.standby.close()


def test_a_damaged_copy_is_not_adopted_and_the_others_are(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.copy()
    pair.damage_copy()
    rows = [(id_, 1, 1, 0, None) for id_ in pair.ids]
    assert pair.do(pair.standby, Apply("a", 1, 1, 1, Update(pair.spans, bytes(pack(rows))))) == ""
    pair.do(pair.standby, SaveEpoch(3))
    adopted = pair.do(pair.standby, Adopt("a", 2, 3))
    assert adopted.spans == ((pair.ids[0], 1), (pair.ids[2], 1))
    assert not adopted.more
    assert len(due(pair.standby)) == 2
    pair.close()
    assert audit(tmp_path / "b").is_clean


def test_a_damaged_copy_is_replaced_and_dropped(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    for _ in range(2):
        pair.copy()
        pair.damage_copy()
    assert pair.do(pair.standby, Apply("a", 1, 1, 1, Drop(pair.spans))) == ""
    with pair.standby._env.read() as txn:
        assert txn.stat(pair.standby._env.db["copies"])["entries"] == 0
    pair.close()


def test_a_damaged_record_holds_up_neither_its_batch_nor_what_is_given_up(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    damage(pair.owner, "messages", pair.ids[1].to_bytes(8, "big"))
    assert len(pair.do(pair.owner, Release(KEY, pair.spans))) == 2
    found, payload = pair.owner.exporter().messages(pair.spans, [])
    assert found == ((pair.ids[0], 1), (pair.ids[2], 1))
    assert payload
    pair.do(pair.owner, GiveUp(pair.spans, "b"))
    assert pair.owner.counts()["queued"] == 1
    pair.close()
    [problem, *_] = audit(tmp_path / "a").problems
    assert "unreadable" in problem


def test_a_message_whose_queue_has_no_name_is_not_copied_and_the_others_are(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    accepted, _ = pair.do(pair.owner, Accept(b"l" * 16, batch(b"l" * 16, domain="other.example")))
    pair.owner = damage_name(tmp_path / "a", pair.owner, 1)
    assert pair.owner.exporter().messages(pair.spans, []) == ((), b"")
    found, _ = pair.owner.exporter().messages((*pair.spans, *accepted.spans), [])
    assert found == accepted.spans
    pair.close()


def test_the_audit_tells_of_content_that_is_lost(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    accept(spool, batch(letters=[b"one", b"two", b"three"]))
    number = spool.put_campaign(CAMPAIGN).result(PATIENCE_S)
    spool.accept_chunk(chunk(number, 0, 2)).result(PATIENCE_S)
    spool.close()
    assert audit(tmp_path).is_clean

    def delete(table: str, row: int) -> None:
        env = Environment(tmp_path, map_size=64 << 20)
        with env.write() as txn:
            assert txn.delete(row.to_bytes(4, "big"), db=env.db[table])
        env.close()

    lost = "0001{:012x}: queued, as {} in all whose content is lost: {}"
    segment = next((tmp_path / "bodies").glob("*.seg"))
    with segment.open("r+b") as file:
        file.truncate(segment.stat().st_size - 1)
    assert audit(tmp_path).problems == [lost.format(3, 1, "body segment 1 has been cut off")]
    segment.unlink()
    delete("campaigns", number)
    of_campaign = lost.format(4, 2, f"campaign {number} is missing")
    assert audit(tmp_path).problems == [lost.format(1, 3, "body segment 1 is missing"), of_campaign]
    delete("segments", 1)  # as a commit beside the audit does that has drained it
    assert audit(tmp_path).problems == [of_campaign]

"""Settling: outcomes, retry state, the outbox, stale outcomes, in-flight records."""

from pathlib import Path

import pytest

from engine.spool.records import MAYBE_SENT
from engine.values.outcome import OutcomeKind
from tests.support.clock import ManualClock
from tests.support.spools import (
    HOUR_MS,
    NOW_MS,
    PATIENCE_S,
    accept,
    assert_conserved,
    batch,
    due,
    id_of,
    letter,
    open_spool,
    packed,
    settlement,
)

FINAL = [
    OutcomeKind.DELIVERED,
    OutcomeKind.BOUNCED,
    OutcomeKind.EXPIRED,
    OutcomeKind.SUPPRESSED,
    OutcomeKind.CANCELLED,
]


@pytest.mark.parametrize("kind", FINAL, ids=str)
def test_a_final_outcome_ends_a_message(tmp_path: Path, kind: OutcomeKind) -> None:
    spool = open_spool(tmp_path)
    [key] = accept(spool, batch())
    result = spool.settle([settlement(key, kind)]).result(PATIENCE_S)
    assert list(result.due_keys) == []
    assert result.stale == 0
    assert spool.message(id_of(key)) is None
    assert spool.due_key_of(id_of(key)) is None
    assert due(spool) == []
    status = spool.status(id_of(key))
    assert status is not None
    assert status["state"] == str(kind)
    [(number, [event])] = spool.read_outbox(10)
    assert number == 1
    assert event[:3] == [NOW_MS + 5, int(kind), id_of(key)]
    assert event[3:] == [
        250,
        "",
        "so it said",
        "mx.example.net",
        3,
        0,
        1,
        "u0.0@example.net",
        0,
        "default",
        "",
        "success",
        False,
        "recipient",
    ]
    spool.close()
    assert_conserved(tmp_path, **{str(kind): 1})


def test_a_deferral_is_due_again_with_its_history(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    [key] = accept(spool, batch(letters=[letter(7)]))
    [again] = (
        spool.settle([settlement(key, OutcomeKind.DEFERRED, next_due_ms=NOW_MS + HOUR_MS)])
        .result(PATIENCE_S)
        .due_keys
    )
    assert due(spool) == [again]
    record = spool.message(id_of(key))
    assert record is not None
    assert spool.due_rows(b"", 10) == [(again, record.expires_ms)]
    assert (record.attempts, record.due_ms, record.flags) == (1, NOW_MS + HOUR_MS, 0)
    assert record.last == [NOW_MS + 5, 451, "", "so it said", "mx.example.net", 3]
    assert spool.reader().body(record.content) == letter(7)
    [free] = spool.settle([settlement(again, OutcomeKind.DEFERRED, free=True)]).result(PATIENCE_S).due_keys
    record = spool.message(id_of(key))
    assert record is not None
    assert record.attempts == 1
    spool.settle([settlement(free, possible_duplicate=True)]).result(PATIENCE_S)
    events = [event for _, events in spool.read_outbox(10) for event in events]
    assert [(event[1], event[8], event[9]) for event in events] == [
        (OutcomeKind.DEFERRED, 0, 1),
        (OutcomeKind.DEFERRED, 0, 1),
        (OutcomeKind.DELIVERED, MAYBE_SENT, 2),
    ]
    spool.close()
    assert_conserved(tmp_path, delivered=1)


def test_an_outcome_counts_once(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    [key] = accept(spool, batch())
    result = spool.settle([settlement(key), settlement(key, OutcomeKind.BOUNCED)]).result(PATIENCE_S)
    assert result.stale == 1
    assert spool.settle([settlement(key, OutcomeKind.DEFERRED)]).result(PATIENCE_S).stale == 1
    assert len(spool.read_outbox(10)) == 1
    spool.close()
    assert_conserved(tmp_path, delivered=1)


def test_an_outcome_for_an_earlier_due_time_is_stale(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    [key] = accept(spool, batch())
    spool.settle([settlement(key, OutcomeKind.DEFERRED)]).result(PATIENCE_S)
    assert spool.settle([settlement(key)]).result(PATIENCE_S).stale == 1
    spool.close()
    assert_conserved(tmp_path, queued=1)


def test_what_is_returned_was_not_attempted(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    [key] = accept(spool, batch())
    spool.dispatch(1, packed([id_of(key)]), {}).result(PATIENCE_S)
    result = spool.settle([settlement(key, OutcomeKind.RETURNED, batch_no=1)]).result(PATIENCE_S)
    assert (list(result.due_keys), result.stale) == ([], 0)
    assert due(spool) == [key]
    assert spool.read_outbox(10) == []
    spool.close()
    spool = open_spool(tmp_path)
    record = spool.message(id_of(key))
    assert record is not None
    assert (record.flags, record.attempts) == (0, 0)
    spool.close()
    assert_conserved(tmp_path, queued=1)


def test_events_are_shipped_in_order_and_trimmed(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    keys = accept(spool, batch(letters=[letter(1)], recipients=25))
    spool.settle([settlement(key) for key in keys]).result(PATIENCE_S)
    chunks = spool.read_outbox(10)
    assert [number for number, _ in chunks] == [1, 2, 3]
    assert [event[2] for _, events in chunks for event in events] == [id_of(key) for key in keys]
    assert spool.read_outbox(2) == chunks[:2]
    spool.trim_outbox(2).result(PATIENCE_S)
    assert spool.read_outbox(10) == chunks[2:]
    spool.trim_outbox(3).result(PATIENCE_S)
    spool.close()
    spool = open_spool(tmp_path)
    [key] = accept(spool, batch())
    spool.settle([settlement(key)]).result(PATIENCE_S)
    assert [number for number, _ in spool.read_outbox(10)] == [4]
    spool.close()


def test_what_was_in_flight_at_a_crash_is_marked(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    keys = accept(spool, batch(letters=[letter(1)], recipients=5))
    ids = [id_of(key) for key in keys]
    spool.dispatch(1, packed(ids[:4]), {}).result(PATIENCE_S)
    settled = [settlement(keys[0], batch_no=1), settlement(keys[1], OutcomeKind.DEFERRED, batch_no=1)]
    spool.settle(settled).result(PATIENCE_S)
    spool.close()
    spool = open_spool(tmp_path)
    flags = {id_: record.flags for id_ in ids if (record := spool.message(id_)) is not None}
    assert flags == {ids[1]: 0, ids[2]: MAYBE_SENT, ids[3]: MAYBE_SENT, ids[4]: 0}
    spool.settle([settlement(keys[2])]).result(PATIENCE_S)
    event = spool.read_outbox(10)[-1][1][-1]
    assert event[2] == ids[2]
    assert event[8] == MAYBE_SENT
    spool.close()
    assert_conserved(tmp_path, queued=3, delivered=2)


def test_a_dispatch_writes_the_counters_it_charges(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    [key] = accept(spool, batch())
    spool.dispatch(1, packed([id_of(key)]), {"daily/3/gmail": 77}).result(PATIENCE_S)
    spool.put_state("score", b"\x01").result(PATIENCE_S)
    assert spool.get_state("nothing") is None
    spool.close()
    spool = open_spool(tmp_path)
    assert spool.get_state("daily/3/gmail") == (77).to_bytes(8, "big")
    assert spool.get_state("score") == b"\x01"
    spool.close()


def test_the_writers_time_is_counted(tmp_path: Path) -> None:
    clock = ManualClock()

    def step(name: str) -> None:
        if name == "committed":
            clock.advance(0.25)

    spool = open_spool(tmp_path, clock, step=step)
    before = spool.sizes()["busy_ms"]
    for _ in range(3):
        accept(spool, batch())  # an answer is given before its own group is counted
    assert spool.sizes()["busy_ms"] - before >= 500

"""Suspensions of a source: longer each time, forgiven step by step, kept over a restart."""

import msgpack

from engine.reputation.allowance import (
    SiteCounts,
    decode_allowances,
    decode_summary,
    encode_allowances,
    encode_summary,
)
from engine.reputation.source import FIRST_MS, MAX_MS, SourceRecord


def block(record: SourceRecord, at_ms: int) -> int:
    (allowance,) = record.observe(at_ms, [SiteCounts("google", 0, 1, 0, 1, "421 4.7.28 rate")])
    return allowance.suspended_until_ms - at_ms


def test_each_block_in_a_row_doubles_the_pause_up_to_two_hours() -> None:
    record = SourceRecord("eu-1")
    now = 0
    pauses = []
    for _ in range(9):
        pauses.append(block(record, now))
        now += pauses[-1]
    assert pauses[:3] == [FIRST_MS, 2 * FIRST_MS, 4 * FIRST_MS]
    assert pauses[-1] == MAX_MS


def test_blocks_during_a_pause_do_not_lengthen_it() -> None:
    record = SourceRecord("eu-1")
    block(record, 0)
    assert block(record, 1000) == FIRST_MS - 1000


def test_deliveries_after_the_pause_forgive_one_step() -> None:
    record = SourceRecord("eu-1")
    block(record, 0)
    record.observe(FIRST_MS, [SiteCounts("google", 10, 0, 0, 0, "")])
    assert block(record, 2 * FIRST_MS) == FIRST_MS


def test_state_survives_a_restart() -> None:
    record = SourceRecord("eu-1")
    block(record, 0)
    again = SourceRecord.from_state("eu-1", msgpack.unpackb(msgpack.packb(record.to_state())))
    assert again.to_state() == record.to_state()
    assert block(again, FIRST_MS) == 2 * FIRST_MS


def test_messages_round_trip() -> None:
    at_ms, rows = decode_summary(encode_summary(5, {"google": [1, 2, 3, 4, "x"]}))
    assert (at_ms, rows) == (5, [SiteCounts("google", 1, 2, 3, 4, "x")])
    allowances = SourceRecord("a").observe(0, [SiteCounts("google", 0, 0, 0, 1, "r")])
    assert decode_allowances(encode_allowances(allowances)) == allowances

"""What crosses between region and pool survives the crossing."""

import pytest

from engine.delivery.wire import (
    Header,
    decode_header,
    decode_report,
    decode_resume,
    encode_header,
    encode_report,
    encode_resume,
)
from engine.values.outcome import Outcome, OutcomeKind, Scope
from engine.values.reply import Reply

ROW = (1 << 48 | 7, 3, "recipient", 550, "5.1.1", "no", "mx.example.net", 2, 1_800_000_000_000, 0, 41)
OUTCOME = Outcome(
    1 << 48 | 7,
    OutcomeKind.BOUNCED,
    Scope.RECIPIENT,
    Reply(550, "5.1.1", "no"),
    2,
    "mx.example.net",
    1_800_000_000_000,
)


def test_header() -> None:
    header = Header(batch=5, epoch=3, sites={0: "google", 70_000: "mx:example.net"})
    assert decode_header(encode_header(header)) == header


def test_report() -> None:
    report = decode_report(encode_report(9, 3, [ROW]))
    assert (report.sequence, report.epoch) == (9, 3)
    assert report.outcomes == (OUTCOME,)
    assert report.batch_numbers == (41,)


@pytest.mark.parametrize(
    ("flags", "duplicate", "relayed"),
    [(0, False, False), (1, True, False), (2, False, True), (3, True, True), (True, True, False)],
)
def test_flags(flags: int, duplicate: bool, relayed: bool) -> None:
    """A pool of an earlier version says True for a possible duplicate."""
    (outcome,) = decode_report(encode_report(9, 3, [(*ROW[:9], flags, 41)])).outcomes
    assert outcome == OUTCOME._replace(possible_duplicate=duplicate, is_relayed=relayed)


def test_resume() -> None:
    state = decode_resume(encode_resume(9, [ROW], [1, (1 << 64) - 1]))
    assert state.outcomes == (OUTCOME,)
    assert state.in_progress == (1, (1 << 64) - 1)
    assert (state.sequence, state.batch_numbers) == (9, (41,))

"""Message records of every version that was ever written stay readable: golden bytes in tests/golden/spool."""

import json
from pathlib import Path

import msgpack
import pytest

from engine.spool.records import Record, UnknownVersion, decode_record
from engine.values.options import Options

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "spool" / "message-records.json").read_text())
STORED = Record(
    id=5,
    queue=7,
    due_ms=1_700_000_300_000,
    attempts=2,
    flags=1,
    accepted_ms=1_700_000_000_000,
    expires_ms=1_700_432_000_000,
    sender="bounce@example.com",
    recipient="ann@example.org",
    content=[3, 4096, 10240, 0xDEADBEEF],
    last=[1_700_000_000_500, 451, "4.7.1", "greylisted", "mx.example.org", 5],
)
CAMPAIGN = Record(
    id=5,
    queue=9,
    due_ms=1_700_000_000_000,
    attempts=0,
    flags=0,
    accepted_ms=1_700_000_000_000,
    expires_ms=1_700_432_000_000,
    sender="bounce@example.com",
    recipient="jörg@example.org",
    content=[12, ["Jörg", "Köln"]],
    last=None,
)
WISHES = Options(flags=9, ret="HDRS", envid="QQ314159", notify=6, orcpt="rfc822;ann@example.com")


@pytest.mark.parametrize(
    ("version", "name", "record"),
    [
        ("1", "stored", STORED),
        ("1", "campaign", CAMPAIGN),
        ("2", "stored", STORED._replace(options=WISHES)),
        ("2", "campaign", CAMPAIGN),
    ],
)
def test_golden_records(version: str, name: str, record: Record) -> None:
    data = bytes.fromhex(GOLDEN[version][name])
    assert decode_record(5, data) == record
    if version == "2":
        assert record.encode() == data


def test_a_record_of_the_future_is_refused() -> None:
    with pytest.raises(UnknownVersion, match="version 3"):
        decode_record(1, msgpack.packb((3, 1)))

"""The formats on disk: every version that was ever released can be read, and the newest is written as it was.

`golden/message-v<N>.json` holds message records of version N (hex) with the fields that they must decode to;
`golden/rows-v<N>.json` one row of each other table; `golden/spool-v<N>.mdb.gz` a whole index. A new version adds a file
(`python -m tests.unit.spool.test_golden` writes those that are missing); a row that exists is never changed.
"""

import gzip
import json
import tempfile
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest

from engine.failover.handover import MakeOffer, SettleOffer
from engine.failover.messages import Copy
from engine.failover.spans import of_ids
from engine.failover.store import Accept, Adopt, Apply, Release, SaveEpoch
from engine.spool import records
from engine.spool.accepting import key_digest
from engine.spool.audit import audit
from engine.spool.batches import Remember
from engine.spool.bodies import segment_path
from engine.spool.draft import META, Totals
from engine.spool.due_blocks import changes_of, entries_of, journal_rows, pack_columns
from engine.spool.environment import Environment
from engine.spool.errors import SpoolError
from engine.spool.records import Record, UnknownVersion, decode_record, due_key, u48
from engine.spool.settling import inflight_key
from engine.values.ids import make_id
from engine.values.options import Notify, Options
from engine.values.outcome import OutcomeKind
from engine.values.suppression import Level
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
    packed,
    settlement,
)

INDEX_VERSION = 9  # of the index as a whole: one more when a table is added, or one's rows change
REGIONS = {"own": 1, "peer": 2}
ROWS_VERSION = 2
GOLDEN = Path(__file__).parent / "golden"
MESSAGES = sorted(GOLDEN.glob("message-v*.json"))
SPOOLS = sorted(GOLDEN.glob("spool-v*.mdb.gz"))

DUE = [due_key(7, NOW_MS + i // 2, make_id(1, 3 * i + 1)) + u48(NOW_MS + 1000 - i) for i in range(4)]

SAMPLES = [
    Record(
        id=make_id(1, 1),
        queue=1,
        due_ms=NOW_MS,
        attempts=0,
        flags=0,
        accepted_ms=NOW_MS,
        expires_ms=NOW_MS + 1,
        sender="",
        recipient="a@example.net",
        content=[1, 0, 1, 0],
        last=None,
    ),
    Record(
        id=make_id(32767, (1 << 48) - 1),
        queue=(1 << 32) - 1,
        due_ms=(1 << 48) - 1,
        attempts=70_000,
        flags=1,
        accepted_ms=0,
        expires_ms=(1 << 48) - 1,
        sender="grüße@xn--bcher-kva.example",
        recipient="用户@example.net",
        content=[(1 << 32) - 1, 1 << 40, 50 << 20, (1 << 32) - 1],
        last=[NOW_MS, 451, "4.7.1", "come back later; später", "mx1.example.net", 65535],
    ),
    Record(
        id=make_id(2, 3),
        queue=9,
        due_ms=NOW_MS,
        attempts=1,
        flags=0,
        accepted_ms=NOW_MS,
        expires_ms=NOW_MS,
        sender="news@example.com",
        recipient="b@example.net",
        content=[4, ["Ann", "", "x" * 300]],
        last=[NOW_MS, 0, "", "connection refused", "", 0],
    ),
    Record(
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
        options=Options(flags=9, ret="HDRS", envid="QQ314159", notify=6, orcpt="rfc822;ann@example.com"),
    ),
    Record(
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
    ),
]


def fields_of(record: Record) -> dict[str, Any]:
    options = None if record.options is None else list(astuple(record.options))
    return {**record._asdict(), "options": options}


def version_of(path: Path) -> int:
    return int(path.name.split("-v")[1].split(".")[0])


def test_there_is_a_golden_file_for_every_version() -> None:
    assert [version_of(path) for path in MESSAGES] == list(range(1, records.RECORD_VERSION + 1))


@pytest.mark.parametrize("path", MESSAGES, ids=lambda path: path.stem)
def test_message_records_of_every_version_are_read(path: Path) -> None:
    for row in json.loads(path.read_text(encoding="utf-8")):
        record = decode_record(row["fields"]["id"], bytes.fromhex(row["hex"]))
        decoded = fields_of(record)
        assert {name: decoded[name] for name in row["fields"]} == row["fields"]


def test_message_records_are_written_as_they_were() -> None:
    rows = json.loads((GOLDEN / f"message-v{records.RECORD_VERSION}.json").read_text(encoding="utf-8"))
    assert [row["hex"] for row in rows] == [record.encode().hex() for record in SAMPLES]


def test_an_unknown_version_is_refused_by_name() -> None:
    with pytest.raises(UnknownVersion, match="version 99"):
        decode_record(1, records.pack((99, 1, 2)))


@pytest.mark.parametrize("path", SPOOLS, ids=lambda path: path.stem)
def test_an_index_of_every_version_is_opened_and_drained(tmp_path: Path, path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(gzip.decompress(path.read_bytes()))
    (tmp_path / "bodies").mkdir()
    segment_path(tmp_path / "bodies", 1).write_bytes(bytes(4096))  # the index alone is golden
    assert_conserved(tmp_path, queued=6, delivered=1, bounced=1)
    spool = open_spool(tmp_path)
    assert spool.epoch == 2
    assert spool.counts()["accepted"] == 8
    assert spool.accept(batch(b"k" * 16)).result(PATIENCE_S).repeated
    assert not spool.accept(batch(b"K" * 16, keys=["item"])).result(PATIENCE_S).due_keys
    has_copies = version_of(path) >= 6
    unsafe = spool.durable(REGIONS).unsafe
    assert bool(unsafe) is has_copies
    for key, spans in unsafe:  # not due before its copy is safe
        spool.failover(Release(key, spans), REGIONS).result(PATIENCE_S)
    offers = spool.offers().offers
    assert [count for row in offers for _, count in row.spans] == [1] * (version_of(path) >= 7)
    for row in offers:
        spool.hand_over(SettleOffer(row.number, ()), REGIONS).result(PATIENCE_S)
    assert spool.put_campaign(CAMPAIGN).result(PATIENCE_S) == 1
    assert spool.accept_chunk(chunk(1, 0, 3)).result(PATIENCE_S).repeated
    assert spool.get_state("daily/3/gmail") == (77).to_bytes(8, "big")
    flags = {}
    attempts = {}
    for key in due(spool):
        record = spool.message(id_of(key))
        assert record is not None
        flags[record.recipient] = record.flags
        attempts[record.recipient] = record.attempts
    assert flags == {
        "u0.2@example.net": 0,
        "u0.3@example.net": 1,
        "n0.0@example.org": 0,
        "n0.1@example.org": 0,
        "n0.2@example.org": 0,
        "u0.0@example.com": 0,
    }
    assert [name for name, count in attempts.items() if count] == ["u0.2@example.net"]
    events = [event for _, chunk_ in spool.read_outbox(10) for event in chunk_]
    assert [event[1] for event in events] == [
        OutcomeKind.DELIVERED,
        OutcomeKind.BOUNCED,
        OutcomeKind.DEFERRED,
    ]
    spool.settle([settlement(key) for key in due(spool)]).result(PATIENCE_S)
    adopted = spool.failover(Adopt("peer", 2, 3), REGIONS).result(PATIENCE_S)
    assert [count for _, count in adopted.spans] == [2] * has_copies
    assert len(list(due(spool))) == 2 * has_copies
    spool.settle([settlement(key) for key in due(spool)]).result(PATIENCE_S)
    spool.close()
    assert_conserved(tmp_path, delivered=7 + 2 * has_copies, bounced=1)


def golden_rows() -> dict[str, str]:
    """Keys and values other than messages, by name."""
    totals = Totals(3)
    totals.epoch, totals.group, totals.next_seq, totals.queues = 4, 5, 6, 7
    totals.campaigns, totals.segment, totals.outbox, totals.accepted = 8, 9, 10, 11
    totals.counts = [0, 1, 2, 3, 4, 5, 6]
    return {
        "meta": totals.encode().hex(),
        "due key": due_key(0x01020304, 0x0A0B0C0D0E0F, make_id(1, 2)).hex(),
        "due block": pack_columns(b"".join([row[4:] for row in DUE]), 20).hex(),
        "due journal +": journal_rows({row[:18]: row[18:] for row in DUE})[0].hex(),
        "due journal -": journal_rows({row[:18]: None for row in DUE})[0].hex(),
        "in-flight key": inflight_key(2, 3).hex(),
        "key digest": key_digest("default", "order-1").hex(),
    }


def test_other_rows_are_written_as_they_were() -> None:
    assert golden_rows() == json.loads((GOLDEN / f"rows-v{ROWS_VERSION}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("rows-v*.json")), ids=lambda path: path.stem)
def test_other_rows_of_every_version_are_read(path: Path) -> None:
    rows = {name: bytes.fromhex(row) for name, row in json.loads(path.read_text(encoding="utf-8")).items()}
    assert Totals.decode(rows["meta"]).counts[:8] == [0, 1, 2, 3, 4, 5, 6, 0]
    if version_of(path) >= 2:
        assert entries_of(DUE[0][:18], rows["due block"]) == [row[4:] for row in DUE]
        assert changes_of(rows["due journal +"]) == {row[:18]: row[18:] for row in DUE}
        assert changes_of(rows["due journal -"]) == {row[:18]: None for row in DUE}


def test_a_spool_of_a_later_format_is_refused(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    with spool._env.write() as txn:
        txn.put(META, records.pack((99, 1)), db=spool._env.db["meta"])
    spool.close()
    with pytest.raises(SpoolError, match="format 99: this release reads 1 to 2"):
        open_spool(tmp_path)
    assert "format 99" in audit(tmp_path).problems[0]


def copy_of_a_peer(directory: Path) -> Copy:
    """What a peer that has accepted two messages sends to its standby."""
    directory.mkdir()
    spool = open_spool(directory, region=REGIONS["peer"])
    key = b"p" * 16
    accepted, _ = spool.failover(Accept(key, batch(key, letters=[letter(3)], recipients=2)), REGIONS).result()
    found, payload = spool.exporter().messages(accepted.spans, [key])
    spool.close()
    return Copy(found, payload, key)


def write_spool(directory: Path) -> bytes:
    """An index with something in every table."""
    spool = open_spool(directory, journal=4)
    first = batch(b"k" * 16, letters=[letter(1)], recipients=4)
    wish = Options(notify=Notify.FAILURE)
    keys = accept(spool, replace(first, items=[first.items[0]._replace(options=(wish,) * 4)]))
    key = b"u" * 16
    unsafe = batch(key, letters=[letter(2)], domain="example.com", keys=["item"])
    unsafe = replace(unsafe, items=[unsafe.items[0]._replace(recipients=("u0.0@example.com",))])
    spool.failover(SaveEpoch(3), REGIONS).result()
    spool.failover(Accept(key, unsafe), REGIONS).result()
    spool.failover(Apply("peer", 1, 1, 0, copy_of_a_peer(directory / "peer")), REGIONS).result()
    parts = spool.accept_chunk(chunk(spool.put_campaign(CAMPAIGN).result(), 0, 3)).result()
    offer = MakeOffer(1, "peer", b"disk", of_ids([id_of(parts.due_keys[0])]))
    spool.hand_over(offer, REGIONS).result()
    spool.dispatch(1, packed([id_of(key) for key in keys]), {"daily/3/gmail": 77}).result()
    spool.settle(
        [
            settlement(keys[0], batch_no=1)._replace(remember=Remember(NOW_MS + 1, "gmail")),
            settlement(keys[1], OutcomeKind.BOUNCED, batch_no=1)._replace(suppress=Level.TENANT),
            settlement(keys[2], OutcomeKind.DEFERRED, batch_no=1),
        ]
    ).result()
    spool.close()
    return (directory / "data.mdb").read_bytes()


def write_missing() -> None:
    messages = GOLDEN / f"message-v{records.RECORD_VERSION}.json"
    if not messages.exists():
        rows = [{"fields": fields_of(record), "hex": record.encode().hex()} for record in SAMPLES]
        messages.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    spool = GOLDEN / f"spool-v{INDEX_VERSION}.mdb.gz"
    if not spool.exists():
        with tempfile.TemporaryDirectory() as directory:
            spool.write_bytes(gzip.compress(write_spool(Path(directory)), mtime=0))
    rows_file = GOLDEN / f"rows-v{ROWS_VERSION}.json"
    if not rows_file.exists():
        rows_file.write_text(json.dumps(golden_rows(), indent=1) + "\n", encoding="utf-8")


def test_every_table_is_in_the_golden_index(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(gzip.decompress(SPOOLS[-1].read_bytes()))
    env = Environment(tmp_path, map_size=1 << 20)
    with env.read() as txn:
        empty = [name for name, db in env.db.items() if txn.stat(db)["entries"] == 0]
    env.close()
    assert empty == []


if __name__ == "__main__":
    write_missing()

"""The due index: changes wait in its journal and are merged many at a time, and damage holds up nothing else.

That it always reads as it must is in tests/property/test_due_index.py.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from engine.spool.due_blocks import BLOCK, pack_columns, unpack_columns
from engine.spool.due_index import NEVER_MS, ROWS_AT_ONCE, DueDraft, DueIndex
from engine.spool.environment import Environment
from engine.spool.records import DamagedRecord, due_key, u48
from engine.values.outcome import OutcomeKind
from tests.support.spools import accept, assert_conserved, batch, due, open_spool, settlement

QUEUES = 200
JOURNAL = 4000


@pytest.fixture
def env(tmp_path: Path) -> Iterator[Environment]:
    made = Environment(tmp_path, map_size=16 << 20)
    yield made
    made.close()


def group(
    index: DueIndex, env: Environment, *, new: Sequence[bytes] = (), gone: Sequence[bytes] = ()
) -> DueDraft:
    draft = DueDraft()
    draft.add_new((key, u48(99)) for key in new)
    for key in gone:
        draft.remove(key)
    with env.write() as txn:
        index.write_out(draft, txn)
    index.end_group(draft)
    return draft


def entries(env: Environment, table: str) -> int:
    with env.read() as txn:
        return int(txn.stat(env.db[table])["entries"])


def one_for_each(number: int) -> list[bytes]:
    return [due_key(queue, 5, number * QUEUES + queue) for queue in range(1, QUEUES + 1)]


def test_a_group_for_many_queues_changes_few_of_them_in_the_blocks(env: Environment) -> None:
    index = DueIndex(env, JOURNAL)
    group(index, env, new=one_for_each(0))
    assert entries(env, "due") == 0
    assert entries(env, "due_journal") < QUEUES // 50
    merged = []
    for number in range(1, 100):
        draft = group(index, env, new=one_for_each(number))
        merged.append(len(draft.merged_queues))
        assert len(index._changes) <= 1.5 * JOURNAL
        assert entries(env, "due_journal") <= 3 * JOURNAL // 50
    assert 0 < max(merged) <= QUEUES // 8
    assert len(index.rows(b"", 10**6)) == 100 * QUEUES
    assert entries(env, "due") < 100 * QUEUES // 10  # many messages to a block


def test_what_comes_and_goes_at_once_hardly_ever_reaches_the_blocks(env: Environment) -> None:
    index = DueIndex(env, 1000)
    for number in range(100):
        keys = one_for_each(number)
        group(index, env, new=keys)
        group(index, env, gone=keys)
        assert entries(env, "due") + len(index._changes) <= QUEUES
        assert entries(env, "due_journal") <= 100
    assert index.rows(b"", 10) == []


def test_a_queue_that_nobody_reads_remembers_nothing_of_what_has_gone(env: Environment) -> None:
    index = DueIndex(env, 100_000)
    group(index, env, new=one_for_each(0))
    for number in range(1, 30):
        group(index, env, new=one_for_each(number))
        group(index, env, gone=one_for_each(number))
        assert sum(map(len, index._queues.values())) <= 3 * QUEUES
    group(index, env, gone=one_for_each(0))
    assert index._queues == {}


def test_the_journal_stays_bounded_when_a_campaign_comes_after_mail_that_left_at_once(
    env: Environment,
) -> None:
    """A round that had next to nothing to do when it began, and much more for each of its queues as it goes."""
    index = DueIndex(env, JOURNAL)
    number = 0
    while not index._round_end:
        group(index, env, new=one_for_each(number))
        group(index, env, gone=one_for_each(number))
        number += 1
    assert len(index._changes) <= QUEUES
    for _ in range(15 * JOURNAL // QUEUES):
        number += 1
        for half in (one_for_each(number)[::2], one_for_each(number)[1::2]):
            group(index, env, new=half)
            assert index._journal <= 2 * JOURNAL + QUEUES
            assert len(index._changes) <= 1.5 * JOURNAL


def test_the_journal_of_single_messages_is_dropped_a_part_at_a_time(env: Environment) -> None:
    index = DueIndex(env, 1000)
    left = [0]
    for id_ in range(1, 2600):
        group(index, env, new=[due_key(id_ % 7, 5, id_)])
        left.append(entries(env, "due_journal"))
    assert max(left) <= 2000
    assert min(now - before for before, now in itertools.pairwise(left)) == 1 - ROWS_AT_ONCE
    assert left[-1] < 1000  # all of the first round


def test_a_queue_that_gets_all_is_merged_in_full_blocks(env: Environment) -> None:
    index = DueIndex(env, 500)
    keys = [due_key(7, 5, id_) for id_ in range(1, 6001)]
    for start in range(0, len(keys), 100):
        group(index, env, new=keys[start : start + 100])
    assert [key for key, _ in index.scan(7, None, NEVER_MS, 10_000)] == keys
    assert entries(env, "due") <= 6000 // BLOCK + 1


def test_a_queue_that_gets_all_is_merged_a_part_at_a_time(
    env: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.spool.due_index.AT_ONCE", 300)
    index = DueIndex(env, 2000)
    keys = [due_key(queue, 5, id_) for queue in (7, 8) for id_ in range(1, 1001)]
    parts = []
    for start in range(0, len(keys), 100):
        parts.append(len(group(index, env, new=keys[start : start + 100]).merged))
    for number in range(60):
        parts.append(len(group(index, env, gone=keys[number * 10 : number * 10 + 10]).merged))
        assert [key for key, _ in index.rows(b"", 10_000)] == keys[number * 10 + 10 :]
    assert max(parts) <= 600
    assert sum(parts) >= 1900
    assert entries(env, "due_journal") <= 100


def test_rows_of_an_earlier_release_are_read_and_merged(env: Environment) -> None:
    old = [due_key(1, due_ms, due_ms) for due_ms in range(1, 300)]
    with env.write() as txn:
        for key in old:
            txn.put(key, u48(99), db=env.db["due"])
    index = DueIndex(env, 4)
    assert [key for key, _ in index.rows(b"", 1000)] == old
    assert index.first_after(1, old[10]) == 12
    group(index, env, new=[due_key(1, 300 + n, 300 + n) for n in range(50)], gone=old[:100])
    for _ in range(8):
        group(index, env, gone=[due_key(9, 1, 1)])
    assert [key[4:10] for key, _ in index.rows(b"", 1000)] == [u48(n) for n in range(101, 350)]
    assert entries(env, "due") < 210


def test_a_damaged_block_holds_up_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = open_spool(tmp_path, journal=2)
    for number in range(6):
        accept(spool, batch(recipients=3, domain=f"d{number}.example"))
    spool.put_state("x", b"1").result()
    with spool._env.write() as txn, txn.cursor(db=spool._env.db["due"]) as cursor:
        assert cursor.first()
        broken = bytes(cursor.key())
        cursor.put(broken, b"damaged")
    spool.close()
    spool = open_spool(tmp_path, journal=2)
    keys = due(spool)
    assert len(keys) == 15
    assert "cannot be read" in caplog.text
    accept(spool, batch(recipients=3, domain="d0.example"))  # into its queue
    for _ in range(10):
        accept(spool, batch(domain="d9.example"))
    assert spool.settle([settlement(key) for key in due(spool)]).result().stale == 0
    assert due(spool) == []
    with spool._env.read() as txn:
        assert bytes(txn.get(broken, db=spool._env.db["due"])) == b"damaged"  # for the audit to tell
    spool.close()
    with pytest.raises(AssertionError, match="never due"):
        assert_conserved(tmp_path)


def test_a_damaged_row_of_the_journal_holds_up_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = open_spool(tmp_path, journal=1000)
    for _ in range(3):
        accept(spool, batch(recipients=2))
    with spool._env.write() as txn:
        txn.put((2).to_bytes(8, "big"), b"+damaged", db=spool._env.db["due_journal"])
    spool.close()
    spool = open_spool(tmp_path, journal=1000)
    assert len(due(spool)) == 4
    assert "row 2 of the due journal" in caplog.text
    spool.close()
    with pytest.raises(AssertionError, match="never due"):
        assert_conserved(tmp_path)


def test_a_due_key_that_a_lost_removal_left_behind_goes_when_it_is_met(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = open_spool(tmp_path, journal=1000)
    gone, deferred, other = accept(spool, batch(recipients=3))
    spool.settle([settlement(gone), settlement(deferred, OutcomeKind.DEFERRED)]).result()
    with spool._env.write() as txn, txn.cursor(db=spool._env.db["due_journal"]) as cursor:
        assert cursor.last()
        assert cursor.value()[:1] == b"-"
        cursor.put(bytes(cursor.key()), b"-damaged")
    spool.close()
    spool = open_spool(tmp_path, journal=1000)
    assert len(due(spool)) == 4
    settled = [settlement(key, OutcomeKind.EXPIRED) for key in (gone, deferred, other)]
    assert spool.settle(settled).result().stale == 2
    (left,) = due(spool)
    assert left[10:] == deferred[10:]
    assert "due without a record" in caplog.text
    assert "due at another time" in caplog.text
    spool.close()
    assert_conserved(tmp_path, delivered=1, expired=1, queued=1)


def test_columns_that_are_not_of_this_width_are_damaged() -> None:
    for value in (b"", pack_columns(b"ab", 2)[:-1], pack_columns(bytes(6), 3), b"\0\0\0\0\0"):
        with pytest.raises(DamagedRecord):
            unpack_columns(value, 2)

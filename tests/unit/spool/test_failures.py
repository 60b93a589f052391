"""What goes wrong inside a group: a full map, failing operations, syncs and commits.

Nothing is applied twice, nothing is lost, nothing is answered wrongly, and the spool goes on.
"""

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from engine.spool import bodies
from engine.spool.draft import Draft
from engine.spool.environment import Environment, Error, MapFull
from engine.spool.errors import SpoolError, SpoolFailed, SpoolFull
from engine.spool.records import MAYBE_SENT
from engine.spool.store import Spool
from engine.values.outcome import OutcomeKind
from tests.support.clock import ManualClock
from tests.support.spools import (
    CAMPAIGN,
    PATIENCE_S,
    Gate,
    accept,
    as_one_group,
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


def rows(spool: Spool, table: str) -> int:
    with spool._env.read() as txn:
        return int(txn.stat(spool._env.db[table])["entries"])


def assert_bodies_readable(spool: Spool) -> None:
    """Every queued message's body is there and whole; ends the test otherwise."""
    reader = spool.reader()
    for key in due(spool):
        record = spool.message(id_of(key))
        assert record is not None
        reader.body(record.content)
    reader.close()


def accept_until_refused(spool: Spool, recipients: int, keys: list[bytes]) -> None:
    for number in range(1000):
        keys += accept(spool, batch(letters=[letter(number)], recipients=recipients))


# -- a full map


def test_a_group_that_meets_a_full_map_is_applied_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.spool.environment.FIRST_MAP", 192 << 10)
    spool = open_spool(tmp_path)
    keys = accept(spool, batch(letters=[letter(1)], recipients=4))
    ids = [id_of(key) for key in keys]
    spool.dispatch(1, packed(ids[:2]), {}).result(PATIENCE_S)
    spool.dispatch(2, packed(ids[2:]), {}).result(PATIENCE_S)
    map_bytes = spool.sizes()["map_bytes"]
    spool.close()
    gate = Gate()
    spool = open_spool(tmp_path, step=gate)
    keys = due(spool)
    futures = as_one_group(
        spool,
        gate,
        lambda: spool.dispatch(1, packed(ids[:2]), {"daily/3/x": 2}),
        lambda: spool.settle([settlement(key, batch_no=1) for key in keys[:2]]),
        lambda: spool.accept(batch(letters=[letter(2)], recipients=2000)),
        lambda: spool.dispatch(2, packed(ids[2:]), {}),
        lambda: spool.settle([settlement(keys[2], OutcomeKind.DEFERRED, batch_no=2)]),
    )
    results = [future.result(PATIENCE_S) for future in futures]
    assert spool.sizes()["map_bytes"] > map_bytes
    assert results[1].stale == results[4].stale == 0
    assert rows(spool, "inflight") == 1
    assert spool._groups.inflight == {2: {ids[3]}}
    events = [event for _, chunk in spool.read_outbox(10) for event in chunk]
    assert [event[2] for event in events] == ids[:3]
    spool.close()
    assert_conserved(tmp_path, queued=2002, delivered=2)


def test_a_commit_that_finds_the_map_full_is_made_again_in_a_larger_one(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    map_bytes = spool.sizes()["map_bytes"]
    commits = []

    def commit(draft: Draft) -> None:
        commits.append(draft.totals.group)
        if len(commits) == 1:
            draft.txn.abort()
            raise MapFull("mdb_txn_commit: MDB_MAP_FULL")
        draft.txn.commit()

    vars(spool._groups)["commit_group"] = commit
    spool._env.limit = 2 * map_bytes
    keys = accept(spool, batch(letters=[letter(1)], recipients=3))
    assert len(commits) == 2
    assert spool.sizes()["map_bytes"] == 2 * map_bytes
    assert due(spool) == keys
    spool.close()
    assert_conserved(tmp_path, queued=3)


def test_bookkeeping_of_a_group_that_was_not_written_is_undone(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    keys = accept(spool, batch(letters=[letter(1)], recipients=2))
    ids = [id_of(key) for key in keys]
    spool.dispatch(1, packed(ids), {}).result(PATIENCE_S)
    with commits_fail(spool, written=False):
        for future in (
            spool.settle([settlement(key, batch_no=1) for key in keys]),
            spool.dispatch(2, packed(ids), {}),
        ):
            with pytest.raises(SpoolError, match="not written"):
                future.result(PATIENCE_S)
    assert spool._groups.inflight == {1: set(ids)}
    assert rows(spool, "inflight") == 1
    spool.settle([settlement(key, batch_no=1) for key in keys]).result(PATIENCE_S)
    assert spool._groups.inflight == {}
    assert rows(spool, "inflight") == 0
    spool.close()
    assert_conserved(tmp_path, delivered=2)


def test_a_segment_number_is_never_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.spool.environment.FIRST_MAP", 192 << 10)
    spool = open_spool(tmp_path, segment_size=1000)
    [first] = accept(spool, batch(letters=[letter(1, 1200)]))
    keys = accept(spool, batch(letters=[letter(2, 1200)], recipients=2000))  # rolls, then the map is full
    record = spool.message(id_of(keys[0]))
    assert record is not None
    used = record.content[0]
    spool.settle([settlement(key) for key in keys]).result(PATIENCE_S)
    [later] = accept(spool, batch(letters=[letter(3)]))
    record = spool.message(id_of(later))
    assert record is not None
    assert record.content[0] > used
    assert sorted(due(spool)) == sorted([first, later])
    assert_bodies_readable(spool)
    spool.close()


def test_a_map_at_its_limit_refuses_and_goes_on(tmp_path: Path) -> None:
    spool = open_spool(tmp_path, map_size=1 << 20, watermark=0.5)
    keys: list[bytes] = []
    with pytest.raises(SpoolFull, match=r"spool full \(map\): \d+ bytes are used, \d+ may be") as refused:
        accept_until_refused(spool, 20, keys)
    assert refused.value.what == "map"
    with pytest.raises(SpoolFull, match="map"):
        spool.put_campaign(replace(CAMPAIGN)).result(PATIENCE_S)
    for start in range(0, len(keys), 50):
        spool.settle([settlement(key) for key in keys[start : start + 50]]).result(PATIENCE_S)
        spool.trim_outbox(1 << 40).result(PATIENCE_S)
    accept(spool, batch())
    spool.close()
    assert_conserved(tmp_path, delivered=len(keys), queued=1)


def test_one_operation_too_large_for_the_map_is_refused_alone(tmp_path: Path) -> None:
    gate = Gate()
    spool = open_spool(tmp_path, step=gate, map_size=1 << 20, watermark=0.9)
    good, huge, after = as_one_group(
        spool,
        gate,
        lambda: spool.accept(batch(letters=[letter(1)], recipients=10)),
        lambda: spool.accept(batch(letters=[letter(2)], recipients=20_000)),
        lambda: spool.accept(batch(letters=[letter(3)], recipients=10)),
    )
    assert len(good.result(PATIENCE_S).due_keys) == len(after.result(PATIENCE_S).due_keys) == 10
    with pytest.raises(SpoolFull, match="map"):
        huge.result(PATIENCE_S)
    assert_bodies_readable(spool)
    spool.close()
    assert_conserved(tmp_path, queued=20)


# -- a failing operation


def test_a_failing_operation_fails_alone(tmp_path: Path) -> None:
    gate = Gate()
    spool = open_spool(tmp_path)
    [key, other] = accept(spool, batch(letters=[letter(1)], recipients=2))
    spool.close()
    spool = open_spool(tmp_path, step=gate)
    no_due_time = settlement(other, OutcomeKind.DEFERRED)._replace(next_due_ms=None)
    bad_item = batch().items[0]._replace(domains=())
    first, long_key, half_done, bad_accept, settled, last = as_one_group(
        spool,
        gate,
        lambda: spool.accept(batch(letters=[letter(2)])),
        lambda: spool.put_state("k" * 600, b""),
        lambda: spool.settle([settlement(key), no_due_time]),
        lambda: spool.accept(replace(batch(), items=[bad_item])),
        lambda: spool.settle([settlement(key, OutcomeKind.BOUNCED)]),
        lambda: spool.accept(batch(letters=[letter(3)])),
    )
    with pytest.raises(Error):
        long_key.result(PATIENCE_S)
    with pytest.raises(ValueError, match="without a next due time"):
        half_done.result(PATIENCE_S)
    with pytest.raises(ValueError, match=r"zip\(\)"):
        bad_accept.result(PATIENCE_S)
    assert settled.result(PATIENCE_S).stale == 0
    assert len(first.result(PATIENCE_S).due_keys) == len(last.result(PATIENCE_S).due_keys) == 1
    assert len(due(spool)) == 3
    assert_bodies_readable(spool)
    spool.close()
    assert_conserved(tmp_path, queued=3, bounced=1)


def test_what_fails_only_when_the_group_is_written_out_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    spool = open_spool(tmp_path, step=gate)

    def break_counts(draft: Draft) -> None:
        draft.live(77, -1)  # more settled than accepted: cannot be written as an unsigned number

    first, broken, last = as_one_group(
        spool,
        gate,
        lambda: spool.accept(batch()),
        lambda: spool._writer.submit(break_counts),
        lambda: spool.accept(batch()),
    )
    assert first.result(PATIENCE_S).due_keys
    assert last.result(PATIENCE_S).due_keys
    with pytest.raises(OverflowError):
        broken.result(PATIENCE_S)
    spool.close()
    assert_conserved(tmp_path, queued=2)


def test_a_caller_who_gave_up_waiting_stops_nobody(tmp_path: Path) -> None:
    gate = Gate()
    spool = open_spool(tmp_path, step=gate)
    first, second = as_one_group(
        spool, gate, lambda: given_up(spool.accept(batch())), lambda: spool.accept(batch())
    )
    assert first.cancelled()
    second.result(PATIENCE_S)
    spool.close()
    assert_conserved(tmp_path, queued=2)


def given_up(future):  # type: ignore[no-untyped-def]
    future.cancel()
    return future


def test_answers_that_nobody_can_take_do_not_stop_the_writer(tmp_path: Path) -> None:
    lost: list[int] = []

    def deliver(answers: list[Callable[[], None]]) -> None:
        if not lost:
            lost.append(len(answers))
            raise RuntimeError("Event loop is closed")
        for answer in answers:
            answer()

    spool = open_spool(tmp_path, deliver=deliver)
    spool.accept(batch())
    while not lost:
        os.sched_yield()
    accept(spool, batch())
    spool.close()
    assert_conserved(tmp_path, queued=2)


# -- a failing commit


@contextmanager
def commits_fail(spool: Spool, *, written: bool) -> Iterator[None]:
    """Commits report an error, whether they went through or not."""

    def commit(draft: Draft) -> None:
        if written:
            draft.txn.commit()
        else:
            draft.txn.abort()
        raise Error("mdb_txn_commit: Input/output error")

    vars(spool._groups)["commit_group"] = commit
    try:
        yield
    finally:
        del vars(spool._groups)["commit_group"]


def test_a_failed_commit_that_went_through_is_acknowledged(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    reader = spool.reader()
    before = spool._env._env.info()["last_txnid"]
    with commits_fail(spool, written=True):
        [key] = accept(spool, batch(letters=[letter(1)]))
        # what was seen may not be on the disk yet: another commit has carried it there
        assert spool._env._env.info()["last_txnid"] == before + 2
        assert reader.fetch(packed([id_of(key)]))[0] is not None  # also by those who hold the environment
        spool.settle([settlement(key)]).result(PATIENCE_S)
    [key] = accept(spool, batch())
    assert spool.counts()["delivered"] == 1
    reader.close()
    assert due(spool) == [key]
    spool.close()
    assert_conserved(tmp_path, queued=1, delivered=1)


def test_a_failed_commit_that_did_not_go_through_is_refused(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    [key] = accept(spool, batch(b"a" * 16, letters=[letter(1)]))
    with commits_fail(spool, written=False):
        with pytest.raises(SpoolError, match="not written"):
            accept(spool, batch(b"b" * 16))
        with pytest.raises(SpoolError, match="not written"):
            spool.settle([settlement(key)]).result(PATIENCE_S)
    assert due(spool) == [key]
    assert not spool.accept(batch(b"b" * 16)).result(PATIENCE_S).repeated
    assert spool.settle([settlement(key)]).result(PATIENCE_S).stale == 0
    assert_bodies_readable(spool)
    spool.close()
    assert_conserved(tmp_path, queued=1, delivered=1)


def test_if_the_outcome_cannot_be_seen_nothing_more_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = open_spool(tmp_path)
    accept(spool, batch())
    with commits_fail(spool, written=True), monkeypatch.context() as patch:
        patch.setattr(Environment, "_open", _no_open)
        with pytest.raises(SpoolFailed, match="Input/output error"):
            accept(spool, batch())
    with pytest.raises(SpoolFailed):
        accept(spool, batch())
    spool.close()
    spool = open_spool(tmp_path)
    assert len(due(spool)) == 2
    spool.close()
    assert_conserved(tmp_path, queued=2)


def _no_open(self: Environment) -> None:
    raise OSError(errno.EIO, "Input/output error")


def test_a_write_of_the_index_that_really_fails(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    keys = accept(spool, batch(letters=[letter(1)], recipients=500))
    with largest_file((tmp_path / "data.mdb").stat().st_size), pytest.raises(SpoolError, match="not written"):
        accept_until_refused(spool, 500, keys)
    assert len(due(spool)) == len(keys)
    keys += accept(spool, batch(letters=[letter(3)], recipients=500))
    assert_bodies_readable(spool)
    spool.close()
    assert_conserved(tmp_path, queued=len(keys))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process can be written beyond that size (EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# -- bodies


def test_bodies_for_which_there_is_no_room_are_refused(tmp_path: Path) -> None:
    spool = open_spool(tmp_path, segment_size=8 << 20)
    [key] = accept(spool, batch(letters=[letter(1)]))
    with largest_file(1 << 20):
        with pytest.raises(SpoolFull, match=r"spool full \(disk\): \d+ bytes are free, \d+ must stay free"):
            accept(spool, batch(letters=[letter(2, 2 << 20)]))
        spool.settle([settlement(key)]).result(PATIENCE_S)
    accept(spool, batch(letters=[letter(3, 2 << 20)]))
    assert_bodies_readable(spool)
    spool.close()
    assert_conserved(tmp_path, queued=1, delivered=1)


@contextmanager
def syncs_fail(patch: pytest.MonkeyPatch, times: int = 1) -> Iterator[None]:
    """The next body syncs report an error; later ones succeed, as the kernel has it."""
    left = [times]
    real = os.fdatasync

    def fdatasync(descriptor: int) -> None:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    with patch.context() as inner:
        inner.setattr(bodies.os, "fdatasync", fdatasync)
        yield
    assert left == [0]


def test_bodies_that_cannot_be_synced_are_refused_and_the_rest_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = open_spool(tmp_path)
    keys = accept(spool, batch(letters=[letter(1)], recipients=2))
    spool.close()
    gate = Gate()
    spool = open_spool(tmp_path, step=gate)
    with syncs_fail(monkeypatch):
        refused, settled, also_refused = as_one_group(
            spool,
            gate,
            lambda: spool.accept(batch(b"r" * 16, letters=[letter(2)])),
            lambda: spool.settle([settlement(keys[0])]),
            lambda: spool.accept(batch(letters=[letter(3)])),
        )
        assert settled.result(PATIENCE_S).stale == 0
        for future in (refused, also_refused):
            with pytest.raises(SpoolError, match=r"not written: segment 2: .*Input/output error"):
                future.result(PATIENCE_S)
    again = spool.accept(batch(b"r" * 16, letters=[letter(2)])).result(PATIENCE_S)
    assert not again.repeated
    record = spool.message(id_of(again.due_keys[0]))
    assert record is not None
    assert record.content[0] == 3  # the segment whose sync failed is never written again
    assert not (tmp_path / "bodies" / "00000002.seg").exists()
    assert_bodies_readable(spool)
    spool.close()
    assert_conserved(tmp_path, queued=2, delivered=1)


def test_a_sync_that_fails_as_a_segment_is_sealed_refuses_what_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    spool = open_spool(tmp_path, step=gate, segment_size=1000)
    with syncs_fail(monkeypatch):
        futures = as_one_group(
            spool,
            gate,
            lambda: spool.accept(batch(letters=[letter(1, 1200)])),
            lambda: spool.accept(batch(letters=[letter(2, 1200)])),
        )
        for future in futures:
            with pytest.raises(SpoolError, match="not written"):
                future.result(PATIENCE_S)
    accept(spool, batch(letters=[letter(3)]))
    assert_bodies_readable(spool)
    spool.close()
    assert_conserved(tmp_path, queued=1)


def test_a_segment_that_could_not_be_begun_gets_no_bodies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = open_spool(tmp_path, segment_size=1000)
    accept(spool, batch(letters=[letter(1, 1200)]))
    with monkeypatch.context() as patch:
        patch.setattr(bodies, "sync_directory", _no_sync)
        with pytest.raises(SpoolError, match="not written"):
            accept(spool, batch(letters=[letter(2)]))
    accept(spool, batch(letters=[letter(3)]))
    assert_bodies_readable(spool)
    spool.close()
    spool = open_spool(tmp_path)
    assert_bodies_readable(spool)
    spool.close()
    assert_conserved(tmp_path, queued=2)


def _no_sync(directory: Path) -> None:
    raise OSError(errno.EIO, "Input/output error")


# -- admission


def test_too_little_free_disk_is_refused_and_settling_goes_on(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    [key] = accept(spool, batch())
    number = spool.put_campaign(CAMPAIGN).result(PATIENCE_S)
    spool.close()
    spool = open_spool(tmp_path, min_free=1 << 60)
    message = r"spool full \(disk\): \d+ bytes are free, 11529215046068\d+ must stay free \(spool.min_free, settling\)"
    for attempt in (
        lambda: spool.accept(batch()),
        lambda: spool.accept_chunk(chunk(number, 0)),
        lambda: spool.put_campaign(replace(CAMPAIGN, campaign="other")),
    ):
        with pytest.raises(SpoolFull, match=message):
            attempt().result(PATIENCE_S)
    spool.settle([settlement(key)]).result(PATIENCE_S)
    spool.close()
    assert_conserved(tmp_path, delivered=1)


# -- bounds and marks


def test_expired_keys_are_swept_as_fast_as_they_come(tmp_path: Path) -> None:
    clock = ManualClock()
    spool = open_spool(tmp_path, clock)
    for round_ in range(8):
        for number in range(10):
            keys = [f"{round_}.{number}.{i}" for i in range(50)]
            accept(spool, batch(letters=[b"x"] * 50, keys=keys))
        clock.advance(4 * 86_400)
    assert rows(spool, "keys") == rows(spool, "keys_expiry")
    assert rows(spool, "keys") <= 3 * 510
    spool.close()


def test_a_clock_that_was_set_back_hides_nothing_in_flight(tmp_path: Path) -> None:
    clock = ManualClock()
    spool = open_spool(tmp_path, clock)
    [key] = accept(spool, batch())
    at_ms = clock.wall_ms()
    [again] = spool.settle([settlement(key, OutcomeKind.DEFERRED, at_ms=at_ms)]).result(PATIENCE_S).due_keys
    clock.step_wall(-3600)
    spool.dispatch(1, packed([id_of(again)]), {}).result(PATIENCE_S)
    spool.close()
    spool = open_spool(tmp_path, clock)
    record = spool.message(id_of(key))
    assert record is not None
    assert record.flags == MAYBE_SENT
    spool.close()


def test_what_a_dead_pool_held_is_in_flight_no_longer(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    keys = accept(spool, batch(letters=[letter(1)], recipients=4))
    ids = [id_of(key) for key in keys]
    spool.dispatch(1, packed(ids[:2]), {}).result(PATIENCE_S)
    spool.dispatch(2, packed(ids[2:]), {}).result(PATIENCE_S)
    unknown = [settlement(key, OutcomeKind.DEFERRED, possible_duplicate=True) for key in keys[:3]]
    spool.settle(unknown).result(PATIENCE_S)
    assert spool._groups.inflight == {2: {ids[3]}}
    assert rows(spool, "inflight") == 1
    spool.close()
    spool = open_spool(tmp_path)
    assert {id_: record.flags for id_ in ids if (record := spool.message(id_))} == dict.fromkeys(
        ids, MAYBE_SENT
    )
    spool.close()

"""Opening again: epochs, ownership, segments, readers beside the writer."""

import contextlib
import errno
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine.failover.store import SaveLife
from engine.spool.audit import audit
from engine.spool.bodies import segment_path
from engine.spool.draft import META, Totals
from engine.spool.environment import Environment
from engine.spool.errors import SpoolError
from engine.spool.standby import LIFE
from engine.spool.store import Spool, SpoolOptions
from engine.values.ids import make_id
from engine.values.outcome import OutcomeKind
from tests.support.clock import ManualClock
from tests.support.spools import (
    PATIENCE_S,
    accept,
    assert_conserved,
    batch,
    due,
    id_of,
    letter,
    open_spool,
    settlement,
)


def segments(path: Path) -> list[int]:
    return sorted(int(file.stem) for file in (path / "bodies").glob("*.seg"))


def test_each_opening_is_a_new_epoch(tmp_path: Path) -> None:
    epochs = []
    for _ in range(3):
        spool = open_spool(tmp_path)
        epochs.append(spool.epoch)
        spool.close()
    assert epochs == [1, 2, 3]


def test_each_opening_is_a_life_with_a_greater_number_whatever_the_clock_says(tmp_path: Path) -> None:
    clock = ManualClock()
    lives = []
    for step_s in (0, -86_400, 2 * 86_400, -86_400):
        clock.step_wall(step_s)
        spool = open_spool(tmp_path, clock)
        lives.append(spool.life)
        spool.close()
    begun, day = ManualClock().wall_ms(), 86_400_000
    assert lives == [begun, begun + 1, begun + day, begun + day + 1]


def test_a_number_that_was_taken_since_is_kept(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    for life in (spool.life + 1000, spool.life + 500):
        spool.failover(SaveLife(life), {}).result(PATIENCE_S)
    began = spool.life
    spool.close()
    spool = open_spool(tmp_path)
    assert spool.life == began + 1001
    spool.close()


def test_a_spool_of_a_release_that_kept_no_number_begins_at_the_time(tmp_path: Path) -> None:
    open_spool(tmp_path).close()
    env = Environment(tmp_path, map_size=64 << 20)
    with env.write() as txn:
        assert txn.delete(LIFE, db=env.db["failover"])
    env.close()
    clock = ManualClock()
    clock.step_wall(-86_400)
    spool = open_spool(tmp_path, clock)
    assert spool.life == clock.wall_ms()
    spool.close()
    assert_conserved(tmp_path)


def test_one_process_has_it_open(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    with pytest.raises(SpoolError, match="is open in another process"):
        open_spool(tmp_path)
    spool.close()


def test_a_copy_of_a_closed_spool_goes_back_to_its_time(tmp_path: Path) -> None:
    """docs/operations.md, backup: what was sent since is sent again, what was accepted since is not known."""
    clock = ManualClock()
    spool = open_spool(tmp_path / "spool", clock)
    queued = accept(spool, batch(letters=[letter(1), letter(2)]))
    spool.close()
    shutil.copytree(tmp_path / "spool", tmp_path / "copy")
    spool = open_spool(tmp_path / "spool", clock)
    spool.settle([settlement(key) for key in queued]).result(PATIENCE_S)
    (later,) = accept(spool, batch(letters=[letter(3)]))
    spool.close()

    restored = open_spool(tmp_path / "copy", clock)
    assert sorted(due(restored)) == sorted(queued)
    (given,) = accept(restored, batch(letters=[letter(4)]))
    assert id_of(given) == id_of(later), "ids are given again"
    restored.close()
    assert_conserved(tmp_path / "copy", queued=3)


def test_a_spool_belongs_to_one_region(tmp_path: Path) -> None:
    open_spool(tmp_path).close()
    with pytest.raises(SpoolError, match="belongs to region number 1, not 2"):
        Spool.open(tmp_path, region_number=2, clock=ManualClock(), options=SpoolOptions(map_size=1 << 20))
    open_spool(tmp_path).close()


def test_everything_is_there_after_reopening(tmp_path: Path) -> None:
    spool = open_spool(tmp_path, segment_size=2000)
    keys = []
    for number in range(10):
        keys += accept(spool, batch(letters=[letter(number, 700)]))
    [deferred] = spool.settle([settlement(keys[3], OutcomeKind.DEFERRED)]).result(PATIENCE_S).due_keys
    spool.settle([settlement(keys[0])]).result(PATIENCE_S)
    spool.close()
    spool = open_spool(tmp_path)
    assert sorted(due(spool)) == sorted([*keys[1:3], deferred, *keys[4:]])
    reader = spool.reader()
    for number in range(1, 10):
        record = spool.message(id_of(keys[number]))
        assert record is not None
        assert reader.body(record.content) == letter(number, 700)
    [key] = accept(spool, batch())
    assert id_of(key) == make_id(1, 11)
    assert spool.counts() == {
        "accepted": 11,
        "queued": 10,
        "delivered": 1,
        "bounced": 0,
        "expired": 0,
        "suppressed": 0,
        "cancelled": 0,
    }
    reader.close()
    spool.close()
    assert_conserved(tmp_path, queued=10, delivered=1)


def test_a_superseded_incarnation_cannot_write(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    accept(spool, batch())
    with spool._env.write() as txn:  # as another incarnation does that opened the file on a broken lock
        totals = Totals.decode(txn.get(META, db=spool._env.db["meta"]))
        totals.epoch += 1
        txn.put(META, totals.encode(), db=spool._env.db["meta"])
    with pytest.raises(SpoolError, match="another incarnation has taken over"):
        accept(spool, batch())
    with pytest.raises(SpoolError):
        spool.put_state("k", b"v").result(PATIENCE_S)
    spool.close()
    assert_conserved(tmp_path, queued=1)


def test_a_closed_spool_refuses(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    spool.close()
    with pytest.raises(SpoolError, match="closed"):
        spool.put_state("k", b"v").result(PATIENCE_S)


def test_a_segment_is_dropped_when_nothing_in_it_is_queued(tmp_path: Path) -> None:
    spool = open_spool(tmp_path, segment_size=1000)
    keys = [accept(spool, batch(letters=[letter(number, 600)]))[0] for number in range(6)]
    assert segments(tmp_path) == [1, 2, 3]
    spool.settle([settlement(keys[0])]).result(PATIENCE_S)
    assert segments(tmp_path) == [1, 2, 3]
    spool.settle([settlement(keys[1], OutcomeKind.BOUNCED)]).result(PATIENCE_S)
    assert segments(tmp_path) == [2, 3]
    spool.cancel([id_of(keys[2]), id_of(keys[3])]).result(PATIENCE_S)
    assert segments(tmp_path) == [3]
    spool.close()


def test_the_open_segment_stays_until_it_is_sealed(tmp_path: Path) -> None:
    spool = open_spool(tmp_path, segment_size=1000)
    [key] = accept(spool, batch(letters=[letter(0, 600)]))
    spool.settle([settlement(key)]).result(PATIENCE_S)
    assert segments(tmp_path) == [1]
    [key] = accept(spool, batch(letters=[letter(1, 600)]))
    spool.settle([settlement(key)]).result(PATIENCE_S)
    assert segments(tmp_path) == []
    spool.close()


def test_a_sealed_segment_full_of_repetitions_is_dropped(tmp_path: Path) -> None:
    spool = open_spool(tmp_path, segment_size=1000)
    [key] = accept(spool, batch(b"k" * 16, letters=[letter(0, 600)]))
    spool.settle([settlement(key)]).result(PATIENCE_S)
    accept(spool, batch(b"k" * 16, letters=[letter(0, 600)]))
    accept(spool, batch(letters=[letter(1, 600)]))
    assert segments(tmp_path) == [2]
    spool.close()


def test_reopening_removes_segments_that_nothing_refers_to(tmp_path: Path) -> None:
    spool = open_spool(tmp_path, segment_size=1000)
    keys = [accept(spool, batch(letters=[letter(number, 600)]))[0] for number in range(3)]
    spool.settle([settlement(keys[2])]).result(PATIENCE_S)
    spool.close()
    segment_path(tmp_path / "bodies", 9).write_bytes(b"written, never committed")
    spool = open_spool(tmp_path)
    assert segments(tmp_path) == [1]
    accept(spool, batch())
    assert segments(tmp_path) == [1, 10]
    spool.close()


def test_a_reader_in_another_opening_sees_what_is_committed(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    keys = accept(spool, batch(letters=[letter(1)], recipients=2))
    spool.settle([settlement(keys[0])]).result(PATIENCE_S)
    ids = [str(id_of(key)) for key in keys]
    answer = subprocess.run(
        [sys.executable, "-c", BESIDE, str(tmp_path), *ids], capture_output=True, check=True
    )
    assert answer.stdout == b"None u0.1@example.net " + letter(1)
    spool.close()


# LMDB allows one opening per process
BESIDE = """
import sys
from engine.spool.reader import SpoolReader
from tests.support.spools import packed
reader = SpoolReader(sys.argv[1])
gone, record = reader.fetch(packed([int(id_) for id_ in sys.argv[2:]]))
sys.stdout.buffer.write(f"{gone} {record.recipient} ".encode() + reader.body(record.content))
"""


def test_the_map_grows_without_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.spool.environment.FIRST_MAP", 256 << 10)
    spool = open_spool(tmp_path, map_size=64 << 20)
    before = spool.sizes()["map_bytes"]
    for _ in range(5):
        accept(spool, batch(letters=[letter(1)], recipients=1000))
    assert before == 256 << 10
    assert spool.sizes()["map_bytes"] > before
    assert len(due(spool)) == 5000
    spool.close()
    assert_conserved(tmp_path, queued=5000)


@pytest.mark.parametrize("what", ["gone", "empty"])
def test_bodies_without_their_index_are_not_thrown_away(tmp_path: Path, what: str) -> None:
    """Somebody restored half of a backup, or mounted another disk: what is there may be all that there is."""
    spool = open_spool(tmp_path)
    accept(spool, batch(letters=[letter(1)]))
    spool.close()
    index = tmp_path / "data.mdb"
    kept = index.read_bytes()
    index.unlink() if what == "gone" else os.truncate(index, 0)
    before = segments(tmp_path)
    with pytest.raises(SpoolError, match=r"index \(data.mdb\) is missing or empty"):
        open_spool(tmp_path)
    assert segments(tmp_path) == before == [1]
    index.write_bytes(kept)
    spool = open_spool(tmp_path)
    assert len(due(spool)) == 1
    spool.close()


def test_an_index_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    """LMDB itself would end the process by SIGBUS."""
    spool = open_spool(tmp_path)
    for number in range(200):
        accept(spool, batch(letters=[letter(number)], recipients=130))
    spool.close()
    index = tmp_path / "data.mdb"
    size = index.stat().st_size
    assert size > 5 << 19
    kept = index.read_bytes()
    os.truncate(index, size // 2)
    with pytest.raises(SpoolError, match="has been cut off"):
        open_spool(tmp_path)
    assert ["has been cut off" in problem for problem in audit(tmp_path).problems] == [True]
    index.write_bytes(b"no index" * 2000)
    assert ["not an LMDB file" in problem for problem in audit(tmp_path).problems] == [True]
    index.write_bytes(kept[:8192] + b"\xff" * (size - 8192))
    assert ["cannot be" in problem for problem in audit(tmp_path).problems] == [True]
    index.write_bytes(kept)
    open_spool(tmp_path).close()
    assert_conserved(tmp_path, queued=26_000)


def test_a_file_of_another_name_among_the_bodies_is_left_alone(tmp_path: Path) -> None:
    open_spool(tmp_path).close()
    (tmp_path / "bodies" / "copy of 1.seg").write_bytes(b"x")
    open_spool(tmp_path).close()
    assert (tmp_path / "bodies" / "copy of 1.seg").exists()


def test_an_empty_environment_is_a_clean_audit(tmp_path: Path) -> None:
    Environment(tmp_path, map_size=1 << 20).close()
    assert_conserved(tmp_path)


def open_files() -> set[str]:
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(str(descriptor.readlink()))
    return found


@pytest.mark.parametrize("call", ["ftruncate", "write", "posix_fallocate", "fsync", "flock"])
def test_an_opening_that_fails_says_so_and_keeps_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Whatever the system call that fails: a SpoolError, no open file, and the next opening goes through."""
    open_spool(tmp_path).close()
    before = open_files()

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl if call == "flock" else os, call, fail)
        with pytest.raises(SpoolError, match="Input/output error"):
            open_spool(tmp_path)
    assert open_files() == before
    open_spool(tmp_path).close()


def test_a_spool_where_no_directory_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SpoolError, match=r"Not a directory|File exists"):
        open_spool(tmp_path / "file" / "spool")

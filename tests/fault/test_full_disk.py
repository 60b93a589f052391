"""A spool on a disk that is really full: a small tmpfs, filled to the last block.

What was acknowledged is there, what is refused is refused with what is free, settling goes on as far as there is room,
and everything goes on when room is made. Needs root, for the mount.
"""

import os
import random
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from engine.spool.errors import SpoolError, SpoolFull
from engine.spool.store import Spool
from tests.support.room import defer_all, fill_index
from tests.support.spools import (
    PATIENCE_S,
    Gate,
    accept,
    as_one_group,
    assert_conserved,
    batch,
    due,
    id_of,
    letter,
    open_spool,
    settlement,
)

DISK_BYTES = 8 << 20
FILLER_BYTES = 1 << 20
LETTER_BYTES = 3000
Stored = dict[bytes, bytes]  # due key -> body, of what was acknowledged


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of DISK_BYTES with two files in it, which a test may remove to make room."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "tmpfs", str(path)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here (it takes root): {mounted.stderr.strip()}")
    try:
        (path / "filler").write_bytes(bytes(FILLER_BYTES))
        (path / "reserve").write_bytes(bytes(FILLER_BYTES))
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def free_bytes(disk: Path) -> int:
    stat = os.statvfs(disk)
    return stat.f_bavail * stat.f_frsize


def fill_up(spool: Spool, stored: Stored, *, size: int = LETTER_BYTES, count: int = 10) -> SpoolFull:
    """Accept until it is refused; returns the refusal."""
    for _ in range(DISK_BYTES // size + 1):
        letters = [letter(len(stored) + n, size) for n in range(count)]
        try:
            keys = accept(spool, batch(letters=letters))
        except SpoolFull as refusal:
            return refusal
        stored.update(zip(keys, letters, strict=True))
    raise AssertionError("more was accepted than the disk can hold")


def assert_all_there(spool: Spool, stored: Stored) -> None:
    reader = spool.reader()
    assert sorted(due(spool)) == sorted(stored)
    for key, body in stored.items():
        record = spool.message(id_of(key))
        assert record is not None
        assert reader.body(record.content) == body
    reader.close()


def settle(spool: Spool, stored: Stored, count: int) -> int:
    """Settle so many, and drop them from `stored`; returns how many there were."""
    keys = list(stored)[:count]
    spool.settle([settlement(key) for key in keys]).result(PATIENCE_S)
    for key in keys:
        del stored[key]
    return len(keys)


def test_a_disk_filled_to_the_last_block_loses_nothing_and_goes_on_when_there_is_room(disk: Path) -> None:
    stored: Stored = {}
    spool = open_spool(disk / "spool", segment_size=256 << 10)
    refusal = fill_up(spool, stored)
    assert refusal.what == "disk"
    assert len(stored) > 500
    with pytest.raises(SpoolFull):
        accept(spool, batch(letters=[letter(0, FILLER_BYTES)]))
    assert_all_there(spool, stored)

    (disk / "filler").unlink()
    delivered = settle(spool, stored, 400)
    assert_all_there(spool, stored)
    fill_up(spool, stored)
    assert_all_there(spool, stored)
    spool.close()
    (disk / "more").write_bytes(bytes(free_bytes(disk)))
    assert free_bytes(disk) == 0
    try:
        spool = open_spool(disk / "spool")  # freed pages may be enough for its commit
    except SpoolFull:
        pass
    else:
        assert_all_there(spool, stored)
        spool.close()
    (disk / "more").unlink()
    spool = open_spool(disk / "spool", segment_size=256 << 10)
    assert_all_there(spool, stored)
    (disk / "reserve").unlink()
    delivered += settle(spool, stored, len(stored))
    spool.close()
    assert_conserved(disk / "spool", delivered=delivered)


def test_the_watermark_leaves_room_to_settle_everything(disk: Path) -> None:
    """With `min_free` acceptance stops early, and every queued message can be settled without anybody making room."""
    stored: Stored = {}
    spool = open_spool(disk / "spool", segment_size=256 << 10, min_free=1 << 20)
    refusal = fill_up(spool, stored)
    assert refusal.used < refusal.limit > 1 << 20
    accepted = len(stored)
    while stored:
        settle(spool, stored, 50)
    # and the drained segments have made room
    fill_up(spool, stored)
    assert len(stored) > accepted // 2
    spool.close()
    assert_conserved(disk / "spool", delivered=accepted, queued=len(stored))


def test_the_watermark_leaves_room_to_defer_everything_in_any_order(disk: Path) -> None:
    """Records get longer, and pages that were full are split: the index grows to several times its size."""
    draw = random.Random(1)
    spool = open_spool(disk / "spool", segment_size=256 << 10, min_free=1 << 20)
    keys, refusal = fill_index(spool)
    assert refusal.what == "disk"
    before = (disk / "spool" / "data.mdb").stat().st_size
    for _ in range(2):
        keys = defer_all(spool, keys, draw)
    assert (disk / "spool" / "data.mdb").stat().st_size > 2 * before
    spool.close()
    assert_conserved(disk / "spool", queued=len(keys))


def test_a_batch_torn_by_the_full_disk_leaves_nothing_behind(disk: Path) -> None:
    """A batch larger than what is free is written in part and refused. That part must not take the room that settling
    needs, nor be read as a message."""
    stored: Stored = {}
    spool = open_spool(disk / "spool", segment_size=64 << 20)
    fill_up(spool, stored, size=20_000)
    (disk / "filler").unlink()
    before = free_bytes(disk)
    assert before > FILLER_BYTES // 2
    with pytest.raises(SpoolFull):
        accept(spool, batch(letters=[letter(0, DISK_BYTES)]))
    assert free_bytes(disk) > before // 2
    assert_all_there(spool, stored)
    delivered = settle(spool, stored, 30)
    letters = [letter(n + 10_000, 2000) for n in range(20)]
    stored.update(zip(accept(spool, batch(letters=letters)), letters, strict=True))
    assert_all_there(spool, stored)
    spool.close()
    spool = open_spool(disk / "spool")
    assert_all_there(spool, stored)
    delivered += settle(spool, stored, len(stored))
    spool.close()
    assert_conserved(disk / "spool", delivered=delivered)


def test_in_a_group_that_meets_the_full_disk_each_is_answered_truthfully(disk: Path) -> None:
    """Batches, small and too large, and settlements in one commit: what is acknowledged is on disk, and only that."""
    stored: Stored = {}
    gate = Gate()
    spool = open_spool(disk / "spool", segment_size=256 << 10, step=gate)
    gate.open()
    fill_up(spool, stored)
    spool.close()
    (disk / "filler").write_bytes(bytes(FILLER_BYTES // 4))

    gate = Gate()
    spool = open_spool(disk / "spool", segment_size=256 << 10, step=gate)
    settled = list(stored)[:40]
    sizes = [500, 900_000, 700]
    attempts = [[letter(20_000 + n * 100 + i, size) for i in range(5)] for n, size in enumerate(sizes)]
    answers: list[Future[Any]] = as_one_group(
        spool,
        gate,
        lambda: spool.accept(batch(letters=attempts[0])),
        lambda: spool.accept(batch(letters=attempts[1])),
        lambda: spool.settle([settlement(key) for key in settled]),
        lambda: spool.accept(batch(letters=attempts[2])),
    )
    outcomes = [_outcome(answer) for answer in answers]
    assert isinstance(outcomes[1], SpoolFull)
    for n, at in ((0, 0), (2, 3)):
        if not isinstance(outcomes[at], SpoolError):
            stored.update(zip(outcomes[at].due_keys, attempts[n], strict=True))
    if not isinstance(outcomes[2], SpoolError):
        for key in settled:
            del stored[key]
    assert_all_there(spool, stored)
    spool.close()
    (disk / "filler").unlink()
    spool = open_spool(disk / "spool")
    assert_all_there(spool, stored)
    spool.close()


def _outcome(answer: "Future[Any]") -> Any:
    try:
        return answer.result(PATIENCE_S)
    except SpoolError as error:
        return error

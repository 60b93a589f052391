"""The opening of a spool: one process at a time, a new epoch, a new life, and the marks on what was in flight.

No queued message is read: only the numbers of the index, the latest changes of the due index, what was in flight, and
the names of the body files.
"""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from engine.spool import settling
from engine.spool.draft import META, Draft, QueueNumbers, Totals, UnknownFormat
from engine.spool.due_index import DueIndex
from engine.spool.environment import Environment, MapFull
from engine.spool.errors import SpoolError, SpoolInUse
from engine.spool.standby import begin_life


def lock(path: Path) -> int:
    """Become the owner of a spool; returns the descriptor of its lock. SpoolInUse: another process is."""
    descriptor = os.open(path / "owner", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    except BlockingIOError:
        os.close(descriptor)
        raise SpoolInUse(f"spool {path} is open in another process") from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def recover(
    path: Path,
    bodies: Path,
    env: Environment,
    region_number: int,
    queues: QueueNumbers,
    due_index: DueIndex,
    now_ms: int,
) -> tuple[Totals, int]:
    """Take the spool over; returns its numbers, and that of this process (engine/spool/standby.py).

    SpoolError: it is another region's, or its index is gone.
    """
    with env.read() as txn:
        stored = txn.get(META, db=env.db["meta"])
        due_index.load(txn)
    if stored is None and any(_segments(bodies)):
        raise SpoolError(
            f"spool {path}: its index (data.mdb) is missing or empty, but there are bodies in bodies/: "
            "put the index back, or move the folder away to begin anew"
        )
    try:
        totals = Totals(region_number) if stored is None else Totals.decode(stored)
    except UnknownFormat as error:
        raise SpoolError(f"{path}: {error}") from None
    if totals.region != region_number:
        raise SpoolError(f"spool {path} belongs to region number {totals.region}, not {region_number}")
    totals.epoch += 1
    while True:
        try:
            totals, life, live = _take_over(env, totals, queues, due_index, now_ms)
            break
        except MapFull:
            if not (env.grow() or env.grow(beyond=True)):
                raise
    for number, path in _segments(bodies):
        if number not in live:
            path.unlink()
        totals.segment = max(totals.segment, number)
    return totals, life


def _take_over(
    env: Environment, totals: Totals, queues: QueueNumbers, due_index: DueIndex, now_ms: int
) -> tuple[Totals, int, set[int]]:
    """Commit the new epoch, the life and the marks; the numbers and the segments in use."""
    with env.write() as txn:
        draft = Draft(env, txn, totals, queues, due_index)
        settling.mark_in_flight(draft)
        life = begin_life(env, txn, now_ms)
        draft.write_out(open_segment=-1)
        live = set()
        with txn.cursor(db=env.db["segments"]) as cursor:
            for key, value in cursor:
                if int.from_bytes(value, "big"):
                    live.add(int.from_bytes(key, "big"))
                else:
                    cursor.delete()
    return draft.totals, life, live


def _segments(bodies: Path) -> Iterator[tuple[int, Path]]:
    """Body segments by number; files of other names are not ours."""
    for path in bodies.glob("*.seg"):
        if path.stem.isdecimal():
            yield int(path.stem), path

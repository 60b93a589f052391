"""The LMDB environment of a spool. The only importer of lmdb.

Format: the LMDB 0.9 on-disk format (v1), pinned, so that the file can be read by every LMDB tool; 1.0 brings nothing
that py-lmdb exposes and we need. Durability: default flags, that is two barriers per commit and nothing lost at a
power failure; never `writemap`, which kills the process by SIGBUS on a full disk.

The map is address space, grown without closing anything: when it fills up, the writer doubles it between two
transactions; readers in other processes follow by `MapResizedError`.

One lock keeps this process's short read transactions and a growing or reopening map apart; who holds an Environment may
go on using it after `reopen`. The lock file is memory that LMDB writes through a mapping, where a full disk would end
the process by SIGBUS, so its blocks are allocated before it is mapped.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb

log = logging.getLogger(__name__)

DATABASES = (
    b"meta",
    b"queues",
    b"queue_names",
    b"messages",
    b"due",
    b"due_journal",
    b"campaigns",
    b"campaign_names",
    b"chunks",
    b"keys",
    b"keys_expiry",
    b"outbox",
    b"inflight",
    b"ledger",
    b"segments",
    b"state",
    b"suppressed",
    b"suppression_log",
    b"sent",
    b"notices",
    b"copies",
    b"unsafe",
    b"failover",
    b"offers",
    b"hearsay",
)
FIRST_MAP = 256 << 20
BEYOND = 16  # address space: the disk is what limits settling
DEFERRAL_BYTES = 220  # of a record's last reply, and of a due key
COPIED_BYTES = 16 << 20  # that a commit changes of the index, at most as a rule
MAX_READERS = 510
PAGE = 4096
LOCK_BYTES = 64 << 10
UNWRITTEN_BYTES = 1 << 20
OPEN_ATTEMPTS = 5
OPEN_PAUSE_S = 0.02
RUN_PAGES = 64
_RUN = bytes(RUN_PAGES * PAGE - 16)  # with LMDB's page header exactly so many pages
_RUN_KEY = b"run"

Error = lmdb.Error
MapFull = lmdb.MapFullError


class Environment:
    """One open environment; `db[name]` are its databases."""

    def __init__(self, path: Path, *, map_size: int, readonly: bool = False) -> None:
        self.path = path
        self.limit = map_size
        self._readonly = readonly
        self._lock = threading.RLock()
        self.db: dict[str, Any] = {}
        self._open()

    def _open(self) -> None:
        if not self._readonly:
            _allocate(self.path / "lock.mdb", LOCK_BYTES)
        for attempt in range(1, OPEN_ATTEMPTS + 1):
            try:
                self._env = self._map()
                break
            except lmdb.LockError:  # another process is opening or closing it at this very moment
                if attempt == OPEN_ATTEMPTS:
                    raise
                time.sleep(OPEN_PAUSE_S)
        try:
            if self._readonly:
                self._env.set_mapsize(0)
            self._check_size()
            self.db = {name.decode(): db for name in DATABASES if (db := self._open_db(name)) is not None}
            self._env.reader_check()
        except BaseException:
            self._env.close()
            raise

    def _check_size(self) -> None:
        """A page behind the end of the file would end the process by SIGBUS at the first look.

        A few at the end may never have been written, because they were freed in the transaction that took them: those
        are added. OSError: there are too many.
        """
        wanted = self.used_bytes()
        size = (self.path / "data.mdb").stat().st_size
        if size + UNWRITTEN_BYTES < wanted:
            raise OSError(f"data.mdb has been cut off: it has {size} bytes of {wanted}")
        if size < wanted and not self._readonly:
            os.truncate(self.path / "data.mdb", wanted)

    def _open_db(self, name: bytes) -> Any:
        """None: read only, and a release that did not have this database yet was the last to write."""
        try:
            return self._env.open_db(name, create=not self._readonly)
        except lmdb.NotFoundError:
            return None

    def _map(self) -> Any:
        existing = self.path / "data.mdb"
        first = min(self.limit, max(FIRST_MAP, existing.stat().st_size * 2 if existing.exists() else 0))
        return lmdb.open(
            str(self.path),
            map_size=0 if self._readonly else first,
            max_dbs=len(DATABASES),
            max_readers=MAX_READERS,
            readonly=self._readonly,
            lock=True,
            mode=0o600,
            max_spare_txns=4,
            lib_version=0,
        )

    def reopen(self) -> None:
        """Close and open again, after a failed commit. Transactions of this process are gone."""
        with self._lock:
            self._env.close()
            self._open()

    @contextmanager
    def write(self) -> Iterator[Any]:
        with self.begin_write() as txn:
            yield txn

    def begin_write(self) -> Any:
        with self._lock:
            return self._env.begin(write=True)

    @contextmanager
    def read(self) -> Iterator[Any]:
        """A short read transaction: until it ends, no thread of this process can grow or reopen the map."""
        with self._lock:
            try:
                txn = self._env.begin()
            except lmdb.MapResizedError:
                self._env.set_mapsize(0)
                txn = self._env.begin()
            with txn:
                yield txn

    def grow(self, *, beyond: bool = False) -> bool:
        """Double the map up to the limit; only when this process has no write transaction. False at the limit.

        `beyond`: for what must not be refused, up to `BEYOND` times the limit.
        """
        limit = self.limit * BEYOND if beyond else self.limit
        with self._lock:
            size = self._env.info()["map_size"]
            if size >= limit:
                return False
            size = min(limit, size * 2)
            self._env.set_mapsize(size)
        if size > self.limit:
            log.warning("spool %s: map grown to %d MiB, beyond its limit, to settle", self.path, size >> 20)
        else:
            log.info("spool %s: map grown to %d MiB", self.path, size >> 20)
        return True

    def used_bytes(self) -> int:
        """High-water mark of the file: freed pages inside it are reused before it grows."""
        return int((self._env.info()["last_pgno"] + 1) * PAGE)

    def used_by_databases(self, txn: Any) -> int:
        """Bytes of pages in use, without the freed ones that wait to be used again."""
        pages = 0
        for db in self.db.values():
            stat = txn.stat(db)
            pages += stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
        return int(pages) * PAGE

    def growth_of_settling(self, txn: Any) -> int:
        """Bytes by which the file may grow when everything that is queued, here or with a copy here, is deferred.

        Records get longer by the last reply, and pages that were filled in order are split in the middle by changes in
        any other; the messages' due times are then different ones. What a commit changes is copied, and what it has
        freed is used again by the next but one. Freed pages inside the file are used first.
        """
        stats = [txn.stat(self.db[name]) for name in ("messages", "copies")]
        now = PAGE * sum(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"] for stat in stats)
        then = 2 * (now + DEFERRAL_BYTES * sum(stat["entries"] for stat in stats))
        wanted = then - now + 2 * min(then, COPIED_BYTES)
        return max(0, int(wanted) - (self.used_bytes() - self.used_by_databases(txn)))

    def gather_free_pages(self, txn: Any) -> None:
        """Before a transaction changes many scattered pages: have LMDB look for a run of free pages.

        LMDB takes the pages that it writes from the oldest freed ones, a transaction's at a time, and after a few
        turnovers those lie scattered over the file: a write call and a place on disk for every page. A value of
        `RUN_PAGES` makes it merge more of the freed pages until so many lie side by side; taken back at once, they
        are what the transaction uses next (docs/adr/0025-runs-of-free-pages.md). Not done when the map is nearly
        used up: a run may have to be added to the file.
        """
        if (self.used_bytes() + len(_RUN)) * 16 > self.map_bytes() * 15:
            return
        txn.put(_RUN_KEY, _RUN, db=self.db["meta"])
        txn.delete(_RUN_KEY, db=self.db["meta"])

    def map_bytes(self) -> int:
        return int(self._env.info()["map_size"])

    def check_readers(self) -> int:
        """Free the slots of readers that died; a dead reader pins old pages."""
        return int(self._env.reader_check())

    def close(self) -> None:
        self._env.close()


def _allocate(path: Path, size: int) -> None:
    """Make sure that the file has blocks for its first `size` bytes; OSError if there is no room."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
    finally:
        os.close(descriptor)

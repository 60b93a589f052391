"""The LMDB environment of a spool. The only importer of lmdb.

Format: the LMDB 0.9 on-disk format (v1), pinned, so that the file can be read by every LMDB tool; 1.0 brings nothing
that py-lmdb exposes and we need. Durability: default flags, that is two barriers per commit and nothing lost at a
power failure; never `writemap`, which kills the process by SIGBUS on a full disk.

The map is address space, grown without closing anything: when it fills up, the writer doubles it between two
transactions; readers in other processes follow by `MapResizedError`.
"""

import logging
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
)
FIRST_MAP = 256 << 20
MAX_READERS = 510
PAGE = 4096

Error = lmdb.Error
MapFull = lmdb.MapFullError


class Environment:
    """One open environment; `db[name]` are its databases."""

    def __init__(self, path: Path, *, map_size: int, readonly: bool = False) -> None:
        self.path = path
        self.limit = map_size
        existing = path / "data.mdb"
        first = min(map_size, max(FIRST_MAP, existing.stat().st_size * 2 if existing.exists() else 0))
        self._env = lmdb.open(
            str(path),
            map_size=0 if readonly else first,
            max_dbs=len(DATABASES),
            max_readers=MAX_READERS,
            readonly=readonly,
            lock=True,
            mode=0o600,
            max_spare_txns=4,
            lib_version=0,
        )
        if readonly:
            self._env.set_mapsize(0)
        self.db: dict[str, Any] = {
            name.decode(): self._env.open_db(name, create=not readonly) for name in DATABASES
        }
        self._env.reader_check()

    @contextmanager
    def write(self) -> Iterator[Any]:
        with self._env.begin(write=True) as txn:
            yield txn

    def begin_write(self) -> Any:
        return self._env.begin(write=True)

    @contextmanager
    def read(self) -> Iterator[Any]:
        try:
            txn = self._env.begin()
        except lmdb.MapResizedError:
            self._env.set_mapsize(0)
            txn = self._env.begin()
        with txn:
            yield txn

    def grow(self) -> bool:
        """Double the map up to the limit; only between transactions of this process. False at the limit."""
        size = self._env.info()["map_size"]
        if size >= self.limit:
            return False
        self._env.set_mapsize(min(self.limit, size * 2))
        log.info("spool %s: map grown to %d MiB", self.path, min(self.limit, size * 2) >> 20)
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

    def map_bytes(self) -> int:
        return int(self._env.info()["map_size"])

    def check_readers(self) -> int:
        """Free the slots of readers that died; a dead reader pins old pages."""
        return int(self._env.reader_check())

    def close(self) -> None:
        self._env.close()

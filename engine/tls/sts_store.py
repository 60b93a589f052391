"""MTA-STS policies on disk: one SQLite file per region node, shared by its pools.

RFC 8461 section 3.3 and 5 rest on the cache: whoever can block the fetch must not be able to switch a policy off, so
it has to outlive restarts. SQLite, because several pool processes read and write it (WAL; a busy writer is waited for)
and it is rarely written: once per policy and day. Calls block for a short time; run them in a thread.

At most `MAX_POLICIES`; those that expire first go first. A file that is damaged is put aside with the ending
`.damaged`, and said so: the policies are fetched again.
"""

import logging
import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.tls.sts import StsPolicy

log = logging.getLogger(__name__)

MAX_POLICIES = 200_000
BUSY_S = 5.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS policies (
    domain TEXT PRIMARY KEY, id TEXT NOT NULL, mode TEXT NOT NULL, mx TEXT NOT NULL, max_age_s INTEGER NOT NULL,
    fetched_ms INTEGER NOT NULL, expires_ms INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS policies_by_expiry ON policies (expires_ms);
"""


@dataclass(frozen=True, slots=True)
class StoredPolicy:
    """A policy with the id of the DNS record it was fetched for, and unix milliseconds."""

    policy: StsPolicy
    id: str
    fetched_ms: int
    expires_ms: int


class StsStore:
    """See the module docstring. Safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None

    def get(self, domain: str, now_ms: int) -> StoredPolicy | None:
        """The policy of a domain, unless it has expired."""
        row = self._run(
            "SELECT id, mode, mx, max_age_s, fetched_ms, expires_ms FROM policies "
            "WHERE domain = ? AND expires_ms > ?",
            (domain, now_ms),
        )
        if not row:
            return None
        id_, mode, mx, max_age_s, fetched_ms, expires_ms = row[0]
        policy = StsPolicy(domain, mode, tuple(mx.split()), max_age_s)
        return StoredPolicy(policy, id_, fetched_ms, expires_ms)

    def put(self, policy: StsPolicy, id_: str, now_ms: int) -> StoredPolicy:
        """Store a policy that has just been fetched, in place of the domain's former one."""
        stored = StoredPolicy(policy, id_, now_ms, now_ms + policy.max_age_s * 1000)
        self._run("DELETE FROM policies WHERE expires_ms <= ?", (now_ms,))
        self._run(
            "DELETE FROM policies WHERE domain IN (SELECT domain FROM policies ORDER BY expires_ms LIMIT "
            "max(0, (SELECT count(*) FROM policies) - ?))",
            (MAX_POLICIES - 1,),
        )
        self._run(
            "INSERT OR REPLACE INTO policies VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                policy.domain,
                id_,
                policy.mode,
                " ".join(policy.mx),
                policy.max_age_s,
                stored.fetched_ms,
                stored.expires_ms,
            ),
        )
        return stored

    def close(self) -> None:
        with self._lock:
            if self._database is not None:
                self._database.close()
                self._database = None

    def _run(self, statement: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        with self._lock:
            try:
                return self._opened().execute(statement, values).fetchall()
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                self._put_aside(error)
                return self._opened().execute(statement, values).fetchall()

    def _opened(self) -> sqlite3.Connection:
        if self._database is None:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            database = sqlite3.connect(
                self._path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
            )
            database.execute("PRAGMA journal_mode = WAL")
            database.executescript(_SCHEMA)
            self._database = database
        return self._database

    def _put_aside(self, error: sqlite3.DatabaseError) -> None:
        log.error("MTA-STS policies %s are damaged (%s): begun anew", self._path, error)
        if self._database is not None:
            self._database.close()
            self._database = None
        for ending in ("", "-wal", "-shm"):
            file = self._path.with_name(self._path.name + ending)
            if file.exists():
                file.replace(file.with_name(file.name + ".damaged"))

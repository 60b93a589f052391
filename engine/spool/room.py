"""Room on the disk and in the map: what is refused when there is too little, and by which name.

The watermarks leave room to settle what was accepted: only what adds to a spool is refused. On the disk that is
`min_free` and what the index may grow by when everything that is queued is deferred; the map, which is address space,
grows beyond its limit for what adds nothing.
"""

import errno
import os
from pathlib import Path
from typing import Any

from engine.spool.draft import Draft
from engine.spool.environment import Environment, MapFull
from engine.spool.errors import SpoolError, SpoolFull
from engine.spool.options import SpoolOptions

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_ROOM_BYTES = 1 << 20  # LMDB does not say why a write fell short


class Room:
    """Of the spool at `path`."""

    def __init__(self, path: Path, options: SpoolOptions) -> None:
        self._path = path
        self._options = options

    def free_bytes(self) -> int:
        stat = os.statvfs(self._path)
        return stat.f_bavail * stat.f_frsize

    def figures(self, env: Environment, txn: Any) -> dict[str, int]:
        """Free bytes and the watermarks."""
        options = self._options
        limit = round(options.map_size * options.watermark)
        reserve = options.min_free + env.growth_of_settling(txn)
        return {"free": self.free_bytes(), "reserve": reserve, "index_limit": limit}

    def check(self, env: Environment, draft: Draft) -> None:
        """SpoolFull beyond the watermarks."""
        free = self.free_bytes()
        reserve = self._options.min_free + env.growth_of_settling(draft.txn)
        if free < reserve:
            raise SpoolFull("disk", free, reserve)
        used = env.used_by_databases(draft.txn)
        limit = round(self._options.map_size * self._options.watermark)
        if used > limit:
            raise SpoolFull("map", used, limit)

    def refusal(self, cause: BaseException, env: Environment | None) -> SpoolError:
        """What to tell whoever asked for a write, or an opening, that has failed. `env` is None before it is open."""
        if isinstance(cause, MapFull) and env is not None:
            return SpoolFull("map", env.map_bytes(), self._options.map_size)
        number = getattr(cause.__cause__ or cause, "errno", None)
        try:
            free = self.free_bytes()
        except OSError:  # the directory itself cannot be reached: that is what `cause` says
            return SpoolError(f"spool {self._path}: not opened: {cause}")
        if number in NO_ROOM or free < max(self._options.min_free, NO_ROOM_BYTES):
            return SpoolFull("disk", free, self._options.min_free)
        return SpoolError(f"spool {self._path}: not written: {cause}")

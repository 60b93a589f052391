"""Until when a region's pools may send: a file of 16 bytes in its spool directory, mapped by the region and its pools.

The region writes the epoch and the end of its lease, in nanoseconds of the node's monotonic clock; a pool looks before
each transaction. So a region that is frozen, or that nobody hears any more, sends nothing beyond its lease, although
its pools are processes of their own. Without the file (a fleet without copies) nothing is limited.
"""

import mmap
import os
import struct
from pathlib import Path

NAME = "lease"
_FORMAT = struct.Struct("<QQ")


class LeaseFile:
    """The region's side."""

    def __init__(self, directory: Path) -> None:
        path = directory / NAME
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, _FORMAT.size)
            os.posix_fallocate(descriptor, 0, _FORMAT.size)
            self._map = mmap.mmap(descriptor, _FORMAT.size)
        finally:
            os.close(descriptor)
        self.write(0, 0)

    def write(self, epoch: int, until_ns: int) -> None:
        _FORMAT.pack_into(self._map, 0, epoch, max(0, until_ns))

    def close(self) -> None:
        self.write(0, 0)
        self._map.close()


class LeaseView:
    """A pool's side."""

    def __init__(self, directory: Path) -> None:
        with (directory / NAME).open("rb") as file:
            self._map = mmap.mmap(file.fileno(), _FORMAT.size, access=mmap.ACCESS_READ)

    def allows(self, epoch: int, now_ns: int) -> bool:
        """Whether what was handed over under this epoch may be sent now."""
        current, until_ns = _FORMAT.unpack_from(self._map, 0)
        return bool(current == epoch and now_ns < until_ns)

"""Append-only body segments beside the index.

A segment is a file of bodies, written and synced before the index transaction that names them, so a body that the
index knows is always whole; what a crash leaves behind the last indexed body is never referred to. Segments are
sealed at a size, and dropped whole when nothing in them is queued any more (docs/adr/0002-body-segments.md).
"""

import logging
import os
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

OPEN_FILES = 64

log = logging.getLogger(__name__)


class DamagedBody(ValueError):
    """The bytes of a body do not have the checksum that the index holds."""


def segment_path(directory: Path, number: int) -> Path:
    return directory / f"{number:08d}.seg"


def sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Make a directory and those above it, and have its name on disk before anything in it is relied on."""
    if not path.parent.exists():
        make_directory(path.parent)
    path.mkdir(exist_ok=True, mode=0o700)
    sync_directory(path.parent)


class SegmentFailed(Exception):
    """Bodies could not be synced: what was appended since the last sync may never reach the disk."""


class SegmentWriter:
    """The segment that is being written. One thread. `number` is that of the newest segment, open or not; 0: none."""

    def __init__(self, directory: Path, limit: int) -> None:
        self._directory = directory
        self._limit = limit
        self._descriptor = -1
        self.number = 0
        self.size = 0
        self._is_dirty = False

    def begin(self, number: int) -> None:
        """Seal the open segment and start a new file, whose directory entry is on disk before anything is in it.

        OSError: no segment is open.
        """
        self.sync()
        self.close()
        path = segment_path(self._directory, number)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            sync_directory(self._directory)
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        self.number = number
        self.size = 0

    @property
    def is_open(self) -> bool:
        return self._descriptor >= 0

    @property
    def is_full(self) -> bool:
        return self.size >= self._limit

    def append(self, blob: bytes) -> int:
        """Write the blob; returns its offset. OSError: nothing of it counts, or takes up room."""
        offset = self.size
        view = memoryview(blob)
        written = 0
        try:
            while written < len(view):
                written += os.pwrite(self._descriptor, view[written:], offset + written)
        except OSError:
            os.ftruncate(self._descriptor, offset)
            raise
        self.size = offset + len(view)
        self._is_dirty = True
        return offset

    def rewind(self, size: int) -> None:
        """Forget what was appended after `size`, and give its room back."""
        self.size = size
        try:
            os.ftruncate(self._descriptor, size)
        except OSError as error:  # it is written over or dropped later
            log.warning("segment %d keeps what was undone: %s", self.number, error)

    def sync(self) -> None:
        """Bring everything appended to disk.

        SegmentFailed: the segment is closed for good. The kernel reports a failed write-back once and forgets it, so
        a second sync of the same file would prove nothing.
        """
        if not self._is_dirty:
            return
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            self.close()
            raise SegmentFailed(f"segment {self.number}: {error}") from error
        self._is_dirty = False

    def close(self) -> None:
        self._is_dirty = False
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


class SegmentReader:
    """Reads bodies; keeps a bounded number of files open. A dropped segment stays readable while it is open."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: OrderedDict[int, int] = OrderedDict()

    def read(self, content: Sequence[int]) -> bytes:
        """The body at [segment, offset, length, crc32]; FileNotFoundError, DamagedBody."""
        number, offset, length, checksum = content
        descriptor = self._files.get(number)
        if descriptor is None:
            descriptor = os.open(segment_path(self._directory, number), os.O_RDONLY)
            self._files[number] = descriptor
            if len(self._files) > OPEN_FILES:
                _, oldest = self._files.popitem(last=False)
                os.close(oldest)
        body = os.pread(descriptor, length, offset)
        if len(body) != length or zlib.crc32(body) != checksum:
            raise DamagedBody(f"body at segment {number}, offset {offset}, {length} bytes: wrong checksum")
        return body

    def close(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

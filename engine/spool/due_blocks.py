"""The rows of the due index: blocks of due messages of one spool queue, and how changes are merged into them.

due          queue (4) due_ms (6) id (8) of the first message, big endian -> up to BLOCK messages in columns, the first
             one included: due_ms (6) id (8) expires_ms (6) each; or of one message just its expires_ms (6), which is
             all that earlier releases wrote
due_journal  number (8) -> `+` and rows of due key (18) expires_ms (6), or `-` and rows of due key (18), in columns

In columns: count (2), mask (3), then column by column of the rows' bytes either one byte, where all rows have the same,
or one per row (bit i of the mask is set for column i). Messages that came together differ in few of their bytes.

The blocks of a queue do not overlap and stand in order, so that a queue's messages are read in order of their due time.
"""

import logging
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engine.spool.records import DUE_KEY_SIZE, DamagedRecord

BLOCK = 96  # messages; even if they have nothing in common, two blocks go on a page
ENTRY_SIZE = 20
EXPIRY_SIZE = 6
ENTRY = struct.Struct(f"{ENTRY_SIZE}s")
PLACED = struct.Struct(f"{ENTRY_SIZE - EXPIRY_SIZE}s{EXPIRY_SIZE}s")
HEAD_SIZE = 5
BLOCKS_KEPT = 10_000

log = logging.getLogger(__name__)


def pack_columns(rows: bytes, width: int) -> bytes:
    """Rows of `width` bytes each, at least one and less than 65,536."""
    count = len(rows) // width
    mask = 0
    columns = []
    for index in range(width):
        column = rows[index::width]
        if column == column[:1] * count:
            columns.append(column[:1])
        else:
            mask |= 1 << index
            columns.append(column)
    return count.to_bytes(2, "big") + mask.to_bytes(3, "big") + b"".join(columns)


def unpack_columns(value: bytes, width: int) -> bytes:
    """The rows. DamagedRecord: they are none."""
    count = int.from_bytes(value[:2], "big")
    mask = int.from_bytes(value[2:HEAD_SIZE], "big")
    varying = mask.bit_count()
    if mask >> width or not count or len(value) != HEAD_SIZE + width - varying + varying * count:
        raise DamagedRecord(f"{len(value)} bytes of columns are damaged")
    row = bytearray(width)
    columns = []
    at = HEAD_SIZE
    for index in range(width):
        if mask >> index & 1:
            columns.append((index, at))
            at += count
        else:
            row[index] = value[at]
            at += 1
    rows = row * count
    for index, at in columns:
        rows[index::width] = value[at : at + count]
    return bytes(rows)


def rows_of(key: bytes, value: bytes) -> bytes:
    """The messages of a block in order: due_ms, id and expires_ms each; none of a damaged one, which is logged."""
    if len(value) == EXPIRY_SIZE:
        return key[4:] + value
    try:
        return unpack_columns(value, ENTRY_SIZE)
    except DamagedRecord as error:
        log.error("spool: the due messages from %s on cannot be read: %s", key.hex(), error)
        return b""


def entries_of(key: bytes, value: bytes) -> list[bytes]:
    """The same, 20 bytes each."""
    return [entry for (entry,) in ENTRY.iter_unpack(rows_of(key, value))]


def count_of(value: bytes) -> int:
    """How many messages a block holds."""
    return 1 if len(value) == EXPIRY_SIZE else int.from_bytes(value[:2], "big")


def seek(cursor: Any, key: bytes) -> bool:
    """Go to the block of the key's queue in which the key is, if it is in any; otherwise to the next of that queue.

    False: neither is there.
    """
    if cursor.set_range(key):
        if cursor.key() == key:
            return True
        if not cursor.prev():
            cursor.first()
        elif cursor.key()[:4] != key[:4]:
            cursor.next()
    elif not cursor.last():
        return False
    return bool(cursor.key()[:4] == key[:4])


def stored_rows(cursor: Any, after: bytes) -> Iterator[bytes]:
    """The messages behind a due key, or the beginning of one, in its queue, in order; as `rows_of`, block by block."""
    prefix = after[:4]
    found = seek(cursor, after)
    behind = after[4:]
    while found:
        key = bytes(cursor.key())
        if key[:4] != prefix:
            return
        rows = rows_of(key, bytes(cursor.value()))
        if behind:
            rows = rows[place_behind(rows, behind) :]
            behind = b""
        if rows:
            yield rows
        found = cursor.next()


def place_behind(rows: bytes, behind: bytes, *, or_at: bool = False) -> int:
    """Where in the rows of a block the first message behind that place (or at it) begins; their length: nowhere."""
    low, high = 0, len(rows) // ENTRY_SIZE
    while low < high:
        middle = (low + high) // 2
        place = rows[middle * ENTRY_SIZE : middle * ENTRY_SIZE + 14]
        if place > behind or (or_at and place == behind):
            high = middle
        else:
            low = middle + 1
    return low * ENTRY_SIZE


class StoredBlocks:
    """Which due keys stand in the blocks, for one transaction that changes nothing: of each queue the last block that
    was looked at is kept, for at most `BLOCKS_KEPT` queues."""

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor
        self._kept: dict[bytes, tuple[bytes, bytes, frozenset[bytes]]] = {}

    def __contains__(self, key: bytes) -> bool:
        first, end, places = self._kept.get(key[:4], (key, key, frozenset()))
        if not first <= key < end:
            first, end, places = self._load(key)
        return key[4:] in places

    def _load(self, key: bytes) -> tuple[bytes, bytes, frozenset[bytes]]:
        cursor, prefix = self._cursor, key[:4]
        if not seek(cursor, key):
            return key, key, frozenset()
        first = bytes(cursor.key())
        places = frozenset(entry[:14] for entry in entries_of(first, bytes(cursor.value())))
        end = bytes(cursor.key()) if cursor.next() and cursor.key()[:4] == prefix else prefix + b"\xff" * 15
        if len(self._kept) >= BLOCKS_KEPT:
            self._kept.clear()
        self._kept[prefix] = first, end, places
        return self._kept[prefix]


def merge(cursor: Any, keys: Sequence[bytes], changes: Mapping[bytes, bytes | None]) -> None:
    """Bring changes of one queue into its blocks. `keys`: those to bring in, in order; None: it is due no more."""
    prefix = keys[0][:4]
    at = 0
    while at < len(keys):
        first, end = b"", b""
        entries: dict[bytes, bytes] = {}
        if seek(cursor, keys[at]):
            found = bytes(cursor.key())
            entries = {entry[:14]: entry[14:] for entry in entries_of(found, bytes(cursor.value()))}
            first = found if entries else b""  # a damaged one stays, for the audit to tell
            if cursor.next() and cursor.key()[:4] == prefix:
                end = bytes(cursor.key())
        last = max(entries, default=b"")
        is_changed, is_appended = False, True
        while at < len(keys) and (not end or keys[at] < end):
            place, expiry = keys[at][4:], changes[keys[at]]
            at += 1
            if expiry is None:
                is_changed |= entries.pop(place, None) is not None
            else:
                is_changed |= entries.get(place) != expiry
                is_appended &= place > last
                entries[place] = expiry
        if is_changed:
            _replace(cursor, prefix, first, sorted(entries.items()), is_appended=is_appended)


def _replace(
    cursor: Any, prefix: bytes, old: bytes, entries: Sequence[tuple[bytes, bytes]], *, is_appended: bool
) -> None:
    """Put blocks of these in the place of the block with the key `old` (b"": there is none)."""
    if old and (not entries or old[4:] != entries[0][0]) and cursor.set_key(old):
        cursor.delete()
    size = BLOCK
    if len(entries) > BLOCK and not is_appended:  # more may come in between: room in all of them
        size = -(-len(entries) // -(-len(entries) // BLOCK))
    for start in range(0, len(entries), size):
        part = entries[start : start + size]
        if len(part) == 1:
            value = part[0][1]
        else:
            value = pack_columns(b"".join([place + expiry for place, expiry in part]), ENTRY_SIZE)
        cursor.put(prefix + part[0][0], value)


def journal_rows(changes: Mapping[bytes, bytes | None]) -> list[bytes]:
    """Changes as values of the journal, none larger than half a page."""
    added = [key + expiry for key, expiry in changes.items() if expiry is not None]
    removed = [key for key, expiry in changes.items() if expiry is None]
    rows = []
    for sign, width, entries in ((b"+", DUE_KEY_SIZE + EXPIRY_SIZE, added), (b"-", DUE_KEY_SIZE, removed)):
        at_once = 1920 // width
        for start in range(0, len(entries), at_once):
            rows.append(sign + pack_columns(b"".join(entries[start : start + at_once]), width))
    return rows


def changes_of(row: bytes) -> dict[bytes, bytes | None]:
    """The changes in a value of the journal. DamagedRecord: it is none."""
    if row[:1] == b"+":
        width = DUE_KEY_SIZE + EXPIRY_SIZE
        rows = unpack_columns(row[1:], width)
        return {
            rows[at : at + DUE_KEY_SIZE]: rows[at + DUE_KEY_SIZE : at + width]
            for at in range(0, len(rows), width)
        }
    if row[:1] == b"-":
        rows = unpack_columns(row[1:], DUE_KEY_SIZE)
        return {rows[at : at + DUE_KEY_SIZE]: None for at in range(0, len(rows), DUE_KEY_SIZE)}
    raise DamagedRecord(f"a row of the due journal begins with {row[:1]!r}")

"""The events log: JSON lines, shipped at least once from the spool's outbox, outside the mail path.

An event is written to the outbox in the same transaction as the outcome it records. Here it is appended to
`events-NNNNNN.jsonl`, and trimmed from the outbox when the append is on disk. A crash between the two repeats some
lines: each carries its outbox number, so a reader can drop what it has seen. What a full disk or a crash left of a line
is cut off before the next one is written. All of it happens on a thread: a slow disk holds up nothing but the log.
"""

import asyncio
import logging
import os
import threading
from pathlib import Path
from typing import Any, Protocol

import msgpack
import orjson

from engine.spool.bodies import sync_directory
from engine.values.outcome import OutcomeKind
from engine.values.stream import Stream
from native.events import message_lines

log = logging.getLogger(__name__)

IDLE_S = 0.2
BUSY_S = 0.05
CHUNK = 2048
TAIL = 65_536

_EVENTS = {int(kind): str(kind) for kind in OutcomeKind}
_STREAMS = {int(stream): str(stream) for stream in Stream}


def _by_number(names: dict[int, str]) -> tuple[bytes, ...]:
    return tuple([names.get(number, "").encode() for number in range(max(names) + 1)])


_KIND_NAMES = _by_number(_EVENTS)
_STREAM_NAMES = _by_number(_STREAMS)


class Outbox(Protocol):
    def outbox_chunks(self, limit: int) -> list[tuple[int, bytes]]: ...

    def trim_outbox(self, upto_seq: int) -> object: ...


class EventLog:
    """Ships one spool's events into files of at most `max_file` bytes each."""

    def __init__(self, outbox: Outbox, directory: Path, max_file: int) -> None:
        self._outbox = outbox
        self._directory = directory
        self._max_file = max_file
        self._task: asyncio.Task[None] | None = None
        self._lock = threading.Lock()
        self._shipped = 0

    def start(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Ship what is left, and end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            while await asyncio.to_thread(self._try_to_ship):
                pass

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(BUSY_S if await asyncio.to_thread(self._try_to_ship) else IDLE_S)

    def _try_to_ship(self) -> int:
        try:
            return self.ship()
        except OSError as error:
            # mail goes on; the events stay in the outbox until there is room for them again
            log.error("events log %s: %s", self._directory, error)
        except Exception:  # of the spool; it tells its callers itself, and may be well again
            log.exception("events log %s", self._directory)
        return 0

    def ship(self) -> int:
        """Move one chunk of the outbox into the log; returns how many events. OSError: nothing of it is in the log."""
        with self._lock:
            return self._ship()

    def _ship(self) -> int:
        chunks = [chunk for chunk in self._outbox.outbox_chunks(CHUNK) if chunk[0] > self._shipped]
        if not chunks:
            return 0
        lines = b"".join([event_lines(sequence, events) for sequence, events in chunks])
        _append(self._current(), lines)
        self._shipped = chunks[-1][0]
        self._outbox.trim_outbox(self._shipped)
        return lines.count(b"\n")

    def _current(self) -> Path:
        files = sorted(self._directory.glob("events-*.jsonl"))
        if not files:
            return self._directory / "events-000001.jsonl"
        last = files[-1]
        if os.stat(last).st_size < self._max_file:
            return last
        return self._directory / f"events-{int(last.stem.split('-')[1]) + 1:06d}.jsonl"


def _append(path: Path, data: bytes) -> None:
    """Have the data on disk behind the last whole line of the file, all or nothing of it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        end = _end_of_lines(descriptor)
        try:
            os.ftruncate(descriptor, end)
            written = 0
            while written < len(data):
                written += os.pwrite(descriptor, data[written:], end + written)
            os.fsync(descriptor)
            if not end:
                sync_directory(path.parent)
        except OSError:
            os.ftruncate(descriptor, end)
            raise
    finally:
        os.close(descriptor)


def _end_of_lines(descriptor: int) -> int:
    """Offset behind the last line end of a file."""
    size = os.fstat(descriptor).st_size
    while size:
        start = max(0, size - TAIL)
        found = os.pread(descriptor, size - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        size = start
    return 0


def _line(sequence: int, event: list[Any]) -> bytes:
    """One event that nobody can write as it should be must not keep the others from the log."""
    try:
        return event_line(sequence, event)
    except (ValueError, TypeError, LookupError) as error:
        log.error("event %d cannot be written: %r: %r", sequence, error, event)
        said = {"seq": sequence, "at_ms": 0, "event": "unreadable", "error": repr(error), "raw": ascii(event)}
        return orjson.dumps(said, option=orjson.OPT_APPEND_NEWLINE)


def event_lines(sequence: int, chunk: bytes) -> bytes:
    """A chunk of the outbox (a msgpack list of events) as JSON lines."""
    lines = message_lines(sequence, chunk, _KIND_NAMES, _STREAM_NAMES)
    if lines is not None and _is_utf8(lines):
        return lines
    # not all of them are about messages, or a text is none
    events = msgpack.unpackb(chunk, unicode_errors="surrogateescape")
    return b"".join([_line(sequence, event) for event in events])


def _is_utf8(lines: bytes) -> bool:
    try:
        lines.decode()
    except UnicodeDecodeError:
        return False
    return True


def event_line(sequence: int, event: list[Any]) -> bytes:
    """One event as a JSON line; the fields of one about a message are named below.

    An event that is not about a message has three fields: time, kind, and what it says.
    """
    if len(event) == 3:
        at_ms, name, said = event
        return orjson.dumps(
            {"seq": sequence, "at_ms": at_ms, "event": name, **said}, option=orjson.OPT_APPEND_NEWLINE
        )
    (
        at_ms,
        kind,
        id_,
        code,
        enhanced,
        text,
        host,
        source,
        flags,
        attempts,
        recipient,
        stream,
        tenant,
        campaign,
        *classified,
    ) = event
    category, hard, scope = classified or ("", False, "")  # events of the first release had none
    return orjson.dumps(
        {
            "seq": sequence,
            "at_ms": at_ms,
            "event": _EVENTS[kind],
            "id": f"{id_:016x}",
            "recipient": recipient,
            "stream": _STREAMS[stream],
            "tenant": tenant,
            "campaign": campaign,
            "code": code,
            "enhanced": enhanced,
            "text": text,
            "host": host,
            "source": source,
            "attempt": attempts,
            "possible_duplicate": bool(flags & 1),
            "category": category,
            "hard": hard,
            "scope": scope,
        },
        option=orjson.OPT_APPEND_NEWLINE,
    )

"""Events go into the log at least once, in order, and leave the outbox only then."""

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import msgpack
import orjson
import pytest

from engine.region.outbox import EventLog, event_line
from engine.values.outcome import OutcomeKind
from engine.values.stream import Stream


class Outbox:
    """A spool's outbox. A trim may be on its way for a while, as a commit is."""

    def __init__(self) -> None:
        self.chunks: list[tuple[int, bytes]] = []
        self.trimmed = 0
        self.trims_arrive = True

    def add(self, sequence: int, *names: str) -> None:
        events = [[1000 + sequence, name, {"about": name}] for name in names]
        self.chunks.append((sequence, msgpack.packb(events)))

    def outbox_chunks(self, limit: int) -> list[tuple[int, bytes]]:
        return self.chunks[:limit]

    def trim_outbox(self, upto_seq: int) -> None:
        self.trimmed = upto_seq
        if self.trims_arrive:
            self.chunks = [chunk for chunk in self.chunks if chunk[0] > upto_seq]


def lines(directory: Path) -> list[dict[str, Any]]:
    return [
        orjson.loads(line)
        for path in sorted(directory.glob("events-*.jsonl"))
        for line in path.read_bytes().splitlines()
    ]


def test_what_is_in_the_outbox_is_logged_in_order_and_then_trimmed(tmp_path: Path) -> None:
    outbox = Outbox()
    outbox.add(1, "a", "b")
    outbox.add(2, "c")
    log = EventLog(outbox, tmp_path, 1 << 20)
    assert log.ship() == 3
    assert [(line["seq"], line["event"]) for line in lines(tmp_path)] == [(1, "a"), (1, "b"), (2, "c")]
    assert outbox.trimmed == 2
    assert log.ship() == 0


def test_what_was_logged_is_not_repeated_while_its_trim_is_on_the_way(tmp_path: Path) -> None:
    outbox = Outbox()
    outbox.trims_arrive = False
    outbox.add(1, "a")
    log = EventLog(outbox, tmp_path, 1 << 20)
    assert log.ship() == 1
    outbox.add(2, "b")
    assert log.ship() == 1
    assert [line["event"] for line in lines(tmp_path)] == ["a", "b"]


def test_nothing_leaves_the_outbox_that_is_not_in_the_log(tmp_path: Path) -> None:
    """The log's directory cannot be written: the events stay, and come when it can."""
    outbox = Outbox()
    outbox.add(1, "a")
    log = EventLog(outbox, tmp_path / "missing", 1 << 20)
    with pytest.raises(OSError, match="No such file"):
        log.ship()
    assert outbox.trimmed == 0
    (tmp_path / "missing").mkdir()
    assert log.ship() == 1
    assert [line["event"] for line in lines(tmp_path / "missing")] == ["a"]


def test_files_are_of_a_size_and_a_restart_goes_on_in_the_last(tmp_path: Path) -> None:
    outbox = Outbox()
    for sequence in range(1, 10):
        outbox.add(sequence, f"event {sequence}")
        EventLog(outbox, tmp_path, 120).ship()
    names = [path.name for path in sorted(tmp_path.glob("*.jsonl"))]
    assert names[:2] == ["events-000001.jsonl", "events-000002.jsonl"]
    assert 3 <= len(names) < 9
    assert [line["seq"] for line in lines(tmp_path)] == list(range(1, 10))


def test_an_outcome_as_a_line() -> None:
    event = [
        1_800_000_000_000,
        int(OutcomeKind.BOUNCED),
        (1 << 48) + 5,
        550,
        "5.1.1",
        "no such user",
        "mx.example.net",
        3,
        1,
        2,
        "user@example.net",
        int(Stream.MARKETING),
        "tenant",
        "spring",
        "bad-mailbox",
        True,
        "recipient",
    ]
    assert orjson.loads(event_line(7, event)) == {
        "seq": 7,
        "at_ms": 1_800_000_000_000,
        "event": "bounced",
        "id": "0001000000000005",
        "recipient": "user@example.net",
        "stream": "marketing",
        "tenant": "tenant",
        "campaign": "spring",
        "code": 550,
        "enhanced": "5.1.1",
        "text": "no such user",
        "host": "mx.example.net",
        "source": 3,
        "attempt": 2,
        "possible_duplicate": True,
        "category": "bad-mailbox",
        "hard": True,
        "scope": "recipient",
    }
    # an event of the first release says nothing of what the reply meant
    assert orjson.loads(event_line(7, event[:-3]))["category"] == ""


def test_what_happened_last_is_logged_before_the_log_ends(tmp_path: Path) -> None:
    async def go() -> None:
        outbox = Outbox()
        log = EventLog(outbox, tmp_path, 1 << 20)
        log.start()
        await asyncio.sleep(0)  # it has looked, found nothing, and rests
        outbox.add(1, "last")
        await log.stop()
        assert outbox.trimmed == 1

    asyncio.run(go())
    assert [line["event"] for line in lines(tmp_path)] == ["last"]


def test_a_log_that_cannot_be_written_at_the_end_leaves_the_events_in_the_outbox(tmp_path: Path) -> None:
    async def go() -> None:
        outbox = Outbox()
        log = EventLog(outbox, tmp_path / "log", 1 << 20)
        log.start()
        await asyncio.sleep(0)
        outbox.add(1, "last")
        (tmp_path / "log").rmdir()
        await log.stop()
        assert outbox.trimmed == 0

    asyncio.run(go())


def test_what_a_crash_left_of_a_line_is_cut_off(tmp_path: Path) -> None:
    (tmp_path / "events-000001.jsonl").write_bytes(b'{"seq":1,"event":"a"}\n{"seq":2,"eve' + b"n" * 70_000)
    outbox = Outbox()
    outbox.add(2, "b")
    EventLog(outbox, tmp_path, 1 << 20).ship()
    assert [(line["seq"], line["event"]) for line in lines(tmp_path)] == [(1, "a"), (2, "b")]


def test_a_disk_that_is_full_in_the_middle_of_a_line_leaves_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = Outbox()
    outbox.add(1, "a")
    log = EventLog(outbox, tmp_path, 1 << 20)
    log.ship()
    outbox.add(2, "b", "c")
    real = os.pwrite
    room = [30]

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real(descriptor, data[: room[0]], offset)
        room[0] -= written
        return written

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OSError, match="No space"):
        log.ship()
    assert outbox.trimmed == 1
    assert [line["event"] for line in lines(tmp_path)] == ["a"]
    room[0] = 1 << 20
    assert log.ship() == 2
    assert [line["event"] for line in lines(tmp_path)] == ["a", "b", "c"]


def test_an_event_leaves_the_outbox_when_the_log_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power failure may take what was written and not synced, and the trim is synced."""
    outbox = Outbox()
    outbox.add(1, "a")

    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output"):
        EventLog(outbox, tmp_path, 1 << 20).ship()
    assert outbox.trimmed == 0


def test_an_event_that_cannot_be_written_does_not_hold_up_the_others(tmp_path: Path) -> None:
    outbox = Outbox()
    outbox.add(1, "a")
    odd = [[1000, 99, 5], [1000, "odd", {"text": "\ud800"}], [1000] * 9]
    outbox.chunks.append((2, msgpack.packb(odd, unicode_errors="surrogatepass")))
    outbox.add(3, "b")
    assert EventLog(outbox, tmp_path, 1 << 20).ship() == 5
    assert [line["event"] for line in lines(tmp_path)] == ["a", *["unreadable"] * 3, "b"]


def test_a_log_goes_on_after_the_spool_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = Outbox()

    class Failing:
        failures = 2

        def outbox_chunks(self, limit: int) -> list[tuple[int, bytes]]:
            if self.failures:
                self.failures -= 1
                raise LookupError("the environment is closed")
            return outbox.outbox_chunks(limit)

        def trim_outbox(self, upto_seq: int) -> None:
            outbox.trim_outbox(upto_seq)

    async def go() -> None:
        outbox.add(1, "a")
        log = EventLog(Failing(), tmp_path, 1 << 20)
        log.start()
        async with asyncio.timeout(20):
            while not outbox.trimmed:
                await asyncio.sleep(0.01)
        await log.stop()

    monkeypatch.setattr("engine.region.outbox.IDLE_S", 0.0)
    asyncio.run(go())
    assert [line["event"] for line in lines(tmp_path)] == ["a"]

"""Events go into the log at least once, in order, and leave the outbox only then."""

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from engine.region.outbox import EventLog, event_line
from engine.values.outcome import OutcomeKind
from engine.values.stream import Stream


class Outbox:
    """A spool's outbox. A trim may be on its way for a while, as a commit is."""

    def __init__(self) -> None:
        self.chunks: list[tuple[int, list[list[Any]]]] = []
        self.trimmed = 0
        self.trims_arrive = True

    def add(self, sequence: int, *names: str) -> None:
        self.chunks.append((sequence, [[1000 + sequence, name, {"about": name}] for name in names]))

    def read_outbox(self, limit: int) -> list[tuple[int, list[list[Any]]]]:
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

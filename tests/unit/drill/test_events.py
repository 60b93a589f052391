"""What a drill reads of events logs, which are far larger than what it asks for."""

import json
from pathlib import Path

from engine.drill.events import EventLogs


def line(seq: int, at_ms: int, **more: object) -> str:
    plain = {"event": "delivered", "seq": seq, "at_ms": at_ms, "id": f"{seq:x}", "recipient": "a@example.com"}
    return json.dumps({**plain, **more}) + "\n"


def log_of(directory: Path, text: str, *, region: str = "eu", number: int = 1) -> Path:
    path = directory / region / f"events-{number:06d}.jsonl"
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(text)
    return path


def seqs(logs: EventLogs) -> list[int]:
    return [int(event["seq"]) for event in logs.of_messages()]


def test_what_was_written_before_it_began_is_not_read(tmp_path: Path) -> None:
    log_of(tmp_path, "old, and no JSON: who reads it fails\n" * 10_000)
    log_of(tmp_path, "as is this\n", region="us")
    logs = EventLogs(tmp_path)
    logs.begin(1000)
    assert seqs(logs) == []
    log_of(tmp_path, line(1, 1000))
    log_of(tmp_path, line(2, 1001), number=2)
    log_of(tmp_path, line(3, 1002), region="ap")
    assert sorted(seqs(logs)) == [1, 2, 3]


def test_what_is_shipped_late_of_the_time_before_does_not_count(tmp_path: Path) -> None:
    logs = EventLogs(tmp_path)
    logs.begin(1000)
    log_of(tmp_path, line(1, 999) + line(2, 1000))
    assert seqs(logs) == [2]


def test_a_line_that_was_cut_off_and_written_again_is_read(tmp_path: Path) -> None:
    path = log_of(tmp_path, line(1, 10) + '{"event": "deliv')
    logs = EventLogs(tmp_path)
    logs.begin(0)
    assert seqs(logs) == [], "it has no end yet"
    path.write_text(line(1, 10))
    log_of(tmp_path, line(2, 20))
    assert seqs(logs) == [2]


def test_from_the_beginning_each_event_once(tmp_path: Path) -> None:
    removed = {"event": "reputation", "source": "eu-1", "state": "removed"}
    other = {key: value for key, value in json.loads(line(3, 30)).items() if key not in ("id", "recipient")}
    log_of(tmp_path, line(1, 10) + line(2, 20) + line(2, 20) + line(2, 20, id="ff"))
    log_of(
        tmp_path,
        json.dumps({**other, **removed}) + "\n" + json.dumps({**other, **removed, "at_ms": 25}) + "\n",
    )
    log_of(tmp_path, line(1, 10), region="us")
    logs = EventLogs(tmp_path)
    assert sorted(seqs(logs)) == [1, 1, 2, 2], "numbers are of a region"
    assert logs.left_rotation_ms("eu-1") == 25
    assert logs.left_rotation_ms("eu-2") is None


def test_what_was_read_is_not_read_again(tmp_path: Path) -> None:
    logs = EventLogs(tmp_path, "eu")
    logs.begin(15)
    log_of(tmp_path, line(9, 90), region="us")

    def more(lines: int) -> tuple[list[int], bool]:
        events, is_more = logs.more_of_messages(lines)
        return [int(event["seq"]) for event in events], is_more

    assert more(3) == ([], False), "that was another region's"
    path = log_of(tmp_path, line(1, 10) + line(2, 20) + line(3, 30))
    log_of(tmp_path, line(3, 30) + line(4, 40), number=2)
    assert more(2) == ([2], True), "the first is too old"
    with path.open("r+") as file:
        file.write("x" * len(line(1, 10) + line(2, 20)))  # who reads that again fails
    assert more(2) == ([3], True), "and what is there twice counts once"
    assert more(2) == ([4], False)
    log_of(tmp_path, line(5, 50) + '{"event"', number=2)
    assert more(2) == ([5], False)
    assert more(2) == ([], False)


def test_files_that_are_taken_away_or_replaced_while_they_are_read(tmp_path: Path) -> None:
    logs = EventLogs(tmp_path, "eu")
    path = log_of(tmp_path, line(1, 10) + line(2, 20))
    logs.begin(0)
    path.rename(tmp_path / "kept-elsewhere")
    assert logs.more_of_messages(9) == ([], False)
    log_of(tmp_path, line(3, 30))
    events, _ = logs.more_of_messages(9)
    assert [event["seq"] for event in events] == [3], "another file has the name now"
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    assert logs.more_of_messages(9) == ([], False), "it was there a moment ago"

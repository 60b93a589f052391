"""What a process tells of itself, and what /proc tells of another."""

import os
from pathlib import Path

import pytest

from engine.ops import process
from engine.ops.process import process_usage, waits_for_disk


def test_usage_is_of_this_process() -> None:
    usage = process_usage()
    assert usage["pid"] == os.getpid()
    assert 0 < usage["anonymous_bytes"] <= usage["resident_bytes"]


@pytest.mark.parametrize("states", ["D", "SDS", "RSD"])
def test_one_thread_that_waits_is_enough(
    states: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert _of(states, monkeypatch, tmp_path)


@pytest.mark.parametrize("states", ["S", "RS", "TTT", "Z"])
def test_sleeping_running_and_stopped_threads_wait_for_no_disk(
    states: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert not _of(states, monkeypatch, tmp_path)


def _of(states: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> bool:
    """Of a process with a thread in each of these states; the names of its threads are meant to mislead."""
    for number, state in enumerate(states, 7):
        thread = tmp_path / "7" / "task" / str(number)
        thread.mkdir(parents=True)
        (thread / "stat").write_text(f"{number} (a) D (b) {state} 1 7 7 0 -1\n")
    (tmp_path / "7" / "task" / "99").mkdir()  # one that has just ended
    monkeypatch.setattr(process, "PROC", tmp_path)
    return waits_for_disk(7)


def test_of_real_processes() -> None:
    assert not waits_for_disk(os.getpid())
    assert not waits_for_disk(2**22 + 1), "there is none"

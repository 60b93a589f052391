"""The result of bench/failover.py: kept round by round, gone on with, refused if it is another's, and its table."""

import json
from pathlib import Path
from typing import Any

import pytest

import bench.failover
from bench.failover_result import Result, failures, table

SETTINGS = {"rate": 100.0, "messages": 4000}


def figures(**changes: Any) -> dict[str, Any]:
    return {
        "detection_s": 0.8,
        "gap_s": 0.1,
        "share_gap_s": 0.9,
        "share_gap_before_s": 0.05,
        "drain_s": 1.25,
        "receipt_p99_ms": 320.4,
        "accepted": 1000,
        "accepted_per_s": 99.6,
        "lost": 0,
        "duplicated": 3,
        "unmarked": 0,
        **changes,
    }


def test_what_is_over_is_kept_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results" / "failover.json"
    asked: list[str] = []

    def run(kind: str, options: object) -> dict[str, Any]:
        asked.append(kind)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return figures()

    monkeypatch.setattr(bench.failover, "run", run)
    arguments = [
        "--only",
        "pool-kill",
        "--only",
        "head-kill",
        "--rounds",
        "2",
        "--rate",
        "100",
        "--result",
        str(path),
    ]
    with pytest.raises(KeyboardInterrupt):
        bench.failover.main(arguments)
    assert {name: len(rounds) for name, rounds in json.loads(path.read_text())["rounds"].items()} == {
        "pool-kill": 1,
        "head-kill": 1,
    }
    assert bench.failover.main(arguments) == 0
    assert asked == ["pool-kill", "head-kill", "pool-kill", "pool-kill", "head-kill"]
    assert bench.failover.main(arguments) == 0
    assert len(asked) == 5


def test_a_round_that_fails_fails_the_bench_and_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "failover.json"
    arguments = ["--only", "pool-kill", "--rounds", "2", "--result", str(path)]

    def fail(kind: str, options: object) -> dict[str, Any]:
        raise RuntimeError("no pool runs")

    monkeypatch.setattr(bench.failover, "run", fail)
    assert bench.failover.main(arguments) == 1
    assert not path.exists()
    monkeypatch.setattr(bench.failover, "run", lambda kind, options: figures(lost=1))
    assert bench.failover.main(arguments) == 1
    assert Result.read(path, None, is_fresh=False).count("pool-kill") == 2


def test_other_settings_do_not_go_into_the_same_result(tmp_path: Path) -> None:
    path = tmp_path / "failover.json"
    Result.read(path, SETTINGS, is_fresh=False).add("pool-kill", figures())
    other = {**SETTINGS, "rate": 200.0}
    with pytest.raises(
        ValueError, match=r"was measured with settings .*100.0.* and these are .*200.0.*--fresh"
    ):
        Result.read(path, other, is_fresh=False)
    assert Result.read(path, other, is_fresh=True).count("pool-kill") == 0
    assert Result.read(path, SETTINGS, is_fresh=False).count("pool-kill") == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"settings": {}, "machine": {}, "rounds": []}'])
def test_a_file_that_is_something_else_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "failover.json"
    path.write_text(text)
    assert bench.failover.main(["--only", "pool-kill", "--result", str(path)]) == 2
    assert bench.failover.main(["--table", "--result", str(path)]) == 2
    assert path.read_text() == text


def test_the_table_has_medians_and_the_worst() -> None:
    rounds = [figures(detection_s=value, lost=lost) for value, lost in ((0.8, 0), (0.9, 0), (2.0, 1))]
    prices = [{"messages": 100, "unique": 100, "seconds": seconds} for seconds in (1.0, 2.0)]
    document = {
        "settings": SETTINGS,
        "rounds": {
            "region-kill": rounds,
            "pool-kill": [figures(detection_s=None)],
            "replicas-0": prices[:1],
            "replicas-1": prices[1:],
        },
    }
    lines = table(document)
    assert lines[2] == (
        "| region-kill | 3 | 0.90 (2.00) | 0.90 (0.90) | 0.05 (0.05) | 1.25 (1.25) | 320 (320) | 3,000 | 1 | 9, 0 |"
    )
    assert lines[3].startswith("| pool-kill | 1 | - |")
    assert "Asked for 100 messages/s, accepted 100 (100)." in lines
    assert "Without copies 100 messages/s, with 50: 0.50 (0.50) of it, 1 rounds." in lines
    assert failures(document) == ["region-kill, round 3: 1 messages lost"]


def test_what_comes_twice_has_come_just_before_the_fault() -> None:
    def said(**changes: Any) -> list[str]:
        return failures({"rounds": {"pool-kill": [figures(**changes)]}})

    assert said(oldest_twice_s=0.2) == []
    assert said(oldest_twice_s=1.5) == ["pool-kill, round 1: what came 1.5 s before the fault came again"]
    assert said() == []  # a round from before this was measured

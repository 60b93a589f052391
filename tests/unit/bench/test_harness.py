"""The harness counts CPU once, refuses miscounts, and takes medians."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import harness
from bench.harness import (
    Measurement,
    Meter,
    Miscounted,
    Usage,
    await_count,
    by_pid,
    compare,
    percentile,
    ratios,
    spread,
)

BURN = "import time\nend = time.process_time() + {s}\nwhile time.process_time() < end: pass\n"
# A parent that burns, and lets two children burn one after the other: one is waited for while it is sampled.
FAMILY = (
    "import subprocess, sys\n"
    "for _ in range(2): subprocess.run([sys.executable, '-c', {child!r}])\n"
    "print('done', flush=True)\nsys.stdin.read()\n"
)


def test_cpu_of_children_that_ended_is_counted_once() -> None:
    code = FAMILY.format(child=BURN.format(s=0.4))
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        with Meter(by_pid(process.pid), interval_s=0.05) as meter:
            process.stdout.readline()
        process.kill()
    assert meter.usage is not None
    assert 0.75 <= meter.usage.cpu_s < 1.5
    assert meter.usage.peak_rss > meter.usage.peak_private > 0


def test_excluded_trees_are_not_counted() -> None:
    """The tree is that of a shell, so nothing that this test's process does otherwise is in the figure."""
    shell = ["sh", "-c", '"$0" -c "$1" & echo $!; wait', sys.executable, BURN.format(s=0.5)]
    with subprocess.Popen(shell, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        burning = int(process.stdout.readline())
        with Meter(by_pid(process.pid), exclude={burning}, interval_s=0.05) as meter:
            process.wait()
    assert meter.usage is not None
    assert meter.usage.cpu_s < 0.2


def test_ratios_are_those_of_each_round() -> None:
    def run(rate: float, cpu_s: float | None) -> Measurement:
        return Measurement(1000, 1000 / rate, None if cpu_s is None else Usage(cpu_s, 0, 0))

    slow_minute = ratios(
        [run(50, 2.0), run(10, 2.0), run(60, 3.0)], [run(100, 1.0), run(20, 1.0), run(80, 1.0)]
    )
    assert slow_minute["rate"] == pytest.approx({"median": 0.5, "least": 0.5, "most": 0.75})
    assert slow_minute["cpu_per_message"] == pytest.approx({"median": 2.0, "least": 2.0, "most": 3.0})
    assert set(ratios([run(50, 1.0)], [run(100, None)])) == {"rate"}
    with pytest.raises(ValueError, match="shorter"):
        ratios([run(1, 1.0)], [])


def test_await_count_takes_neither_less_nor_more() -> None:
    assert await_count(lambda: 5, 5, timeout_s=1, still_s=0) <= time.monotonic()
    with pytest.raises(Miscounted, match="accepted 5, delivered 4"):
        await_count(lambda: 4, 5, timeout_s=0.02)
    with pytest.raises(Miscounted, match="accepted 5, delivered 6"):
        await_count(lambda: 6, 5, timeout_s=0.02, still_s=0)


def test_compare_interleaves() -> None:
    order: list[str] = []

    def run(name: str) -> Measurement:
        order.append(name)
        return Measurement(10, 2.0)

    results = compare({"a": lambda: run("a"), "b": lambda: run("b")}, repeats=2)
    assert order == ["a", "b", "a", "b"]
    assert [m.rate for m in results["a"]] == [5.0, 5.0]


def test_spread_and_percentile() -> None:
    assert spread([3.0, 1.0, 9.0]) == harness.Spread(3.0, 1.0, 9.0)
    values = [float(n) for n in range(1, 101)]
    assert [percentile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1.0, 50.0, 99.0, 100.0]


def test_a_result_names_commit_machine_and_durability(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    usage = Usage(0.5, 2**20, 2**19, {"x": 0.5})
    path = harness.write_result(
        "b", {"r": [Measurement(1000, 1.0, usage, {"p99_ms": 3.0})]}, settings={"size": 1}, is_durable=True
    )
    document = json.loads(path.read_text())
    assert document["durable"] is True
    assert {"cpu", "cores", "memory_gib", "kernel", "python"} == set(document["machine"])
    result = document["results"]["r"]
    assert result["cpu_s_per_1000"] == {"median": 0.5, "least": 0.5, "most": 0.5}
    assert result["p99_ms"]["median"] == 3.0

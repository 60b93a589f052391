"""What a process and its machine tell of themselves."""

import asyncio
from pathlib import Path

from engine.metrics.process import SLOT_S, SLOTS, LoopLag, ProcessFigures, machine_points

GIB = 1 << 30


def test_the_longest_lateness_is_forgotten_after_a_minute() -> None:
    lag = LoopLag()
    lag.note(100.0, 100.01)
    lag.note(101.0, 104.0)
    lag.note(105.0, 105.2)
    assert lag.longest_s() == 3.0
    for second in range(110, 110 + round(SLOT_S * (SLOTS + 1))):
        lag.note(second, second + 0.5)
    assert lag.longest_s() == 0.5


def test_a_process_tells_of_itself() -> None:
    async def run() -> tuple[dict[str, float], dict[str, float]]:
        shown, quiet = ProcessFigures("region"), ProcessFigures("sources", times_loop=False)
        found = [{p.metric: p.value for p in figures.points()} for figures in (shown, quiet)]
        assert {point.labels for point in shown.points()} == {("region",)}
        await shown.stop()
        await quiet.stop()
        return found[0], found[1]

    shown, quiet = asyncio.run(run())
    assert shown["process.memory.usage"] >= shown["sendfleet.memory.anonymous"] > 1 << 20
    assert 2 < shown["process.unix.file_descriptor.count"] < shown["sendfleet.file_descriptor.limit"]
    assert set(shown) - set(quiet) == {"sendfleet.loop.lag"}


def values(root: Path) -> dict[tuple[str, ...], float]:
    return {(point.metric, *point.labels): point.value for point in machine_points(root)}


def test_the_machine_without_a_control_group(tmp_path: Path) -> None:
    found = values(tmp_path)
    assert 0 < found["system.memory.usage",] < found["system.memory.limit",]
    assert found["system.cpu.time", "idle"] > 0
    assert found["system.cpu.time", "busy"] > 0


def test_a_control_group_that_allows_less(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1048576\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 100000\nactive_file 5\n")
    found = values(tmp_path)
    assert (found["system.memory.usage",], found["system.memory.limit",]) == (800_000, 1_048_576)


def test_a_control_group_without_a_limit(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("900000\n")
    assert values(tmp_path)["system.memory.limit",] == values(tmp_path / "none")["system.memory.limit",]

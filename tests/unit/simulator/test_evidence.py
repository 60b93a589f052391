"""What the simulator is there to prove: warm-up to the message, and limits that are used up and never exceeded."""

from collections import Counter
from typing import Any

from engine.config.warmup import WarmupTable
from engine.simulator.node import Node
from engine.simulator.plan import parse_plan
from engine.simulator.simulation import Simulation
from engine.warmup.tables import shipped
from tests.support.decisions import decisions

DAY_MS = 86_400_000


def warm(table: str, days: int, per_day: int, **changes: Any) -> Simulation:
    """One new source with more mail than it may send, for one provider that takes whatever comes."""
    plan = parse_plan(
        {
            "name": "warm",
            "duration": f"{days}d",
            "tick": "10m",
            "report": "10m",
            "samples": 30,
            "sources": [
                {
                    "name": "new",
                    "region": "eu",
                    "first_ip": "192.0.2.1",
                    "warmup": table,
                    "history": 10_000_000,
                }
            ],
            "traffic": [
                {"name": "n", "per_day": per_day, "shares": {"google": 1}, "unknown": 0.0, "complaints": 0.0}
            ],
        }
        | changes
    )
    simulation = Simulation(plan)
    simulation.run()
    return simulation


def per_day(simulation: Simulation) -> list[int]:
    pair = simulation.record.pairs[0, "google"]
    first = simulation.plan.start_ms // DAY_MS
    return [pair.days[first + day] for day in range(round(simulation.plan.duration / 86_400))]


def caps(table: WarmupTable) -> list[int]:
    return [stage.day for stage in table.stages_of("google")]


def test_thirty_days_of_a_warm_up_are_its_table_to_the_message() -> None:
    wanted = caps(shipped()["conservative"])
    found = per_day(warm("conservative", 30, 60_000))
    assert found[: len(wanted)] == wanted
    assert min(found[len(wanted) :]) >= 60_000  # it is over: all that comes goes, and what had waited


def test_the_first_days_of_the_faster_table_to_the_message() -> None:
    wanted = caps(shipped()["standard"])[:9]
    assert per_day(warm("standard", 9, 60_000)) == wanted


def test_greylisting_does_not_hold_a_warm_up() -> None:
    """Half of the attempts are put off, so about half of each day's cap is delivered; the stages go on nevertheless."""
    table = {"name": {"stages": [100, 200, 400, 800]}}
    greylisting = {"google": {"greylist": 1.0}}
    # little in memory, so that retries are not behind all the new mail
    tables = {"warmup": {"tables": table}, "retry": {"marketing": {"expire": "20d"}}}
    simulation = warm("name", 6, 5_000, fleet=tables, models=greylisting, window=2)
    (view,) = simulation.nodes[0].owner("new-1").warmup.views(simulation.clock.wall_ms())
    assert view.phase == "finished" or view.stage >= 3
    assert all(count <= cap for count, cap in zip(per_day(simulation), (100, 200, 400, 800), strict=False))


class Books:
    """Counts what each pair was granted, and how close together."""

    def __init__(self) -> None:
        self.granted: Counter[tuple[int, int]] = Counter()
        self.closest: dict[tuple[int, int], int] = {}
        self._last: dict[tuple[int, int], int] = {}

    def taken(self, node: Node, entries: bytes) -> None:
        for row in decisions(entries):
            key = row.source, row.site
            self.granted[key] += 1
            if key in self._last:
                self.closest[key] = min(self.closest.get(key, 1 << 62), row.send_at - self._last[key])
            self._last[key] = row.send_at

    def returned(self, node: Node, rows: list[tuple[int, int]]) -> None:
        raise AssertionError("nothing stops a source here")

    def stepped(self, now_ns: int) -> None:
        pass


def test_a_hundred_pairs_use_what_their_limits_allow_and_not_a_message_more() -> None:
    """Ten sources, ten sites, mail always waiting for one hour: each rate is used to 98 % at least, each daily cap to
    the last message."""
    sites = [f"mx:{n}.example" for n in range(8)]
    plan = parse_plan(
        {
            "name": "busy",
            "duration": "1h",
            "tick": "10s",
            "report": "60s",
            "sources": [{"name": "s", "region": "eu", "count": 10, "first_ip": "192.0.2.1"}],
            "traffic": [
                {
                    "name": "n",
                    "per_day": 30_000_000,
                    "shares": {**dict.fromkeys(sites, 1), "google": 1, "yahoo": 1},
                    "unknown": 0.0,
                    "complaints": 0.0,
                }
            ],
            "fleet": {
                "providers": {
                    "default": {"rate": "2/s"},
                    "google": {"rate": "50/min"},
                    "yahoo": {"rate": "unlimited", "daily_cap": 1_000},
                }
            },
        }
    )
    books = Books()
    simulation = Simulation(plan, watch=books)
    simulation.run()
    node = simulation.nodes[0]
    assert len(books.granted) == 100
    for (source, number), count in books.granted.items():
        name = node.sites.site(number).name
        if name == "yahoo":
            assert count == 1_000
            continue
        allowed, interval_ns = (3_000, 1_200_000_000) if name == "google" else (7_200, 500_000_000)
        assert 0.98 * allowed <= count <= allowed, (source, name, count)
        assert books.closest[source, number] >= interval_ns

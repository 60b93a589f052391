"""A fleet that is stopped while it sends: a planned end is no crash, and sends nobody twice."""

import asyncio
from pathlib import Path

from engine.sink.process import SinkProcess
from engine.values.message import Receipt
from tests.support.ray_fleet import (
    ClusterFleet,
    assert_conserved,
    delivered_events,
    messages,
    two_regions,
    until,
)

COUNT = 1000  # at a second each over forty connections it is far from done when it is stopped


def test_what_is_on_the_wire_when_a_fleet_is_stopped_is_settled(tmp_path: Path) -> None:
    personalities = tmp_path / "personalities.yaml"
    personalities.write_text("personalities:\n  slow: {delay: {final: 1s}}\n")
    with SinkProcess(personalities, tmp_path / "sink.log") as sink:
        config = two_regions(tmp_path, sink.addresses["slow"][1])
        with ClusterFleet(config) as fleet:
            from actors.client import AsyncClient
            from actors.deploy import start_fleet, stop_fleet

            async def submit() -> list[Receipt]:
                batches = [messages(50, first=first) for first in range(0, COUNT, 50)]
                return [await fleet.client.submit(batch) for batch in batches]

            async def some_have_arrived() -> bool:
                return len(sink.log().recipients()) >= 20

            async def all_are_settled() -> bool:
                regions = (await fleet.client.snapshot())["regions"].values()
                return all(region["counts"]["queued"] == 0 for region in regions)

            async def begin() -> None:
                await submit()
                await until(some_have_arrived)

            asyncio.run(begin())
            stop_fleet(config)
            arrived = len(sink.log().recipients())
            assert 20 <= arrived < COUNT, "it was stopped too late for this test"
            start_fleet(config, "")
            fleet.client = AsyncClient(config)
            asyncio.run(until(all_are_settled, seconds=180.0))
        twice = assert_conserved(config, sink, [f"user{n}@example.org" for n in range(COUNT)])
        assert not twice
        assert not delivered_events(config)[1], "none was in doubt"

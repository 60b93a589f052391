"""A fleet that is stopped while it sends: a planned end is no crash, and sends nobody twice."""

import asyncio
from pathlib import Path

from engine.values.message import Receipt
from tests.support.ray_fleet import (
    ClusterFleet,
    assert_conserved,
    delivered_events,
    messages,
    two_regions,
    until,
)
from tests.support.sinks import slow_sink

COUNT = 1000  # at a second each over forty connections it is far from done when it is stopped


def test_what_is_on_the_wire_when_a_fleet_is_stopped_is_settled(tmp_path: Path) -> None:
    with slow_sink(tmp_path) as sink:
        config = two_regions(tmp_path, sink.addresses["slow"][1])
        with ClusterFleet(config) as fleet:
            from actors.client import AsyncClient
            from actors.deploy import start_fleet, stop_fleet

            async def submit() -> list[Receipt]:
                batches = [messages(50, first=first) for first in range(0, COUNT, 50)]
                return [await fleet.client.submit(batch) for batch in batches]

            async def some_have_arrived() -> bool:
                return len(sink.log().recipients()) >= 20

            async def begin() -> None:
                await submit()
                await until(some_have_arrived)

            asyncio.run(begin())
            stop_fleet(config)
            arrived = len(sink.log().recipients())
            assert 20 <= arrived < COUNT, "it was stopped too late for this test"
            start_fleet(config, "")
            fleet.client = AsyncClient(config)
            asyncio.run(fleet.until_settled())
        twice = assert_conserved(config, sink, [f"user{n}@example.org" for n in range(COUNT)])
        assert not twice
        assert not delivered_events(config)[1], "none was in doubt"

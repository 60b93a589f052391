"""`replicas: 1`, `down`, `replicas: 0`, `up`, as docs/failover.md has it: what was queued is sent, once."""

import asyncio
from collections import Counter
from pathlib import Path

from tests.support.ray_fleet import (
    ClusterFleet,
    audits,
    delivered_events,
    messages,
    two_regions,
    until,
)
from tests.support.sinks import slow_sink

COUNT = 600  # at a second each over forty connections it is far from done when it is stopped
MORE = 100


def test_a_fleet_that_was_stopped_in_order_goes_on_without_copies(tmp_path: Path) -> None:
    with slow_sink(tmp_path) as sink:
        config = two_regions(tmp_path, sink.addresses["slow"][1], fleet={"replicas": 1})
        alone = config.model_copy(update={"fleet": config.fleet.model_copy(update={"replicas": 0})})
        with ClusterFleet(config) as fleet:
            from actors.client import AsyncClient
            from actors.deploy import start_fleet, stop_fleet

            async def some_have_arrived() -> bool:
                return len(sink.log().recipients()) >= 20

            async def begin() -> None:
                await fleet.until_covered()
                for first in range(0, COUNT, 50):
                    await fleet.client.submit(messages(50, first=first))
                await until(some_have_arrived)
                await fleet.until_covered()

            async def go_on() -> None:
                await fleet.client.submit(messages(MORE, first=COUNT))
                await fleet.until_settled()

            asyncio.run(begin())
            stop_fleet(config)
            assert len(sink.log().recipients()) < COUNT, "it was stopped too late for this test"
            start_fleet(alone, "")
            fleet.config, fleet.client = alone, AsyncClient(alone)
            asyncio.run(go_on())
        for report in audits(alone):
            assert report.is_clean, report.problems
        seen = Counter(acceptance.recipient for acceptance in sink.log().acceptances)
        assert set(seen) == {f"user{n}@example.org" for n in range(COUNT + MORE)}
        # a busy machine may have called a region dead before the stop: what it had on the wire then is marked
        assert {recipient for recipient, count in seen.items() if count > 1} <= delivered_events(alone)[1]

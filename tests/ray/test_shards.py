"""A second process of a pool really starts and carries sources of its own."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.ray_fleet import (
    ClusterFleet,
    assert_conserved,
    delivered_events,
    messages,
    pools_of,
    two_regions,
    until,
)
from tests.support.sinks import accepting_sink

pytestmark = pytest.mark.ray
BATCH = 50


@pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="one core: a pool is never more than one process"
)
def test_a_pool_that_is_full_becomes_two_processes_and_nothing_is_lost(tmp_path: Path) -> None:
    """Every processor time counts as full here, so a second process starts while messages come in; one is killed."""
    limits = {"pool_shards": 2, "pool_busy": 0.0005}
    with accepting_sink(tmp_path) as sink:
        config = two_regions(tmp_path / "fleet", sink.addresses["accept"][1], limits=limits)
        sent = 0
        with ClusterFleet(config) as fleet:

            async def snapshots() -> dict[str, Any]:
                regions: dict[str, Any] = (await fleet.client.snapshot())["regions"]
                return regions

            async def send_until_split() -> None:
                nonlocal sent
                async with asyncio.timeout(120):
                    while not any(r["batches"].get("default.1") for r in (await snapshots()).values()):
                        await fleet.client.submit(messages(BATCH, first=sent))
                        sent += BATCH
                        await asyncio.sleep(0.1)

            async def is_done() -> bool:
                queued = [r.get("counts", {}).get("queued") for r in (await snapshots()).values()]
                return not any(queued) and len(delivered_events(config)[0]) == sent

            async def scenario() -> None:
                nonlocal sent
                await send_until_split()
                pools = [await pools_of(region.name) for region in config.regions]
                second = [found["default.1"] for found in pools if "default.1" in found]
                os.kill(second[0], signal.SIGKILL)
                await fleet.client.submit(messages(BATCH, first=sent))
                sent += BATCH
                await until(is_done, "not everything was delivered")

            asyncio.run(scenario())
        assert_conserved(config, sink, [f"user{n}@example.org" for n in range(sent)])

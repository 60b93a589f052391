"""A region is drained: its peer takes what waits there, whoever is killed on the way, and nothing is lost or sent twice."""

import asyncio
from pathlib import Path

import pytest

from engine.region.ports import RegionDraining
from tests.e2e.test_regions_cover import NOWHERE, mail
from tests.support.draining import DrainingFleet
from tests.support.ray_fleet import two_regions
from tests.support.region import until
from tests.support.sinks import accepting_sink
from tests.support.spools import assert_conserved

KEY = b"0123456789abcdef"


@pytest.fixture
def sink(tmp_path: Path):
    with accepting_sink(tmp_path) as process:
        yield process


def test_a_drained_region_is_empty_and_its_peer_sends_everything(tmp_path: Path) -> None:
    async def run(fleet: DrainingFleet) -> None:
        async with fleet:
            receipt = await fleet.submit("eu", mail(1200), KEY)
            assert await fleet.regions["eu"].drain(True)
            assert not await fleet.regions["eu"].drain(True)
            with pytest.raises(RegionDraining):
                await fleet.submit("eu", mail(1), bytes(16))
            assert (await fleet.submit("eu", mail(1200), KEY)).ids == receipt.ids
            await until(lambda: fleet.regions["eu"].condition == "drained")
            assert fleet.status("eu")["handed_over"] == 1200
            assert fleet.spools["us"].counts()["queued"] == 1200
            again = await fleet.submit("us", mail(1200), KEY)  # its key went along
            assert (again.repeated, again.ids) == (True, receipt.ids)

    fleet = DrainingFleet(two_regions(tmp_path, NOWHERE))
    asyncio.run(run(fleet))
    assert_conserved(fleet.path("eu"), moved=1200)
    assert_conserved(fleet.path("us"), queued=1200)

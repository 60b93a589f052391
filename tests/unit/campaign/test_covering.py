"""The sender against regions that cover for each other: some die, and come back or do not. Every recipient is accepted
exactly once, and the sending ends as long as regions live.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import pytest

from engine.campaign.chunks import CutChunk, cut_chunks, rank_regions
from engine.campaign.giving import SendInterrupted, SendReport
from engine.campaign.recipients import Recipient
from engine.campaign.sender import CampaignSender
from engine.region.ports import RegionAway, RegionDraining
from engine.spool.errors import CampaignConflict, CampaignUnknown, SpoolError, SpoolFailed, SpoolFull
from engine.values.message import CampaignChunk, CampaignTemplate, Receipt
from engine.values.stream import Stream

T = TypeVar("T")
TEMPLATE = CampaignTemplate("c", "t", Stream.MARKETING, "b@example.com", "f@example.com", "s", "x")
REGIONS = ("eu", "us", "asia")
ALONE = {name: name for name in REGIONS}


class FakeRegion:
    """One region's disk: the campaigns by their numbers, and the digests of the chunks that it has accepted."""

    def __init__(self) -> None:
        self.campaigns: list[str] = []
        self.chunks: dict[int, bytes] = {}


class FakeFleet:
    """Regions that know of each other's chunks, as the real ones do when one of them lives. `faults` come at random;
    `before` is called with the number of each call and its region."""

    def __init__(self, seed: int = 0, *, faults: Sequence[str] = (), rate: float = 0.3) -> None:
        self.regions = {name: FakeRegion() for name in REGIONS}
        self.known: dict[int, bytes] = {}
        self.accepted = Counter[str]()
        self.rng = random.Random(seed)
        self.faults = faults
        self.rate = rate
        self.before: Callable[[int, str], None] = lambda number, region: None
        self.dead: set[str] = set()
        self.hung: set[str] = set()
        self.draining: set[str] = set()
        self.degraded = False
        self.calls = 0
        self.asked = Counter[str]()

    async def _through(self, region: str, act: Callable[[], T]) -> T:
        self.calls += 1
        self.asked[region] += 1
        self.before(self.calls, region)
        fault = self.faults and self.rng.random() < self.rate and self.rng.choice(self.faults)
        await asyncio.sleep(0)
        if region in self.hung:
            await asyncio.Event().wait()
        if region in self.dead:
            raise ConnectionError(f"{region} is dead")
        if fault == "call":
            raise TimeoutError
        if fault == "full":
            raise SpoolFull("disk", 9, 10)
        if fault == "unwritten":
            raise SpoolError("spool /x: not written: Input/output error")
        if fault == "failed":
            raise SpoolFailed("the outcome is unknown")
        if fault == "away":
            raise RegionAway("a region has this batch in hand: ask again")
        result = act()
        if region in self.dead or fault == "answer":
            raise ConnectionError("lost after it was done")
        return result

    async def put_campaign(self, region: str, template: CampaignTemplate, field_names: Sequence[str]) -> int:
        def act() -> int:
            campaigns = self.regions[region].campaigns
            if template.campaign not in campaigns:
                campaigns.append(template.campaign)
            return campaigns.index(template.campaign)

        return await self._through(region, act)

    async def progress(self, region: str, tenant: str, campaign: str) -> dict[int, bytes]:
        return await self._through(region, lambda: dict(self.regions[region].chunks))

    async def accept_chunk(
        self, region: str, campaign_no: int, chunk: CampaignChunk, *, again: bool = False
    ) -> Receipt:
        assert again, "another region may have it, from this sending or from an earlier one"

        def act() -> Receipt:
            disk = self.regions[region]
            if disk.campaigns[campaign_no : campaign_no + 1] != [chunk.campaign]:
                raise CampaignUnknown("another disk")
            if disk.chunks.get(chunk.number, chunk.digest) != chunk.digest:
                raise CampaignConflict("part was accepted before with other recipients")
            ids = tuple((n,) for n in range(len(chunk.recipients)))
            if chunk.number in self.known:
                return Receipt(region, ids, repeated=True)
            if region in self.draining:
                raise RegionDraining(f"region {region} is being drained")
            self.known[chunk.number] = disk.chunks[chunk.number] = chunk.digest
            self.accepted.update(chunk.recipients)
            return Receipt(region, ids, degraded=self.degraded)

        return await self._through(region, act)


def chunks(count: int, size: int = 5) -> list[CutChunk]:
    rows = [Recipient(n + 2, f"u{n}@example.com", ()) for n in range(count)]
    return list(
        cut_chunks(rows, tenant="t", campaign="c", field_names=(), refuse=lambda row: None, size=size)
    )


class Time:
    """Passes with every sleep."""

    def __init__(self) -> None:
        self.now_s = 0.0

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        await asyncio.sleep(0)


def sender(fleet: FakeFleet, **options: Any) -> CampaignSender:
    time = Time()
    settings = {"region_of": ALONE, "rng": random.Random(1), "sleep": time.sleep, "now_s": lambda: time.now_s}
    return CampaignSender(fleet, REGIONS, **{**settings, **options})


def run(work: Awaitable[T]) -> T:
    async def bounded() -> T:
        return await asyncio.wait_for(work, 120)

    return asyncio.run(bounded())


def send(fleet: FakeFleet, count: int, **options: Any) -> SendReport:
    return run(sender(fleet, **options).send(TEMPLATE, (), chunks(count)))


def once(count: int) -> Counter[str]:
    return Counter(f"u{n}@example.com" for n in range(count))


def test_the_chunks_are_spread() -> None:
    fleet = FakeFleet()
    report = send(fleet, 300)
    assert fleet.accepted == once(300)
    assert report.accepted == 300
    for name, region in fleet.regions.items():
        own = [n for n in range(60) if rank_regions("t", "c", n, REGIONS)[0] == name]
        assert sorted(region.chunks) == own


@pytest.mark.parametrize("dead", [{"us"}, {"us", "asia"}])
def test_the_others_take_what_is_for_regions_that_are_dead(dead: set[str]) -> None:
    fleet = FakeFleet()
    fleet.dead = dead
    report = send(fleet, 500)
    assert fleet.accepted == once(500)
    assert set(report.waiting_for) == dead
    for name in dead:  # not with every chunk
        assert fleet.asked[name] < 40


@pytest.mark.parametrize("seed", range(30))
def test_one_dies_in_the_middle_and_may_come_back(seed: int) -> None:
    fleet = FakeFleet(seed, faults=("call", "answer", "full", "unwritten", "failed", "away"))
    at, back = sorted(fleet.rng.sample(range(1, 80), 2))

    def before(number: int, region: str) -> None:
        if number == at:
            fleet.dead.add("us")
        if number == back and seed % 2:
            fleet.dead.discard("us")

    fleet.before = before
    report = send(fleet, 200)
    assert fleet.accepted == once(200)
    assert report.total == 200
    again = send(fleet, 200)
    assert fleet.accepted == once(200)
    assert (again.accepted, again.skipped) == (0, 200)


def test_a_region_that_is_hung_is_not_waited_for() -> None:
    fleet = FakeFleet()
    fleet.hung = {"us"}
    report = send(fleet, 100, answer_s=0.05)
    assert fleet.accepted == once(100)
    assert report.waiting_for == {"us": "no answer within 0.05 s"}
    assert fleet.asked["us"] < 10


def test_a_second_run_knows_what_a_dead_region_had() -> None:
    fleet = FakeFleet()
    send(fleet, 200)
    fleet.dead = {"us"}
    report = send(fleet, 300)
    assert fleet.accepted == once(300)
    assert (report.accepted, report.skipped) == (100, 200)


def test_a_region_that_comes_back_on_another_disk_is_told_of_the_campaign_again() -> None:
    fleet = FakeFleet()

    def before(number: int, region: str) -> None:
        if number == 30:
            fleet.regions["us"] = FakeRegion()
            fleet.regions["us"].campaigns = ["another"]

    fleet.before = before
    send(fleet, 300)
    assert fleet.accepted == once(300)
    assert fleet.regions["us"].campaigns == ["another", "c"]
    assert fleet.regions["us"].chunks


def test_parts_go_elsewhere_while_a_region_is_being_drained() -> None:
    fleet = FakeFleet()
    fleet.draining = {"us"}
    report = send(fleet, 200)
    assert fleet.accepted == once(200)
    assert not fleet.regions["us"].chunks
    assert report.skipped == 0


def test_shards_of_one_region_stand_in_for_each_other_first() -> None:
    fleet = FakeFleet()
    fleet.dead = {"us"}
    send(fleet, 300, region_of={"eu": "eu", "us": "east", "asia": "east"})
    assert fleet.accepted == once(300)
    for number in fleet.regions["eu"].chunks:
        assert rank_regions("t", "c", number, REGIONS)[0] == "eu"


def test_ends_when_no_region_takes_anything() -> None:
    fleet = FakeFleet(faults=("away",), rate=0.0)
    fleet.before = lambda number, region: setattr(fleet, "rate", float(number > 6))  # they say what they have
    with pytest.raises(SendInterrupted, match=r"none of the regions .* for 6\d\d s: a region has this batch"):
        send(fleet, 50)
    assert not fleet.accepted


def test_ends_when_no_region_answers() -> None:
    fleet = FakeFleet()
    fleet.dead = set(REGIONS)
    with pytest.raises(SendInterrupted, match="eu is dead; us is dead; asia is dead"):
        send(fleet, 50)


def test_other_recipients_end_the_sending() -> None:
    fleet = FakeFleet()
    send(fleet, 50)
    fleet.dead = {"us"}
    with pytest.raises(CampaignConflict, match="was accepted before with other recipients"):
        send(fleet, 49)
    assert fleet.accepted == once(50)


def test_receipts_without_a_copy_are_counted() -> None:
    fleet = FakeFleet()
    fleet.degraded = True
    assert send(fleet, 50).degraded == 50
    fleet.degraded = False
    assert send(fleet, 50).degraded == 0


def test_nothing_is_left_behind_by_a_sending_that_ends() -> None:
    async def go() -> set[asyncio.Task[Any]]:
        fleet = FakeFleet()
        fleet.hung = {"us"}
        await sender(fleet, answer_s=0.05).send(TEMPLATE, (), chunks(20))
        return asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[operator]

    assert not asyncio.run(go())

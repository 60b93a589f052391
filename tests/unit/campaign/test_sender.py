"""The sender against regions that lose calls, lose answers, are full, crash and come back; and a sender that is
killed and started again. The law each time: every recipient is accepted exactly once.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import pytest

from engine.campaign.chunks import CutChunk, cut_chunks
from engine.campaign.giving import SendInterrupted
from engine.campaign.recipients import Recipient
from engine.campaign.sender import CampaignSender
from engine.region.ports import RegionDraining
from engine.spool.errors import CampaignConflict, SpoolFull
from engine.values.engagement import Engagement
from engine.values.message import CampaignChunk, CampaignTemplate, ItemError, Receipt
from engine.values.stream import Stream

T = TypeVar("T")
TEMPLATE = CampaignTemplate("c", "t", Stream.MARKETING, "b@example.com", "f@example.com", "s", "x")
REGIONS = ("eu", "us")


class FakeRegion:
    """What is on disk in one region."""

    def __init__(self) -> None:
        self.templates: dict[tuple[str, str], CampaignTemplate] = {}
        self.chunks: dict[int, CampaignChunk] = {}

    def accept(self, chunk: CampaignChunk) -> bool:
        known = self.chunks.setdefault(chunk.number, chunk)
        if known.digest != chunk.digest:
            raise CampaignConflict("part was accepted before with other recipients")
        return known is not chunk


class FakeFleet:
    """Regions behind a network that fails as the given generator says."""

    def __init__(self, rng: random.Random, *, fault_rate: float = 0.0, kill_at: int | None = None) -> None:
        self.regions = {name: FakeRegion() for name in REGIONS}
        self.rng = rng
        self.fault_rate = fault_rate
        self.kill_at = kill_at
        self.killed: asyncio.Event | None = None
        self.calls = 0
        self.active = 0
        self.most_active = 0
        self.tried: dict[int, set[str]] = {}
        self.refuse: set[str] = set()
        self.draining: set[str] = set()

    async def _through(self, act: Callable[[], T]) -> T:
        self.calls += 1
        number = self.calls
        fault = self.rng.random() < self.fault_rate and self.rng.choice(("call", "answer", "full", "crash"))
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        try:
            await asyncio.sleep(0)
            if number == self.kill_at:
                if self.rng.random() < 0.5:
                    act()
                assert self.killed is not None
                self.killed.set()
            if self.killed is not None and self.killed.is_set():
                await asyncio.Event().wait()  # nothing reaches a dead sender any more
            if fault == "call":
                raise TimeoutError("no answer")
            if fault == "crash":
                raise ConnectionError("the actor died")
            if fault == "full":
                raise SpoolFull("disk", 9, 10)
            result = act()
            if fault == "answer":
                raise ConnectionError("lost after it was done")
            return result
        finally:
            self.active -= 1

    async def put_campaign(self, region: str, template: CampaignTemplate, field_names: Sequence[str]) -> int:
        def act() -> int:
            known = self.regions[region].templates.setdefault((template.tenant, template.campaign), template)
            if known != template:
                raise CampaignConflict("exists with another template")
            return 40 + REGIONS.index(region)

        return await self._through(act)

    async def progress(self, region: str, tenant: str, campaign: str) -> dict[int, bytes]:
        return await self._through(
            lambda: {number: chunk.digest for number, chunk in self.regions[region].chunks.items()}
        )

    async def accept_chunk(self, region: str, campaign_no: int, chunk: CampaignChunk) -> Receipt:
        assert campaign_no == 40 + REGIONS.index(region)
        self.tried.setdefault(chunk.number, set()).add(region)

        def act() -> Receipt:
            if region in self.draining and chunk.number not in self.regions[region].chunks:
                raise RegionDraining(f"region {region} is being drained")
            repeated = self.regions[region].accept(chunk)
            errors = [
                ItemError(i, "recipient", r, "no") for i, r in enumerate(chunk.recipients) if r in self.refuse
            ]
            ids = tuple((n,) for n in range(len(chunk.recipients)))
            return Receipt(region, ids, tuple(errors), repeated)

        return await self._through(act)

    def accepted(self) -> Counter[str]:
        return Counter(
            recipient
            for region in self.regions.values()
            for chunk in region.chunks.values()
            for recipient in chunk.recipients
        )


def chunks(count: int, size: int = 5) -> list[CutChunk]:
    rows = [Recipient(n + 2, f"u{n}@example.com", ()) for n in range(count)]
    return list(
        cut_chunks(rows, tenant="t", campaign="c", field_names=(), refuse=lambda row: None, size=size)
    )


async def no_sleep(seconds: float) -> None:
    await asyncio.sleep(0)


def sender(fleet: FakeFleet, **options: object) -> CampaignSender:
    return CampaignSender(fleet, REGIONS, rng=random.Random(1), sleep=no_sleep, **options)  # type: ignore[arg-type]


def run(work: Awaitable[T]) -> T:
    async def bounded() -> T:
        return await asyncio.wait_for(work, 120)

    return asyncio.run(bounded())


async def send_until_killed(fleet: FakeFleet, count: int) -> bool:
    """Whether the sender lived to its end."""
    fleet.killed = asyncio.Event()
    sending = asyncio.ensure_future(sender(fleet).send(TEMPLATE, (), chunks(count)))
    dying = asyncio.ensure_future(fleet.killed.wait())
    await asyncio.wait([sending, dying], return_when=asyncio.FIRST_COMPLETED)
    if fleet.killed.is_set():
        sending.cancel()
        await asyncio.wait([sending])
        return False
    dying.cancel()
    return sending.result().total == count


def once(count: int) -> Counter[str]:
    return Counter(f"u{n}@example.com" for n in range(count))


def test_everybody_once_and_bounded() -> None:
    fleet = FakeFleet(random.Random(0))
    report = run(sender(fleet, concurrency=4).send(TEMPLATE, (), chunks(203)))
    assert fleet.accepted() == once(203)
    assert (report.accepted, report.skipped, report.refused) == (203, 0, 0)
    assert 1 < fleet.most_active <= 4
    assert all(region.chunks for region in fleet.regions.values())


@pytest.mark.parametrize("seed", range(30))
def test_lost_calls_lost_answers_crashes_and_full_disks(seed: int) -> None:
    fleet = FakeFleet(random.Random(seed), fault_rate=0.4)
    report = run(sender(fleet).send(TEMPLATE, (), chunks(200)))
    assert fleet.accepted() == once(200)
    assert report.total == 200
    assert report.retries > 0
    assert not report.waiting_for
    assert all(len(regions) == 1 for regions in fleet.tried.values()), "a chunk went to a second region"


@pytest.mark.parametrize("seed", range(40))
def test_killed_at_any_call_and_started_again(seed: int) -> None:
    rng = random.Random(seed)
    fleet = FakeFleet(rng, fault_rate=0.2, kill_at=rng.randrange(1, 36))
    deaths = 0
    while not run(send_until_killed(fleet, 150)):
        deaths += 1
        fleet.kill_at = fleet.calls + rng.randrange(1, 40) if deaths < 4 else None
    assert deaths > 0
    assert fleet.accepted() == once(150)
    assert all(len(regions) == 1 for regions in fleet.tried.values())


def test_a_class_of_engagement_is_accepted_before_the_next_begins() -> None:
    fleet = FakeFleet(random.Random(3), fault_rate=0.3)
    order: list[Engagement] = []
    accept_chunk = fleet.accept_chunk

    async def listen(region: str, campaign_no: int, chunk: CampaignChunk) -> Receipt:
        order.append(chunk.engagement)
        return await accept_chunk(region, campaign_no, chunk)

    fleet.accept_chunk = listen  # type: ignore[method-assign]
    rows = [
        Recipient(n + 2, f"u{n}@example.com", (), Engagement(1 + n // 60))
        for n in range(180)  # sorted, as engine/campaign/engagement.py gives them
    ]
    cut = cut_chunks(rows, tenant="t", campaign="c", field_names=(), refuse=lambda row: None, size=5)
    report = run(sender(fleet).send(TEMPLATE, (), cut))
    assert report.retries
    assert order == sorted(order)
    assert fleet.most_active > 1
    assert set(fleet.accepted().values()) == {1}


def test_the_same_campaign_twice_sends_nobody_twice() -> None:
    fleet = FakeFleet(random.Random(0))
    run(sender(fleet).send(TEMPLATE, (), chunks(50)))
    report = run(sender(fleet).send(TEMPLATE, (), chunks(50)))
    assert fleet.accepted() == once(50)
    assert (report.accepted, report.skipped, report.chunks_skipped) == (0, 50, 10)


def test_two_senders_at_once() -> None:
    fleet = FakeFleet(random.Random(3), fault_rate=0.2)

    async def both() -> list[int]:
        reports = await asyncio.gather(*(sender(fleet).send(TEMPLATE, (), chunks(100)) for _ in range(2)))
        return [report.total for report in reports]

    assert run(both()) == [100, 100]
    assert fleet.accepted() == once(100)


def test_a_chunk_that_another_region_has_is_not_sent_again() -> None:
    fleet = FakeFleet(random.Random(0))
    run(CampaignSender(fleet, ["eu"], sleep=no_sleep).send(TEMPLATE, (), chunks(50)))
    run(sender(fleet).send(TEMPLATE, (), chunks(100)))
    assert fleet.accepted() == once(100)


@pytest.mark.parametrize("fault_rate", [0.0, 0.3])
def test_parts_go_to_another_region_while_their_own_is_being_drained(fault_rate: float) -> None:
    fleet = FakeFleet(random.Random(5), fault_rate=fault_rate)
    run(sender(fleet).send(TEMPLATE, (), chunks(50)))
    fleet.draining = {"us"}
    before = len(fleet.regions["us"].chunks)
    run(sender(fleet).send(TEMPLATE, (), chunks(200)))
    assert len(fleet.regions["us"].chunks) == before > 0
    fleet.draining = set()
    run(sender(fleet).send(TEMPLATE, (), chunks(200)))
    assert fleet.accepted() == once(200)


def test_gives_up_when_every_region_is_being_drained() -> None:
    fleet = FakeFleet(random.Random(0))
    fleet.draining = set(REGIONS)
    now = iter(range(0, 100_000, 100))
    with pytest.raises(SendInterrupted, match="drained"):
        run(sender(fleet, give_up_s=600, now_s=lambda: float(next(now))).send(TEMPLATE, (), chunks(5)))


def test_another_template_or_other_recipients_end_the_sending() -> None:
    fleet = FakeFleet(random.Random(0))
    run(sender(fleet).send(TEMPLATE, (), chunks(50)))
    other = CampaignTemplate("c", "t", Stream.MARKETING, "b@example.com", "f@example.com", "other", "x")
    with pytest.raises(CampaignConflict):
        run(sender(fleet).send(other, (), chunks(50)))
    for count, size in ((49, 5), (50, 4), (51, 10)):
        with pytest.raises(CampaignConflict, match=r"lines .* was accepted before with other recipients"):
            run(sender(fleet).send(TEMPLATE, (), chunks(count, size=size)))
        assert fleet.accepted() == once(50)

    async def nothing_known(region: str, tenant: str, campaign: str) -> dict[int, bytes]:
        return {}

    fleet.progress = nothing_known  # type: ignore[method-assign]
    with pytest.raises(CampaignConflict):
        run(sender(fleet).send(TEMPLATE, (), chunks(50, size=4)))
    assert fleet.accepted() == once(50)
    assert fleet.active == 0


def test_refused_recipients_are_told_with_their_line() -> None:
    fleet = FakeFleet(random.Random(0))
    fleet.refuse = {"u7@example.com", "u21@example.com"}
    told: list[tuple[int, str]] = []
    report = run(
        sender(fleet).send(TEMPLATE, (), chunks(30), refuse=lambda line, e: told.append((line, e.value)))
    )
    assert sorted(told) == [(9, "u7@example.com"), (23, "u21@example.com")]
    assert (report.accepted, report.refused) == (28, 2)


def test_gives_up_on_a_region_that_never_answers() -> None:
    fleet = FakeFleet(random.Random(0), fault_rate=1.0)
    now = iter(range(0, 100_000, 100))
    with pytest.raises(SendInterrupted) as caught:
        run(sender(fleet, give_up_s=600, now_s=lambda: float(next(now))).send(TEMPLATE, (), chunks(5)))
    assert caught.value.region in REGIONS
    assert caught.value.waited_s >= 600
    assert "again" in str(caught.value)


def test_errors_of_the_recipients_file_come_through() -> None:
    def broken() -> object:
        yield from chunks(20)
        raise OSError("disk gone")

    fleet = FakeFleet(random.Random(0))
    with pytest.raises(OSError, match="disk gone"):
        run(sender(fleet).send(TEMPLATE, (), broken()))  # type: ignore[arg-type]


def test_no_region_is_refused() -> None:
    with pytest.raises(ValueError, match="no region"):
        CampaignSender(FakeFleet(random.Random(0)), ())

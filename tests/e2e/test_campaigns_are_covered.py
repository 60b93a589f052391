"""A campaign through three regions that cover for each other, of which one dies in the middle: everybody gets it once,
or twice with the mark; the sending ends by itself; and a second one accepts nothing.
"""

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest

from engine.campaign import covering
from engine.campaign.chunks import CutChunk, cut_chunks
from engine.campaign.giving import SendReport
from engine.campaign.recipients import Recipient
from engine.campaign.sender import CampaignSender
from engine.failover.messages import Copy, Data, Message, Standing
from engine.region.ports import RegionAway
from engine.region.region import Region
from engine.sink.process import SinkProcess
from engine.spool.audit import audit
from engine.spool.errors import CampaignUnknown
from engine.spool.records import MAYBE_SENT
from engine.values.message import CampaignChunk, CampaignTemplate, Receipt
from engine.values.outcome import OutcomeKind
from engine.values.stream import Stream
from tests.support.campaign_port import InProcess
from tests.support.covered import CoveredFleet
from tests.support.ray_fleet import fleet_of
from tests.support.region import until
from tests.support.sinks import accepting_sink

REGIONS = ("eu", "us", "asia")
COUNT, SIZE = 600, 10
DIES_AT = 7  # the call of the region that dies
WAITS_AT = 40  # of all calls
TEMPLATE = CampaignTemplate(
    "spring", "default", Stream.MARKETING, "b@example.com", "Shop <s@example.com>", "Hi {{ name }}", "x"
)


class Port(InProcess):
    """Region eu dies when it has accepted its DIES_AT-th chunk: the answer to that, and to all others, is lost. With
    the WAITS_AT-th call the sending waits for `go_on`."""

    def __init__(self, fleet: CoveredFleet) -> None:
        super().__init__(fleet.regions)
        self._fleet = fleet
        self._dead = asyncio.Event()
        self.go_on = asyncio.Event()
        self.waits = asyncio.Event()
        self.calls = Counter[str]()

    async def accept_chunk(
        self, region: str, campaign_no: int, chunk: CampaignChunk, *, again: bool = False
    ) -> Receipt:
        self.calls[region] += 1
        if self.calls.total() >= WAITS_AT:
            self.waits.set()
            await self.go_on.wait()
        call = asyncio.ensure_future(super().accept_chunk(region, campaign_no, chunk, again=again))
        if region != "eu" or self._dead.is_set():
            return await call
        if self.calls["eu"] == DIES_AT:
            await call
            self._dead.set()
            await self._fleet.kill("eu")
        died = asyncio.ensure_future(self._dead.wait())
        await asyncio.wait([call, died], return_when=asyncio.FIRST_COMPLETED)
        died.cancel()
        if self._dead.is_set():
            call.cancel()
            raise ConnectionError("region eu has died")
        return await call


def chunks() -> list[CutChunk]:
    rows = [Recipient(n + 2, f"user{n}@example.org", (f"N{n}",)) for n in range(COUNT)]
    name = {"tenant": TEMPLATE.tenant, "campaign": TEMPLATE.campaign}
    return list(cut_chunks(rows, **name, field_names=["name"], refuse=lambda row: None, size=SIZE))


async def send(port: InProcess) -> SendReport:
    sender = CampaignSender(port, REGIONS, region_of={name: name for name in REGIONS})
    return await sender.send(TEMPLATE, ["name"], chunks())


def marked(fleet: CoveredFleet) -> set[str]:
    """Recipients whose delivered event is marked possible_duplicate."""
    return {
        event[10]  # engine/spool/settling.py
        for spool in fleet.spools.values()
        for _, events in spool.read_outbox(100_000)
        for event in events
        if event[1] == OutcomeKind.DELIVERED and event[8] & MAYBE_SENT
    }


def assert_once(fleet: CoveredFleet, sink: SinkProcess, may_be_twice: set[str]) -> None:
    for region in fleet.config.regions:
        path = Path(fleet.config.spool.directory) / region.name
        if path.exists():
            report = audit(path)
            assert report.is_clean, (region.name, report.problems)
            assert report.counts["queued"] == 0
    arrived = Counter(sink.log().recipients())
    assert set(arrived) == {f"user{n}@example.org" for n in range(COUNT)}
    assert {recipient for recipient, count in arrived.items() if count > 1} <= may_be_twice


@pytest.fixture
def sink(tmp_path: Path):
    with accepting_sink(tmp_path) as process:
        yield process


def covered(tmp_path: Path, port: int) -> CoveredFleet:
    return CoveredFleet(fleet_of(REGIONS, tmp_path, port, fleet={"replicas": 1}))


def is_trusting(region: Region) -> bool:
    """Whether it takes for new what is not said to have been given to another region. It does not when it has just
    begun."""
    assert region.parts.cover is not None
    return time.monotonic_ns() > region.parts.cover.machine.acceptance._wary_until


async def assert_all_know_it(port: InProcess, chunk: CampaignChunk) -> None:
    """Whoever is asked for a chunk that eu has."""
    receipts = []
    for region in REGIONS:
        number = await port.put_campaign(region, TEMPLATE, ["name"])
        async with asyncio.timeout(60):
            while len(receipts) <= REGIONS.index(region):
                with suppress(RegionAway):
                    receipts.append(await port.accept_chunk(region, number, chunk, again=True))
                await asyncio.sleep(0.05)
    assert [receipt.repeated for receipt in receipts] == [False, True, True]
    assert len({receipt.ids for receipt in receipts}) == 1
    for number, name in ((99, chunk.campaign), (1, "another")):
        with pytest.raises(CampaignUnknown):
            await port.accept_chunk("us", number, replace(chunk, campaign=name), again=True)


class Wire:
    """Counts how often copies bring the template, and how often only its digest."""

    def __init__(self, fleet: CoveredFleet) -> None:
        self.templates = 0
        self.digests = 0
        self._tell = fleet.tell
        fleet.tell = self.tell  # type: ignore[method-assign]

    async def tell(self, region: str, sender: str, messages: Sequence[Message]) -> None:
        for message in messages:
            if isinstance(message, Data) and isinstance(message.entry, Copy):
                for template in msgpack.unpackb(message.entry.payload)[1]:
                    self.digests += isinstance(template, bytes)
                    self.templates += not isinstance(template, bytes)
        await self._tell(region, sender, messages)


async def nothing_queued(fleet: CoveredFleet) -> None:
    await until(lambda: not any(spool.counts()["queued"] for spool in fleet.spools.values()))


def test_a_region_that_is_gone_for_good(
    tmp_path: Path, sink: SinkProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(covering, "BEGIN_S", 0.1)  # it will not answer

    async def run(fleet: CoveredFleet) -> None:
        async with fleet:
            await until(lambda: all(map(is_trusting, fleet.regions.values())))
            await assert_all_know_it(InProcess(fleet.regions), chunks()[0].chunk)
            port = Port(fleet)
            sending = asyncio.ensure_future(send(port))
            await until(port.waits.is_set)
            shutil.move(Path(fleet.config.spool.directory) / "eu", tmp_path / "gone")
            port.go_on.set()
            report = await sending
            assert report.total == COUNT
            assert list(report.waiting_for) == ["eu"]
            assert fleet.standing("eu") is Standing.DEAD
            again = await send(InProcess(fleet.regions))
            assert (again.accepted, again.skipped) == (0, COUNT)
            await nothing_queued(fleet)
            twice.update(marked(fleet))

    fleet = covered(tmp_path, sink.addresses["accept"][1])
    twice: set[str] = set()
    wire = Wire(fleet)
    asyncio.run(run(fleet))
    assert_once(fleet, sink, twice)
    assert wire.digests > COUNT // SIZE // 2 > wire.templates


@pytest.mark.parametrize("is_disk_new", [False, True])
def test_a_region_that_comes_back(tmp_path: Path, sink: SinkProcess, is_disk_new: bool) -> None:
    async def run(fleet: CoveredFleet) -> None:
        async with fleet:
            port = Port(fleet)
            sending = asyncio.ensure_future(send(port))
            await until(port.waits.is_set)
            await until(lambda: fleet.standing("eu") is Standing.DEAD)
            if is_disk_new:
                shutil.move(Path(fleet.config.spool.directory) / "eu", tmp_path / "gone")
            await fleet.start("eu")
            port.go_on.set()
            report = await sending
            assert report.total == COUNT
            await until(fleet.all_live)
            again = await send(InProcess(fleet.regions))
            assert (again.accepted, again.skipped) == (0, COUNT)
            await nothing_queued(fleet)
            twice.update(marked(fleet))

    fleet = covered(tmp_path, sink.addresses["accept"][1])
    twice: set[str] = set()
    asyncio.run(run(fleet))
    assert_once(fleet, sink, twice)

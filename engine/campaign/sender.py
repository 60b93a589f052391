"""Sends a campaign's chunks to its regions: every recipient once, whatever crashes on the way.

The sender keeps no state. It asks all regions which chunks they have, and submits the others. A chunk whose
answer was lost goes to the same region again until that region answers: there it is accepted once, by its
number. It goes to another region, which could not know it, only when its own is being drained and says that it
has not accepted it. After a kill -9 the same command does the
same again, and what was accepted is skipped.

The classes of engagement go one after the other: the next one begins when all of the last one is accepted.

A region that is full is asked again later, as one that does not answer. Every other refusal (another template
or other recipients under the same campaign) ends the sending. What was accepted before stays accepted.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

from engine.campaign.chunks import CutChunk, rank_regions
from engine.region.ports import RegionDraining
from engine.spool.errors import CampaignConflict, SpoolFull
from engine.values.engagement import Engagement
from engine.values.message import CampaignChunk, CampaignTemplate, ItemError, Receipt

T = TypeVar("T")

CONCURRENCY = 8
FIRST_DELAY_S = 0.05
MAX_DELAY_S = 5.0
GIVE_UP_S = 600.0


class RegionPort(Protocol):
    """Regions, as a campaign's sender reaches them. Every method can be repeated without harm.

    ConnectionError and TimeoutError: the outcome is unknown.
    """

    async def put_campaign(self, region: str, template: CampaignTemplate, field_names: Sequence[str]) -> int:
        """Store the template; its number in this region."""

    async def progress(self, region: str, tenant: str, campaign: str) -> dict[int, bytes]:
        """Numbers and digests of the chunks that the region has accepted."""

    async def accept_chunk(self, region: str, campaign_no: int, chunk: CampaignChunk) -> Receipt: ...


class SendInterrupted(Exception):
    """A region did not give an answer in time. The same campaign can be sent again to go on."""

    def __init__(self, region: str, waited_s: float, reason: str) -> None:
        super().__init__(region, waited_s, reason)
        self.region = region
        self.waited_s = waited_s
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"region {self.region} did not accept for {self.waited_s:.0f} s: {self.reason}. "
            "Send the same campaign again to go on: nobody is sent twice"
        )


@dataclass(slots=True)
class SendReport:
    """Counts of recipients and chunks, growing while the sending goes on.

    `suppressed`: of the accepted, those that are not sent to. `waiting_for`: the regions that are asked again, and why.
    `classes`: recipients by their engagement, also those that were accepted before.
    """

    accepted: int = 0
    skipped: int = 0
    refused: int = 0
    chunks_accepted: int = 0
    chunks_skipped: int = 0
    retries: int = 0
    suppressed: int = 0
    waiting_for: dict[str, str] = field(default_factory=dict)
    classes: Counter[Engagement] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return self.accepted + self.skipped + self.refused


class CampaignSender:
    """Sends one campaign. At most `concurrency` chunks are in memory and under way."""

    def __init__(
        self,
        port: RegionPort,
        regions: Sequence[str],
        *,
        concurrency: int = CONCURRENCY,
        give_up_s: float = GIVE_UP_S,
        rng: random.Random | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        if not regions:
            raise ValueError("no region can send this campaign")
        self._port = port
        self._regions = tuple(regions)
        self._concurrency = concurrency
        self._give_up_s = give_up_s
        self._rng = rng or random.Random()
        self._sleep = sleep
        self._now_s = now_s
        self.report = SendReport()

    async def send(
        self,
        template: CampaignTemplate,
        field_names: Sequence[str],
        chunks: Iterable[CutChunk],
        *,
        refuse: Callable[[int, ItemError], None] = lambda line, error: None,
    ) -> SendReport:
        """Send all chunks; returns when every one is safe in its region.

        `refuse` gets the line and the error of each recipient that a region refused. Raises SendInterrupted,
        or what a region raised.
        """
        port = self._port
        put = [partial(port.put_campaign, region, template, field_names) for region in self._regions]
        numbers = await self._of_all(put)
        campaign_no = dict(zip(self._regions, numbers, strict=True))
        name = template.tenant, template.campaign
        known = await self._of_all([partial(port.progress, region, *name) for region in self._regions])
        accepted = {number: digest for found in known for number, digest in found.items()}
        room = asyncio.Semaphore(self._concurrency)

        async def submit(cut: CutChunk) -> None:
            try:
                regions = rank_regions(template.tenant, template.campaign, cut.chunk.number, self._regions)
                receipt = await self._by_one(
                    regions, lambda region: port.accept_chunk(region, campaign_no[region], cut.chunk)
                )
                self._count(cut, receipt, refuse)
            finally:
                room.release()

        running: set[asyncio.Task[None]] = set()
        engagement = None
        try:
            async with asyncio.TaskGroup() as tasks:
                for cut in chunks:
                    if cut.chunk.engagement is not engagement and running:
                        await asyncio.wait(running)
                    engagement = cut.chunk.engagement
                    self.report.classes[engagement] += len(cut.chunk.recipients)
                    if cut.chunk.number in accepted:
                        _check_same(cut, accepted[cut.chunk.number])
                        self.report.chunks_skipped += 1
                        self.report.skipped += len(cut.chunk.recipients)
                        await asyncio.sleep(0)
                        continue
                    await room.acquire()
                    task = tasks.create_task(submit(cut))
                    running.add(task)
                    task.add_done_callback(running.discard)
        except ExceptionGroup as group:
            raise _first(group) from None
        return self.report

    async def _of_all(self, calls: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
        """The answers of all regions, in their order."""
        pairs = zip(self._regions, calls, strict=True)
        return list(await asyncio.gather(*(self._until_answered(region, call) for region, call in pairs)))

    def _count(self, cut: CutChunk, receipt: Receipt, refuse: Callable[[int, ItemError], None]) -> None:
        report = self.report
        report.refused += len(receipt.errors)
        for error in receipt.errors:
            refuse(cut.lines[error.index], error)
        count = len(cut.chunk.recipients) - len(receipt.errors)
        if receipt.repeated:
            report.chunks_skipped += 1
            report.skipped += count
        else:
            report.chunks_accepted += 1
            report.accepted += count
            report.suppressed += len(receipt.suppressed)

    async def _by_one(self, regions: Sequence[str], call: Callable[[str], Awaitable[Receipt]]) -> Receipt:
        """The answer of the first region that is not being drained; if all are, they are asked again later."""

        async def ask() -> Receipt:
            draining: RegionDraining | None = None
            for region in regions:
                try:
                    return await self._until_answered(region, partial(call, region))
                except RegionDraining as error:
                    draining = error
            raise ConnectionError(str(draining))

        return await self._until_answered(regions[0], ask)

    async def _until_answered(self, region: str, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat a call on its region, with growing delays, until there is an answer."""
        delay_s = FIRST_DELAY_S
        started_s = self._now_s()
        while True:
            try:
                answer = await call()
            except RegionDraining:
                raise
            except (ConnectionError, TimeoutError, SpoolFull) as error:
                self.report.retries += 1
                self.report.waiting_for[region] = str(error)
                waited_s = self._now_s() - started_s
                if waited_s >= self._give_up_s:
                    raise SendInterrupted(region, waited_s, str(error)) from error
                await self._sleep(delay_s * self._rng.uniform(0.5, 1.0))
                delay_s = min(delay_s * 2, MAX_DELAY_S)
            else:
                self.report.waiting_for.pop(region, None)
                return answer


def _check_same(cut: CutChunk, digest: bytes) -> None:
    if cut.chunk.digest != digest:
        raise CampaignConflict(
            f"campaign {cut.chunk.campaign!r} of tenant {cut.chunk.tenant!r}: part {cut.chunk.number}, lines "
            f"{cut.lines[0]} to {cut.lines[-1]}, was accepted before with other recipients: use another campaign id"
        )


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

"""Sends a campaign's chunks to its regions: every recipient once, whatever crashes on the way.

The sender keeps no state. It asks all regions which chunks they have, and submits the others; a chunk that was accepted
before is not accepted again, by its number. After a kill -9 the same command does the same again, and what was accepted
is skipped.

Without copies a chunk whose answer was lost goes to the same region again until that region answers; with copies in
other regions any region takes it that lives (engine/campaign/giving.py, covering.py).

The classes of engagement go one after the other: the next one begins when all of the last one is accepted.

A region that is full is asked again later, as one that does not answer. Every other refusal (another template
or other recipients under the same campaign) ends the sending. What was accepted before stays accepted.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from engine.campaign.chunks import CutChunk
from engine.campaign.covering import ANSWER_S, CoveringRegions
from engine.campaign.giving import Giving, OwnRegions, Patience, RegionPort, SendReport
from engine.spool.errors import CampaignConflict
from engine.values.message import CampaignTemplate, ItemError, Receipt

CONCURRENCY = 8
GIVE_UP_S = 600.0


class CampaignSender:
    """Sends one campaign. At most `concurrency` chunks are in memory and under way.

    `region_of`: given if the regions cover for each other; of which region each of `regions` is a shard, or itself.
    `answer_s`: how long such a region is waited for before another one is asked.
    """

    def __init__(
        self,
        port: RegionPort,
        regions: Sequence[str],
        *,
        region_of: Mapping[str, str] | None = None,
        concurrency: int = CONCURRENCY,
        give_up_s: float = GIVE_UP_S,
        answer_s: float = ANSWER_S,
        rng: random.Random | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        if not regions:
            raise ValueError("no region can send this campaign")
        self._concurrency = concurrency
        self.report = SendReport()
        patience = Patience(give_up_s, rng or random.Random(), sleep, now_s)
        self._giving: Giving = (
            OwnRegions(port, regions, patience, self.report)
            if region_of is None
            else CoveringRegions(port, regions, region_of, patience, self.report, answer_s=answer_s)
        )

    async def send(
        self,
        template: CampaignTemplate,
        field_names: Sequence[str],
        chunks: Iterable[CutChunk],
        *,
        refuse: Callable[[int, ItemError], None] = lambda line, error: None,
    ) -> SendReport:
        """Send all chunks; returns when every one is safe in a region.

        `refuse` gets the line and the error of each recipient that a region refused. Raises SendInterrupted,
        or what a region raised.
        """
        try:
            return await self._send(template, field_names, chunks, refuse)
        finally:
            await self._giving.end()

    async def _send(
        self,
        template: CampaignTemplate,
        field_names: Sequence[str],
        chunks: Iterable[CutChunk],
        refuse: Callable[[int, ItemError], None],
    ) -> SendReport:
        accepted = await self._giving.begin(template, field_names)
        room = asyncio.Semaphore(self._concurrency)

        async def submit(cut: CutChunk) -> None:
            try:
                self._count(cut, await self._giving.give(cut.chunk), refuse)
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

    def _count(self, cut: CutChunk, receipt: Receipt, refuse: Callable[[int, ItemError], None]) -> None:
        report = self.report
        report.refused += len(receipt.errors)
        for error in receipt.errors:
            refuse(cut.lines[error.index], error)
        count = len(cut.chunk.recipients) - len(receipt.errors)
        if receipt.degraded:
            report.degraded += count
        if receipt.repeated:
            report.chunks_skipped += 1
            report.skipped += count
        else:
            report.chunks_accepted += 1
            report.accepted += count
            report.suppressed += len(receipt.suppressed)


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

"""Chunks for regions that cover for each other: any region that lives takes any chunk, once.

A chunk goes to its region first, which spreads them, and to the next one when that is silent, full, cannot write, or
refuses. Each is given as one that another region may have: the regions ask each other for its key
(engine/failover/enquiry.py), whose copy stands with the chunk's in another region, so the one that is asked answers
with the receipt of before, also for a region that is dead. That holds for a first sending, too: nobody knows here
whether an earlier one was interrupted.

What the regions say that they have saves asking for it; correctness does not depend on it. So a region that is silent
is not waited for. Not until it answers does it get the campaign's template.
"""

import asyncio
from collections.abc import Mapping, Sequence

from engine.campaign.chunks import rank_regions
from engine.campaign.giving import FIRST_DELAY_S, Patience, RegionPort, SendInterrupted, SendReport
from engine.failover.rendezvous import keep_together
from engine.region.ports import RegionAway
from engine.spool.errors import CampaignConflict, CampaignUnknown, SpoolError
from engine.values.message import CampaignChunk, CampaignTemplate, Receipt

ANSWER_S = 5.0  # then another region is asked; what this one does meanwhile, it tells that one
BEGIN_S = 3.0  # so long a region that is silent is asked what it has
AVOID_S = 5.0  # so long a region that was silent is asked last

NO_ANSWER = (ConnectionError, TimeoutError, SpoolError)  # but CampaignConflict: that is about the campaign


class CoveringRegions:
    """See the module docstring. `region_of`: of which region each of `regions` is a shard, or itself."""

    def __init__(
        self,
        port: RegionPort,
        regions: Sequence[str],
        region_of: Mapping[str, str],
        patience: Patience,
        report: SendReport,
        *,
        answer_s: float = ANSWER_S,
    ) -> None:
        self._port = port
        self._regions = tuple(regions)
        self._region_of = region_of
        self._patience = patience
        self._report = report
        self._answer_s = answer_s
        self._campaign: tuple[CampaignTemplate, Sequence[str]] | None = None
        self._numbers: dict[str, asyncio.Task[int]] = {}
        self._silent_until: dict[str, float] = {}

    async def begin(self, template: CampaignTemplate, field_names: Sequence[str]) -> dict[int, bytes]:
        self._campaign = template, field_names
        found: dict[int, bytes] = {}
        silent = list(self._regions)
        delay_s = FIRST_DELAY_S
        started_s = self._patience.now_s()
        while silent:
            answers = await asyncio.gather(*(self._look(region) for region in silent))
            for known in answers:
                found |= known or {}
            silent = [region for region, known in zip(silent, answers, strict=True) if known is None]
            waited_s = self._patience.now_s() - started_s
            if len(silent) < len(self._regions) and waited_s >= BEGIN_S:
                break
            if silent:
                delay_s = await self._rest(silent, waited_s, delay_s)
        return found

    async def _look(self, region: str) -> dict[int, bytes] | None:
        """What the region has; None: no answer."""
        assert self._campaign is not None
        template, _ = self._campaign
        try:
            async with asyncio.timeout(self._answer_s):
                await self._number_in(region)
                known = await self._port.progress(region, template.tenant, template.campaign)
        except CampaignConflict:
            raise
        except NO_ANSWER as error:
            self._failed(region, error)
            return None
        self._heard(region)
        return known

    async def give(self, chunk: CampaignChunk) -> Receipt:
        ranked = rank_regions(chunk.tenant, chunk.campaign, chunk.number, self._regions)
        ranked = keep_together(ranked, self._region_of)
        delay_s = FIRST_DELAY_S
        started_s = self._patience.now_s()
        while True:
            for region in self._silent_last(ranked):
                receipt = await self._ask(region, chunk)
                if receipt is not None:
                    return receipt
            delay_s = await self._rest(ranked, self._patience.now_s() - started_s, delay_s)

    async def _ask(self, region: str, chunk: CampaignChunk) -> Receipt | None:
        """The region's receipt; None: it gives none now, perhaps another one does."""
        if region in self._silent_until:  # one chunk at a time finds out whether it lives
            self._silent_until[region] = self._patience.now_s() + AVOID_S
        try:
            async with asyncio.timeout(self._answer_s):
                number = await self._number_in(region)
                receipt = await self._port.accept_chunk(region, number, chunk, again=True)
        except CampaignConflict:
            raise
        except NO_ANSWER as error:
            if isinstance(error, CampaignUnknown):  # it has another disk than when it was told
                self._numbers.pop(region, None)
            self._failed(region, error)
            return None
        self._heard(region)
        return receipt

    async def _number_in(self, region: str) -> int:
        """The campaign's number there. A template may be large: storing it goes on when a caller has no more time."""
        assert self._campaign is not None
        task = self._numbers.get(region)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            template, field_names = self._campaign
            coroutine = self._port.put_campaign(region, template, field_names)
            task = self._numbers[region] = asyncio.ensure_future(coroutine)
        return await asyncio.shield(task)

    def _silent_last(self, ranked: Sequence[str]) -> list[str]:
        now_s = self._patience.now_s()
        return sorted(ranked, key=lambda region: self._silent_until.get(region, now_s) > now_s)

    def _heard(self, region: str) -> None:
        self._silent_until.pop(region, None)
        self._report.waiting_for.pop(region, None)

    def _failed(self, region: str, error: Exception) -> None:
        self._report.retries += 1
        first_line = next(iter(str(error).splitlines()), "")  # Ray's errors are long
        self._report.waiting_for[region] = first_line or f"no answer within {self._answer_s:g} s"
        if not isinstance(error, RegionAway | CampaignUnknown):
            self._silent_until[region] = self._patience.now_s() + AVOID_S

    async def _rest(self, regions: Sequence[str], waited_s: float, delay_s: float) -> float:
        """All of these were asked."""
        if waited_s >= self._patience.give_up_s:
            reasons = dict.fromkeys(self._report.waiting_for.get(region, "") for region in regions)
            raise SendInterrupted(", ".join(regions), waited_s, "; ".join(filter(None, reasons)))
        return await self._patience.rest(delay_s)

    async def end(self) -> None:
        for task in self._numbers.values():
            task.cancel()
        await asyncio.gather(*self._numbers.values(), return_exceptions=True)

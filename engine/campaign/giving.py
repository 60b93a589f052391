"""What gives chunks to regions works with: the regions, patience, and a report. Without copies in other regions each
chunk has a region of its own (OwnRegions); with copies see engine/campaign/covering.py.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

from engine.campaign.chunks import rank_regions
from engine.region.ports import RegionDraining
from engine.spool.errors import SpoolFull
from engine.values.engagement import Engagement
from engine.values.message import CampaignChunk, CampaignTemplate, Receipt

T = TypeVar("T")

FIRST_DELAY_S = 0.05
MAX_DELAY_S = 5.0


class RegionPort(Protocol):
    """Regions, as a campaign's sender reaches them. Every method can be repeated without harm.

    ConnectionError and TimeoutError: the outcome is unknown.
    """

    async def put_campaign(self, region: str, template: CampaignTemplate, field_names: Sequence[str]) -> int:
        """Store the template; its number in this region."""

    async def progress(self, region: str, tenant: str, campaign: str) -> dict[int, bytes]:
        """Numbers and digests of the chunks that the region has accepted."""

    async def accept_chunk(
        self, region: str, campaign_no: int, chunk: CampaignChunk, *, again: bool = False
    ) -> Receipt:
        """`again`: another region may have accepted it before; they find out among themselves. RegionAway: nothing is
        promised."""


class SendInterrupted(Exception):
    """A region did not give an answer in time. The same campaign can be sent again to go on.

    `region`: several names with commas between if any of them could have taken it.
    """

    def __init__(self, region: str, waited_s: float, reason: str) -> None:
        super().__init__(region, waited_s, reason)
        self.region = region
        self.waited_s = waited_s
        self.reason = reason

    def __str__(self) -> str:
        who = f"none of the regions {self.region} accepted" if "," in self.region else None
        return (
            f"{who or f'region {self.region} did not accept'} for {self.waited_s:.0f} s: {self.reason}. "
            "Send the same campaign again to go on: nobody is sent twice"
        )


@dataclass(slots=True)
class SendReport:
    """Counts of recipients and chunks, growing while the sending goes on.

    `suppressed`: of the accepted, those that are not sent to. `degraded`: those whose receipt says that no copy of them
    is in another region yet. `waiting_for`: the regions that are asked again, and why. `classes`: recipients by their
    engagement, also those that were accepted before.
    """

    accepted: int = 0
    skipped: int = 0
    refused: int = 0
    chunks_accepted: int = 0
    chunks_skipped: int = 0
    retries: int = 0
    suppressed: int = 0
    degraded: int = 0
    waiting_for: dict[str, str] = field(default_factory=dict)
    classes: Counter[Engagement] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return self.accepted + self.skipped + self.refused


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a region is asked again, and the clock of that."""

    give_up_s: float
    rng: random.Random
    sleep: Callable[[float], Awaitable[None]]
    now_s: Callable[[], float]

    async def rest(self, delay_s: float) -> float:
        """Wait for about that time; returns how long the next one is."""
        await self.sleep(delay_s * self.rng.uniform(0.5, 1.0))
        return min(delay_s * 2, MAX_DELAY_S)


class Giving(Protocol):
    """Who gives a campaign's chunks to regions."""

    async def begin(self, template: CampaignTemplate, field_names: Sequence[str]) -> dict[int, bytes]:
        """Tell the regions of the campaign; numbers and digests of chunks that they have."""

    async def give(self, chunk: CampaignChunk) -> Receipt:
        """The receipt of one chunk. SendInterrupted, or what a region raised."""

    async def end(self) -> None: ...


class OwnRegions:
    """Each chunk to its region, until that answers. To another one only if its own is being drained and says that it
    has not accepted it: without copies no other region can know."""

    def __init__(
        self, port: RegionPort, regions: Sequence[str], patience: Patience, report: SendReport
    ) -> None:
        self._port = port
        self._regions = tuple(regions)
        self._patience = patience
        self._report = report
        self._numbers: dict[str, int] = {}

    async def begin(self, template: CampaignTemplate, field_names: Sequence[str]) -> dict[int, bytes]:
        port = self._port
        put = [partial(port.put_campaign, region, template, field_names) for region in self._regions]
        self._numbers = dict(zip(self._regions, await self._of_all(put), strict=True))
        name = template.tenant, template.campaign
        known = await self._of_all([partial(port.progress, region, *name) for region in self._regions])
        return {number: digest for found in known for number, digest in found.items()}

    async def give(self, chunk: CampaignChunk) -> Receipt:
        regions = rank_regions(chunk.tenant, chunk.campaign, chunk.number, self._regions)
        return await self._by_one(
            regions, lambda region: self._port.accept_chunk(region, self._numbers[region], chunk)
        )

    async def end(self) -> None:
        """Nothing is left."""

    async def _of_all(self, calls: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
        """The answers of all regions, in their order."""
        pairs = zip(self._regions, calls, strict=True)
        return list(await asyncio.gather(*(self._until_answered(region, call) for region, call in pairs)))

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
        patience = self._patience
        delay_s = FIRST_DELAY_S
        started_s = patience.now_s()
        while True:
            try:
                answer = await call()
            except RegionDraining:
                raise
            except (ConnectionError, TimeoutError, SpoolFull) as error:
                self._report.retries += 1
                self._report.waiting_for[region] = str(error)
                waited_s = patience.now_s() - started_s
                if waited_s >= patience.give_up_s:
                    raise SendInterrupted(region, waited_s, str(error)) from error
                delay_s = await patience.rest(delay_s)
            else:
                self._report.waiting_for.pop(region, None)
                return answer

"""Regions of this process as the sender of a campaign reaches them (actors/client.py)."""

from collections.abc import Mapping, Sequence

import msgpack

from engine.campaign.record import parts_of
from engine.region.region import Region
from engine.values.message import CampaignChunk, CampaignTemplate, Receipt
from engine.values.submission import decode_receipt


class InProcess:
    """See engine.campaign.giving.RegionPort. A region that is not there does not answer."""

    def __init__(self, regions: Mapping[str, Region]) -> None:
        self._regions = regions

    def region(self, name: str) -> Region:
        if name not in self._regions:
            raise ConnectionError(f"region {name} is not there")
        return self._regions[name]

    async def put_campaign(self, region: str, template: CampaignTemplate, field_names: Sequence[str]) -> int:
        record = {
            "campaign": template.campaign,
            "tenant": template.tenant,
            "stream": int(template.stream),
            "sender": template.sender,
            "field_names": list(field_names),
            "template": parts_of(template),
        }
        return await self.region(region).put_campaign(msgpack.packb(record))

    async def progress(self, region: str, tenant: str, campaign: str) -> dict[int, bytes]:
        return self.region(region).progress(tenant, campaign)

    async def accept_chunk(
        self, region: str, campaign_no: int, chunk: CampaignChunk, *, again: bool = False
    ) -> Receipt:
        content = (chunk.number, chunk.digest, chunk.field_names, chunk.recipients, chunk.fields)
        data = msgpack.packb((campaign_no, *content, int(chunk.engagement), chunk.tenant, chunk.campaign))
        return decode_receipt(await self.region(region).accept_chunk(data, again=again))

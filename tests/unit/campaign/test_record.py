"""A stored record and its stored campaign become the message that the template says."""

import msgpack

from engine.campaign import record
from engine.campaign.record import RecordRenderer
from engine.campaign.render import Renderer
from engine.spool.batches import CampaignRecord
from engine.spool.records import Record
from engine.values.message import CampaignTemplate
from engine.values.stream import Stream


class Source:
    def __init__(self) -> None:
        self.asked: list[int] = []

    def campaign(self, number: int) -> CampaignRecord:
        self.asked.append(number)
        stored = CampaignRecord(
            campaign=f"c{number}",
            tenant="t",
            stream=2,
            sender="b@example.com",
            field_names=("name",),
            template={
                "header_from": "s@example.com",
                "subject": "{{ name }}",
                "text": "x",
                "headers": {"X-C": "1"},
            },
        )
        return CampaignRecord(
            stored.campaign,
            stored.tenant,
            stored.stream,
            stored.sender,
            *msgpack.unpackb(msgpack.packb((stored.field_names, stored.template))),
        )


def stored_record(campaign_no: int) -> Record:
    return Record(9, 1, 5, 0, 0, 1000, 99, "b@example.com", "r@example.org", [campaign_no, ["Ann"]], None)


def test_renders_as_the_template_does_and_compiles_once() -> None:
    source = Source()
    renderer = RecordRenderer(source)
    expected = Renderer(
        CampaignTemplate(
            "c3",
            "t",
            Stream.MARKETING,
            "b@example.com",
            "s@example.com",
            "{{ name }}",
            "x",
            headers={"X-C": "1"},
        )
    ).render({"name": "Ann"}, "r@example.org", 9, 1000)
    assert [renderer(stored_record(3)) for _ in range(3)] == [expected] * 3
    assert source.asked == [3]


def test_campaigns_kept_are_bounded_and_the_used_ones_stay() -> None:
    source = Source()
    renderer = RecordRenderer(source)
    for number in range(record.MAX_CAMPAIGNS + 10):
        renderer(stored_record(number))
        renderer(stored_record(0))
    assert len(renderer._compiled) == record.MAX_CAMPAIGNS
    assert source.asked.count(0) == 1

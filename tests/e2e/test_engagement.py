"""A warm-up begins with the recipients who open what is sent: by the sink's log of its first day.

The campaign is read from its files, sent and accepted as `sendfleet send` does it. The engaged stand at the end of the
file, and most recipients of the provider are of another domain of its.
"""

import asyncio
from pathlib import Path

import pytest

from engine.campaign.chunks import cut_chunks
from engine.campaign.engagement import read_in_order
from engine.campaign.giving import SendReport
from engine.campaign.recipients import RecipientFile
from engine.campaign.sender import CampaignSender
from engine.campaign.spec import load_campaign
from engine.region.region import Region
from engine.region.sites import DAY_MS
from engine.sink.process import SinkProcess
from tests.support.campaign_port import InProcess
from tests.support.days import Days, Run
from tests.support.region import fleet, start_region, until
from tests.support.sinks import accepting_sink

CAMPAIGN = """
id: spring
sender: bounces@example.com
from: Shop <shop@example.com>
subject: Spring
text: Dear {{ name }}
recipients:
  file: recipients.csv
  engagement: {column: last_open, engaged: 2026-09-01, unengaged: 2026-03-01}
"""
CAP = 6
UNENGAGED, NORMAL, ENGAGED = "2025-12-24", "2026-06-01", "2026-10-05"


async def send(path: Path, region: Region) -> SendReport:
    campaign = load_campaign(path)
    file = RecipientFile(campaign.recipients_path)
    rows = read_in_order(file, campaign.field_names, campaign.engagement)
    name = {"tenant": campaign.template.tenant, "campaign": campaign.template.campaign}
    chunks = cut_chunks(rows, **name, field_names=campaign.field_names, refuse=lambda row: None, size=5)
    return await CampaignSender(InProcess({"eu": region}), ["eu"]).send(
        campaign.template, campaign.field_names, chunks
    )


@pytest.fixture
def accepting(tmp_path: Path):
    with accepting_sink(tmp_path) as process:
        yield process


def test_the_first_days_of_a_warm_up_go_to_the_engaged(tmp_path: Path, accepting: SinkProcess) -> None:
    kinds = [UNENGAGED] * 30 + [NORMAL] * 3 * CAP + [ENGAGED] * CAP
    rows = [f"user{n}@{'big' if n % 3 else 'small'}.test,U{n},{kind}\n" for n, kind in enumerate(kinds)]
    (tmp_path / "recipients.csv").write_text("".join(["email,name,last_open\n", *rows]))
    (tmp_path / "campaign.yaml").write_text(CAMPAIGN)
    config = fleet(
        tmp_path,
        accepting.addresses["accept"][1],
        routes=[
            {
                "domains": ["big.test", "small.test"],
                "hosts": [f"127.0.0.1:{accepting.addresses['accept'][1]}"],
                "provider": "google",
            }
        ],
        tls={"exceptions": [{"provider": "google", "mode": "disabled", "reason": "loopback test"}]},
        providers={"google": {"rate": "unlimited"}},
        retry={"marketing": {"expire": "30d"}},
        limits={"ready_window": 4, "ready_total": 4},
        warmup={"tables": {"short": {"stages": [{"day": CAP, "hour": CAP}, {"day": 3 * CAP, "hour": CAP}]}}},
    )
    source = config.sources[0].model_copy(update={"warmup": "short"})
    config = config.model_copy(update={"sources": (source,)})
    clock = Days()
    clock.to_time_of_day(12)
    first_day = clock.wall_ms() // DAY_MS

    async def run() -> None:
        region, spool, node = await start_region(config, clock=clock)
        assert (await send(tmp_path / "campaign.yaml", region)).accepted == len(rows)
        await until(lambda: len(region.parts.sites) == 1)
        live = Run(region, clock)
        for _ in range(2):
            await live.to_the_end_of_the_day()
        await until(lambda: spool.counts()["queued"] == 0)  # the warm-up is over
        assert (await send(tmp_path / "campaign.yaml", region)).skipped == len(rows)
        region.check()
        await node.stop()
        await region.stop()
        spool.close()

    asyncio.run(run())
    kind_of = {f"user{n}@{'big' if n % 3 else 'small'}.test": kind for n, kind in enumerate(kinds)}
    days: dict[int, list[str]] = {}
    for row in accepting.log().acceptances:
        day = clock.showed_ms(row.at_ns) // DAY_MS - first_day
        days.setdefault(day, []).append(kind_of[row.recipient])
    assert days == {0: [ENGAGED] * CAP, 1: [NORMAL] * 3 * CAP, 2: [UNENGAGED] * 30}

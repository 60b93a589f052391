"""A region lives for years and meets every domain there is: what it keeps in memory is what waits now."""

import asyncio
from collections import Counter
from pathlib import Path

from engine.delivery.pool import PoolEngine
from engine.region.region import Region
from engine.region.sites import IDLE_S as SITE_IDLE_S
from engine.region.windows import IDLE_S
from engine.routing.route import Route
from engine.spool.audit import audit
from engine.values.clock import SteadyClock
from engine.values.message import Message
from engine.values.stream import Stream
from engine.values.submission import decode_receipt, encode_submission
from tests.support.clock import ShiftedClock
from tests.support.region import fleet, start_region, until
from tests.support.sinks import accepting_sink

DOMAINS = 20_000
SITES = 300
CAMPAIGNS = 700
BATCH = 500
BODY = b"From: a@example.com\r\nTo: b@example.org\r\nMessage-ID: <%d@example.com>\r\n\r\nhello\r\n"


def site_of(domain: str) -> str:
    return f"mx:s{int(domain[1:].partition('.')[0]) % SITES}.example"


class ManySites:
    """A router for a region whose mail goes to many hosts of their own."""

    def cached(self, domain: str) -> Route:
        return Route(site_of(domain), "default", (), "disabled")

    async def route(self, domain: str) -> Route:
        return self.cached(domain)


def messages(numbers: range) -> list[Message]:
    return [
        Message(
            "a@example.com",
            (f"user@d{n}.example",),
            BODY % n,
            Stream.MARKETING,
            tenant=f"t{n % 7}",
            campaign=f"c{n % CAMPAIGNS}",
        )
        for n in numbers
    ]


def remembered(region: Region) -> dict[str, int]:
    """Sizes of what grows with the domains, sites and campaigns that a region meets."""
    stats = region.parts.scheduler.stats()
    return {
        "queues": len(region.parts.windows),
        "flows": len(region.parts.flows),
        "sites": len(region.parts.sites),
        "campaigns": len(region.parts.sites.campaigns),
        "tenants": len(region.parts.sites.tenants),
        **{name: stats[name] for name in ("held", "flows", "shares", "sites")},
    }


def kept_by(pool: PoolEngine) -> int:
    stats = pool.stats()
    return sum(int(str(stats[name])) for name in ("held", "sessions", "lanes", "gates", "known_domains"))


def test_what_has_passed_through_is_forgotten_and_still_welcome(tmp_path: Path) -> None:
    clock = ShiftedClock(SteadyClock())
    with accepting_sink(tmp_path) as server:
        config = fleet(tmp_path, server.addresses["accept"][1])

        async def run() -> None:
            region, spool, node = await start_region(config, clock=clock)
            region.parts.routing._router = ManySites()  # type: ignore[assignment]
            most: Counter[str] = Counter()
            for first in range(0, DOMAINS, BATCH):
                batch = messages(range(first, first + BATCH))
                receipt = decode_receipt(await region.accept(*encode_submission(batch, b"%16d" % first)))
                assert not receipt.errors
                most |= Counter(remembered(region))
            await until(lambda: spool.counts()["queued"] == 0, 600)
            most |= Counter(remembered(region))
            assert most["queues"] > DOMAINS / 2  # they were there
            assert most["sites"] == SITES
            clock.shift(IDLE_S + 1)
            await until(lambda: not remembered(region)["flows"] and not remembered(region)["queues"], 60)
            clock.shift(SITE_IDLE_S + 1)
            await until(lambda: not any(remembered(region).values()), 60)
            await until(lambda: not any(kept_by(pool) for pool in node.pools.values()), 60)
            again = messages(range(0, DOMAINS, 97))
            await region.accept(*encode_submission(again, b"%16d" % DOMAINS))
            await until(lambda: spool.counts()["queued"] == 0, 60)
            assert spool.counts()["delivered"] == DOMAINS + len(again)
            region.check()
            await node.stop()
            await region.stop()
            spool.close()

        asyncio.run(run())
        per_recipient = Counter(server.log().recipients())
    assert len(per_recipient) == DOMAINS
    assert sum(per_recipient.values()) == DOMAINS + len(range(0, DOMAINS, 97))
    report = audit(tmp_path / "spool" / "eu")
    assert report.is_clean, report.problems

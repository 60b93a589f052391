"""The pool with the real spool, router and provider profiles: what is accepted arrives as it was."""

import asyncio
import random
import re
from pathlib import Path

from engine.delivery.pool import PoolEngine
from engine.delivery.wire import ENTRY, Header, decode_report, encode_header
from engine.providers.profiles import load_profiles
from engine.spool.batches import AcceptBatch, AcceptItem
from engine.spool.reader import SpoolReader
from engine.spool.store import Spool, SpoolOptions
from engine.tls.routes import build_routes
from engine.values.clock import SystemClock
from engine.values.outcome import Outcome, OutcomeKind
from tests.support.dns_answers import FakeResolver
from tests.support.fleets import fleet
from tests.support.hostile import HostileServer

BODIES = [b"Subject: a\r\n\r\n.dot\r\n", b"Subject: b\n\nbare\rends\n.\n", b"Subject: c\r\n\r\nno end"]
WIRE = [
    b"Subject: a\r\n\r\n..dot\r\n",
    b"Subject: b\r\n\r\nbare\r\nends\r\n..\r\n",
    b"Subject: c\r\n\r\nno end\r\n",
]


def test_from_the_spool_to_the_server(tmp_path: Path) -> None:
    asyncio.run(_run(tmp_path))


async def _run(path: Path) -> None:
    clock = SystemClock()
    options = SpoolOptions(map_size=64 << 20, min_free=0)
    spool = Spool.open(path, region_number=1, clock=clock, options=options)
    offset = 0
    items = []
    now_ms = clock.wall_ms()
    for number, body in enumerate(BODIES):
        recipients = tuple(f"u{number}.{i}@example.net" for i in range(2))
        items.append(
            AcceptItem(
                sender="sender@example.com",
                recipients=recipients,
                domains=("example.net",) * 2,
                stream=0,
                tenant="default",
                campaign="",
                offset=offset,
                length=len(body),
                due_ms=now_ms,
                expires_ms=now_ms + 3_600_000,
            )
        )
        offset += len(body)
    accepted = spool.accept(AcceptBatch(b"k" * 16, items, b"".join(BODIES))).result(5)
    ids = [id_ for group in accepted.ids for id_ in group]
    epoch = spool.epoch
    spool.close()  # one process cannot have it open twice
    async with HostileServer() as server:
        config = fleet(
            routes=[{"domains": ["example.net"], "hosts": [f"127.0.0.1:{server.port}"], "tls": "disabled"}],
            tls={"exceptions": [{"domain": "example.net", "mode": "disabled", "reason": "a test"}]},
        )
        profiles = load_profiles(config.providers)
        outcomes: list[Outcome] = []
        reader = SpoolReader(path)
        pool = PoolEngine(
            profile=profiles["default"],
            reader=reader,
            router=build_routes(config, profiles, FakeResolver(), clock, directory=None),
            sources=dict(enumerate(config.sources)),
            clock=clock,
            report=lambda data: outcomes.extend(decode_report(data).outcomes),
            render=lambda id_, record: b"",
            rng=random.Random(1),
        )
        entries = b"".join(ENTRY.pack(id_, 0, 0, 0, 0, 0, 0, 0) for id_ in ids)
        await pool.deliver(encode_header(Header(1, epoch, {0: "mx:example.net"})), entries)
        async with asyncio.timeout(60):
            while len(outcomes) < len(ids):
                await asyncio.sleep(0.005)
        await pool.stop(1.0)
        assert sorted(outcome.id for outcome in outcomes) == sorted(ids)
        assert {outcome.kind for outcome in outcomes} == {OutcomeKind.DELIVERED}
        assert sorted(server.committed) == sorted(name for item in items for name in item.recipients)
        bodies = [re.sub(rb"(Date|Message-ID): .*\r\n", b"", body) for body in server.bodies]
        assert sorted(bodies) == sorted(body for body in WIRE for _ in range(2))
        assert len(set(server.bodies)) == len(ids), "what has no Message-ID gets one of its own"
    reader.close()

"""Signed mail from a region to a server: verified there by dkimpy and opendkim; keys that vanish and change."""

import asyncio
import time
from pathlib import Path
from typing import Any

import msgpack

from engine.config.schema import FleetConfig
from engine.dkim.keys import KeyRing
from engine.region.region import Region
from engine.spool.audit import audit
from engine.spool.store import Spool
from engine.values.message import CampaignTemplate, Message
from engine.values.options import Notify, Options
from engine.values.stream import Stream
from engine.values.submission import decode_receipt, encode_submission
from tests.support.dkim import (
    dkim_section,
    ed25519_key,
    opendkim_results,
    records_of,
    rsa_key,
    verified,
    write_key,
)
from tests.support.hostile import HostileServer
from tests.support.region import fleet, start_region, until

RAW = "From: Ann <ann@example.com>\nTo: b@example.org\nSubject: Grüße %d\n\n.Grüße\n..\nfrom %d\n"


def signing_fleet(path: Path, port: int, **dkim: Any) -> FleetConfig:
    return fleet(path, port, dkim=dkim_section(path / "keys", "example.com", **dkim))


def mail(count: int, **fields: Any) -> list[Message]:
    return [
        Message(
            "a@example.com", (f"user{n}@example.org",), (RAW % (n, n)).encode(), Stream.MARKETING, **fields
        )
        for n in range(count)
    ]


def published(config: FleetConfig) -> dict[str, str]:
    return records_of(KeyRing(config.dkim, time.monotonic), "example.com")


def received(server: HostileServer) -> list[bytes]:
    return [body.replace(b"\r\n..", b"\r\n.") for body in server.bodies]


def events(spool: Spool, kind: str) -> list[dict[str, Any]]:
    return [row[2] for _, rows in spool.read_outbox(10_000) for row in rows if row[1] == kind]


async def put_campaign(region: Region, template: CampaignTemplate, count: int) -> None:
    """As actors/client.py does it."""
    parts = {name: getattr(template, name) for name in ("header_from", "subject", "text", "html")}
    record = {
        "campaign": template.campaign,
        "tenant": template.tenant,
        "stream": int(template.stream),
        "sender": template.sender,
        "field_names": ["name"],
        "template": parts,
    }
    number = await region.put_campaign(msgpack.packb(record))
    recipients = [f"u{n}@example.org" for n in range(count)]
    chunk = (number, 0, bytes(16), ["name"], recipients, [[f"N{n}"] for n in range(count)])
    await region.accept_chunk(msgpack.packb(chunk))


def test_what_a_region_sends_verifies_where_it_arrives(tmp_path: Path) -> None:
    async def run() -> None:
        async with HostileServer(extensions=("8BITMIME", "DSN")) as server:
            config = signing_fleet(tmp_path, server.port)
            region, spool, node = await start_region(config)
            wishes = Options(ret="HDRS", envid="e1", notify=Notify.NEVER)
            batch = [*mail(100), *mail(3, options=(wishes,))]
            receipt = decode_receipt(await region.accept(*encode_submission(batch, bytes(16))))
            assert not receipt.errors
            await until(lambda: spool.counts()["queued"] == 0)
            assert spool.counts()["delivered"] == 103
            await node.stop()
            await region.stop()
            spool.close()
            bodies = received(server)
            assert len(bodies) == 103
            records = published(config)
            assert all(verified(body, records, 2) for body in bodies[:20])
            results = opendkim_results(tmp_path, bodies, records)
            # opendkim of Debian 12 reports one result per message
            assert results
            assert set(results) == {"pass"}
            assert sum(b" RET=HDRS ENVID=e1" in command for command in server.commands) == 3
            assert sum(command.endswith(b" NOTIFY=NEVER") for command in server.commands) == 3

    asyncio.run(run())
    report = audit(tmp_path / "spool" / "eu")
    assert report.is_clean, report.problems


def test_a_campaign_whose_body_does_not_vary_is_hashed_once(tmp_path: Path) -> None:
    template = CampaignTemplate(
        campaign="spring",
        tenant="default",
        stream=Stream.MARKETING,
        sender="bounce@example.com",
        header_from="Shop <news@example.com>",
        subject="Hello {{ name }}",
        text="the same for all\n",
        html="<p>the same for all</p>\n",
    )

    async def run() -> None:
        async with HostileServer() as server:
            config = signing_fleet(tmp_path, server.port)
            region, spool, node = await start_region(config)
            await put_campaign(region, template, 50)
            await until(lambda: spool.counts()["delivered"] == 50)
            records = published(config)
            bodies = received(server)
            assert len({body.partition(b"\r\n\r\n")[2] for body in bodies}) == 1
            assert len(set(bodies)) == 50
            assert all(verified(body, records, 2) for body in bodies[:5])
            hashed = [pool.preparation._signer.hashed_bodies for pool in node.pools.values()]  # type: ignore[union-attr]
            assert hashed == [1]
            await node.stop()
            await region.stop()
            spool.close()

    asyncio.run(run())


def test_keys_that_vanish_come_back_and_change(tmp_path: Path) -> None:
    async def run() -> None:
        async with HostileServer() as server:
            config = signing_fleet(tmp_path, server.port, reload="50ms")
            rsa, ed25519 = (key.file for key in config.dkim.domains[0].keys)
            rsa.rename(tmp_path / "away")
            region, spool, node = await start_region(config)
            receipt = decode_receipt(await region.accept(*encode_submission(mail(3), bytes(16))))
            await until(lambda: all((region.status(i) or {}).get("attempts") for (i,) in receipt.ids))
            status = region.status(receipt.ids[0][0]) or {}
            assert f"DKIM: {rsa}: cannot be read" in str(status)
            assert server.bodies == [], "never unsigned"
            await until(lambda: str(rsa) in [fields.get("subject") for fields in events(spool, "alert")])
            (tmp_path / "away").rename(rsa)
            await until(lambda: spool.counts()["delivered"] == 3)
            old = published(config)
            assert all(verified(body, old, 2) for body in received(server))
            write_key(rsa, rsa_key(1))
            write_key(ed25519, ed25519_key(1))
            new = published(config)
            assert old != new
            await asyncio.sleep(0.1)
            await region.accept(*encode_submission(mail(3), b"x" * 16))
            await until(lambda: spool.counts()["delivered"] == 6)
            assert all(verified(body, new, 2) for body in received(server)[3:])
            await node.stop()
            await region.stop()
            spool.close()

    asyncio.run(run())
    report = audit(tmp_path / "spool" / "eu")
    assert report.is_clean, report.problems

"""A TLS report reaches a mailbox: made from what sessions gave, signed, over TLS, through the region's own spool."""

import asyncio
import email
import email.policy
import gzip
import json
import random
import ssl
import time
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from engine.dkim.keys import KeyRing
from engine.routing.answers import Status, TextAnswer
from engine.spool.audit import audit
from engine.tls.reporter import TlsReporter
from engine.values.clock import SteadyClock
from engine.values.message import Message
from engine.values.stream import Stream
from engine.values.submission import encode_submission
from tests.e2e.test_region_in_process import BODY
from tests.support.dkim import dkim_section, records_of, verified
from tests.support.dns_answers import FakeResolver
from tests.support.receivers import Aiosmtpd
from tests.support.region import fleet, start_region, until


class AtOnce(random.Random):
    def random(self) -> float:
        return 0.0


def test_what_sessions_gave_is_told_by_signed_mail(tmp_path: Path) -> None:
    config: Any = None
    dns = FakeResolver()
    record = "v=TLSRPTv1; rua=mailto:tls@reports.example"
    dns.text_of["_smtp._tls.example.org"] = TextAnswer(Status.FOUND, (record,), 60.0)

    async def addresses(host: str) -> list[str]:
        raise AssertionError("nothing is posted")

    async def run(server: Aiosmtpd) -> None:
        nonlocal config
        settings = {"sender": "tls@example.com", "directory": str(tmp_path / "reports")}
        config = fleet(
            tmp_path,
            server.port,
            tls={"reports": settings},
            dkim=dkim_section(tmp_path / "keys", "example.com"),
        )
        region, spool, node = await start_region(config)
        batch = [Message("a@example.com", ("b@example.org",), BODY % 1, Stream.TRANSACTIONAL)]
        await region.accept(*encode_submission(batch, bytes(16)))
        await until(lambda: bool(region.tls.listing()))
        book = region.tls.book  # it was yesterday
        book._days = {day - 1: domains for day, domains in book._days.items()}
        reporter = TlsReporter(
            config=config.tls.reports,
            region="eu",
            streams=frozenset({"transactional"}),
            ledger=region.tls,
            resolver=dns,
            accept=region.accept,
            addresses=addresses,
            context=ssl.create_default_context(),
            clock=SteadyClock(),
            rng=AtOnce(),
        )
        assert await reporter.round() == 1
        await until(lambda: spool.counts()["queued"] == 0, 40)
        await node.stop()
        await region.stop()
        spool.close()

    with Aiosmtpd(tls=True) as server:
        asyncio.run(run(server))
        stored = server.stored()
    (data,) = [message for message in stored if b"TLS-Report-Domain" in message]
    assert verified(data, records_of(KeyRing(config.dkim, time.monotonic), "example.com"), 2)
    message = email.message_from_bytes(data, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    assert (message["To"], message["TLS-Report-Domain"]) == ("tls@reports.example", "example.org")
    _, attached = message.iter_parts()
    report = json.loads(gzip.decompress(attached.get_content()))
    (policy,) = report["policies"]
    assert policy["policy"]["policy-type"] == "no-policy-found"
    assert policy["summary"] == {"total-successful-session-count": 1, "total-failure-session-count": 0}
    assert audit(tmp_path / "spool" / "eu").is_clean

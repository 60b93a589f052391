"""Suppression through a whole region: who gets onto the list, who does not, and that nothing is sent to them."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from engine.config.schema import FleetConfig
from engine.spool.audit import audit
from engine.values.message import Message, Receipt
from engine.values.submission import decode_receipt, encode_submission
from engine.values.suppression import Reason, encode_rows, make
from tests.e2e.test_region_in_process import messages, personality
from tests.support.region import fleet, start_region, until


def send_twice(config: FleetConfig, batch: list[Message]) -> tuple[Receipt, dict[str, int]]:
    """The receipt of the second time, and the counts in the end."""

    async def run() -> tuple[Receipt, dict[str, int]]:
        region, spool, node = await start_region(config)
        receipt = None
        for key in (b"1" * 16, b"2" * 16):
            receipt = decode_receipt(await region.accept(*encode_submission(batch, key)))
            await until(lambda: spool.counts()["queued"] == 0)
        region.check()
        await node.stop()
        await region.stop()
        counts = spool.counts()
        spool.close()
        assert receipt is not None
        return receipt, counts

    return asyncio.run(run())


def test_an_unknown_user_is_not_written_to_again(tmp_path: Path) -> None:
    text = '{unknown: {pattern: "user[0-9]@", reply: "550 5.1.1 no such user"}}'
    with personality(tmp_path, text) as server:
        batch = messages(20)
        receipt, counts = send_twice(fleet(tmp_path, server.addresses["it"][1]), batch)
        assert set(Counter(server.log().recipients()).values()) == {2}
    assert [receipt.ids.index((id_,)) for id_ in receipt.suppressed] == list(range(10))
    assert (counts["delivered"], counts["bounced"], counts["suppressed"]) == (20, 10, 10)
    report = audit(tmp_path / "spool" / "eu")
    assert report.is_clean, report.problems


@pytest.mark.parametrize(
    "reply",
    [
        "550 5.7.1 Service unavailable, Client host [203.0.113.9] blocked using Spamhaus",
        "554 5.7.1 Message rejected due to spam content",
        "550 5.7.26 Unauthenticated email is not accepted due to the domain's DMARC policy",
        "550 5.2.2 Mailbox full",
        "550 5.7.1 Relaying denied",
    ],
)
def test_a_refusal_that_is_not_about_the_address_suppresses_nobody(tmp_path: Path, reply: str) -> None:
    text = f'{{unknown: {{pattern: "user[0-9]@", reply: "{reply}"}}}}'
    with personality(tmp_path, text) as server:
        config = fleet(tmp_path, server.addresses["it"][1])

        async def run() -> int:
            region, spool, node = await start_region(config)
            await region.accept(*encode_submission(messages(1), bytes(16)))
            # a refusal of the source suspends it and the message waits, others bounce at once
            await until(
                lambda: any(len(event) > 3 for _, events in spool.read_outbox(100) for event in events)
            )
            rows = spool.suppression_rows()
            await node.stop()
            await region.stop()
            spool.close()
            return rows

        assert asyncio.run(run()) == 0


def test_mail_that_waits_is_stopped_when_its_recipient_is_listed(tmp_path: Path) -> None:
    """Listed after acceptance, while the rate holds it back: never on the wire, and the rate goes to the others."""
    with personality(tmp_path, "{}") as server:
        config = fleet(
            tmp_path,
            server.addresses["it"][1],
            providers={"default": {"rate": "40/1s", "max_connections": 2}},
            limits={"pool_credits": 10, "batch": 10},
        )

        async def run() -> dict[str, int]:
            region, spool, node = await start_region(config)
            await region.accept(*encode_submission(messages(150), bytes(16)))
            await until(lambda: spool.counts()["delivered"] > 3)
            rows = [
                make(f"User{n}@example.org", reason=Reason.MANUAL, at_ms=1, tenant="default")
                for n in range(100, 150)
            ]
            assert await region.suppress(encode_rows(rows), spread=True) == 50
            await until(lambda: spool.counts()["queued"] == 0)
            # on disk first, off the pool's account a moment later
            await until(lambda: region.snapshot()["outstanding"] == {"default.0": 0})
            region.check()
            await node.stop()
            await region.stop()
            counts = spool.counts()
            spool.close()
            return counts

        counts = asyncio.run(run())
        sent = Counter(server.log().recipients())
    assert (counts["delivered"], counts["suppressed"]) == (100, 50)
    assert set(sent) == {f"user{n}@example.org" for n in range(100)}
    report = audit(tmp_path / "spool" / "eu")
    assert report.is_clean, report.problems

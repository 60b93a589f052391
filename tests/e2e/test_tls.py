"""TLS from end to end: a region and its pools against a sink that speaks TLS, or does not."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from engine.config.schema import FleetConfig
from engine.sink.process import SinkProcess
from engine.values.message import Message
from engine.values.options import Flag, Notify, Options
from engine.values.stream import Stream
from engine.values.submission import decode_receipt, encode_submission
from tests.support.certificates import Identity, authority, make, stranger, write_authorities
from tests.support.region import fleet, start_region, until

BODY = b"From: a@example.com\r\nTo: b@example.org\r\nSubject: x\r\n\r\nhello\r\n"
SOON = {"first": "1s", "factor": 1, "max": "1s", "jitter": 0, "expire": "60s"}


def sink(folder: Path, identity: Identity | None) -> SinkProcess:
    """A sink; with an identity it speaks TLS, and takes no mail without."""
    text = "{}"
    if identity is not None:
        (folder / "cert.pem").write_bytes(identity.pem())
        (folder / "key.pem").write_bytes(identity.key_pem())
        text = "{tls: {certificate: cert.pem, key: key.pem, required: true}}"
    (folder / "sink.yaml").write_text(f"personalities:\n  it: {text}\n")
    return SinkProcess(folder / "sink.yaml", folder / "sink.log")


def message(*options: Options) -> Message:
    return Message("a@example.com", ("user@example.org",), BODY, Stream.MARKETING, options=options)


def outcome_of(config: FleetConfig, sent: Message) -> tuple[str, list[Any]]:
    """The end of one message, and its last event."""

    async def run() -> tuple[str, list[Any]]:
        region, spool, node = await start_region(config)
        receipt = decode_receipt(await region.accept(*encode_submission([sent], bytes(16))))
        assert not receipt.errors, receipt.errors
        await until(lambda: spool.counts()["queued"] == 0)
        events = [event for _, events in spool.read_outbox(100) for event in events if len(event) > 3]
        (end,) = [name for name, count in spool.counts().items() if count and name != "accepted"]
        await node.stop()
        await region.stop()
        spool.close()
        return end, events[-1]

    return asyncio.run(run())


def tls_events(config: FleetConfig) -> list[list[Any]]:
    """Events that are not about a message, from the spool of a region that has stopped."""

    async def run() -> list[list[Any]]:
        region, spool, node = await start_region(config)
        found = [event for _, events in spool.read_outbox(100) for event in events if len(event) == 3]
        assert region.tls.book.domains(next(iter(region.tls.book.ended_days(2**60)))), (
            "the counts are on disk"
        )
        await node.stop()
        await region.stop()
        spool.close()
        return found

    return asyncio.run(run())


def config_of(folder: Path, server: SinkProcess, *, expire: str = "60s", **tls: Any) -> FleetConfig:
    waits = {**SOON, "expire": expire}
    retry = dict.fromkeys(("transactional", "notification", "marketing"), waits)
    return fleet(folder, server.addresses["it"][1], tls=tls, retry=retry)


def test_over_tls_without_a_word_in_the_configuration(tmp_path: Path) -> None:
    with sink(tmp_path, make("localhost", issuer=stranger(), days=(-9, -1))) as server:
        config = config_of(tmp_path, server)
        end, event = outcome_of(config, message())
        findings = [said for _, kind, said in tls_events(config) if kind == "tls"]
    assert (end, event[3]) == ("delivered", 250)
    (found,) = findings
    assert (found["domain"], found["policy"], found["version"]) == ("example.org", "required", "TLSv1.3")
    assert (found["verified"], found["fault"], found["sessions"]) == ("", "", 1)


def test_a_host_without_tls_gets_nothing_and_the_sender_is_told_why(tmp_path: Path) -> None:
    with sink(tmp_path, None) as server:
        end, event = outcome_of(config_of(tmp_path, server, expire="2s"), message())
        assert not server.log().acceptances
    assert (end, event[3], event[4]) == ("expired", 0, "4.7.10")
    assert "TLS is required but not offered" in event[5]


def test_the_deadline_of_tls_is_shorter_than_the_expiry(tmp_path: Path) -> None:
    with sink(tmp_path, None) as server:
        end, event = outcome_of(config_of(tmp_path, server, deadline="1500ms"), message())
        assert not server.log().acceptances
    assert (end, event[3], event[4]) == ("bounced", 0, "5.7.10")
    assert "TLS is required but not offered" in event[5]


def test_a_written_exception_is_the_only_way_into_plaintext(tmp_path: Path) -> None:
    with sink(tmp_path, None) as server:
        exception = {"domain": "example.org", "mode": "disabled", "reason": "a test"}
        end, _ = outcome_of(config_of(tmp_path, server, exceptions=[exception]), message())
        assert len(server.log().acceptances) == 1
    assert end == "delivered"


@pytest.mark.parametrize(("trusted", "expected"), [(True, "delivered"), (False, "bounced")])
def test_the_exception_verified_wants_a_good_certificate(
    tmp_path: Path, trusted: bool, expected: str
) -> None:
    identity = make("localhost", issuer=authority(), addresses=("127.0.0.1",))
    file = write_authorities(tmp_path / "ca.pem", authority() if trusted else stranger())
    with sink(tmp_path, identity) as server:
        exception = {"domain": "example.org", "mode": "verified", "reason": "a test"}
        tls = {"exceptions": [exception], "authorities": str(file), "deadline": "500ms"}
        end, event = outcome_of(config_of(tmp_path, server, **tls), message())
    assert end == expected
    if expected == "bounced":
        assert event[4] == "5.7.5"
        assert "unable to get local issuer certificate" in event[5]


def test_a_notification_of_a_message_that_requires_tls_requires_it_too(tmp_path: Path) -> None:
    """RFC 8689 section 5. The host of the sender does not offer it either, so nobody is told."""
    identity = make("localhost", issuer=authority(), addresses=("127.0.0.1",))
    file = write_authorities(tmp_path / "ca.pem", authority())
    asking = Options(flags=Flag.REQUIRE_TLS, notify=Notify.FAILURE, ret="FULL")

    async def run(config: FleetConfig) -> None:
        region, spool, node = await start_region(config)
        await region.accept(*encode_submission([message(asking)], bytes(16)))
        await until(lambda: spool.counts()["bounced"] == 2)
        await node.stop()
        await region.stop()
        spool.close()

    with sink(tmp_path, identity) as server:
        asyncio.run(run(config_of(tmp_path, server, authorities=str(file))))
        assert not server.log().acceptances


def test_a_message_that_requires_tls_bounces_where_it_is_not_offered(tmp_path: Path) -> None:
    identity = make("localhost", issuer=authority(), addresses=("127.0.0.1",))
    file = write_authorities(tmp_path / "ca.pem", authority())
    with sink(tmp_path, identity) as server:
        config = config_of(tmp_path, server, authorities=str(file))
        end, event = outcome_of(config, message(Options(flags=Flag.REQUIRE_TLS)))
        assert not server.log().acceptances
    assert (end, event[3], event[4]) == ("bounced", 0, "5.7.30")
    assert "REQUIRETLS is not offered" in event[5]

"""From a region into real MTAs: bodies arrive byte for byte, and their signatures verify in the mailbox."""

import asyncio
import email
import email.policy
import re
import time
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from engine.dkim.keys import KeyRing
from engine.spool.audit import audit
from engine.values.message import Message
from engine.values.options import Notify, Options
from engine.values.stream import Stream
from engine.values.submission import decode_receipt, encode_submission
from tests.support.dkim import dkim_section, opendkim_results, records_of, verified
from tests.support.receivers import Aiosmtpd, Exim, OpenSmtpd, Postfix
from tests.support.region import fleet, start_region, until

RECEIVERS: dict[str, Any] = {
    "postfix-chunking": lambda tls: Postfix(tls=tls),
    "postfix": lambda tls: Postfix(tls=tls, chunking=False),
    "exim-chunking": lambda tls: Exim(tls=tls),
    "exim": lambda tls: Exim(tls=tls, chunking=False),
    "opensmtpd": lambda tls: OpenSmtpd(tls=tls),
    "aiosmtpd": lambda tls: Aiosmtpd(tls=tls),
}


def raw_messages() -> dict[str, bytes]:
    """By name: what stands in the subject, and the whole."""
    head = "From: Ann <ann@example.com>\r\nTo: b@example.org\r\nSubject: {}\r\nX-Case: {}\r\n"
    found = {
        "plain": head.format("x", "plain") + "\r\nhello\r\n",
        "dots": head.format("x", "dots") + "\r\n.\r\n..\r\n.a\r\n\r\n.\r\n",
        "blank end": head.format("x", "blank end") + "\r\n  spaces  \r\n\t\r\n\r\n\r\n",
        "empty": head.format("x", "empty") + "\r\n",
        "eight bits": head.format("x", "eight bits")
        + "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n"
        + "\r\nGrüße, мир\r\n.\r\n",
        "utf8 header": head.format("Grüße", "utf8 header") + "\r\nx\r\n",
        "long line": head.format("x", "long line") + "\r\n" + "word " * 500 + "\r\n",
        "998": head.format("x", "998") + "\r\n" + "x" * 998 + "\r\n." + "y" * 997 + "\r\n",
        "bare": head.format("x", "bare") + "\r\na\rb\nc\r\n.\n.\r\n",
        "large": head.format("x", "large") + "\r\n" + ("." + "z" * 70 + "\r\n") * 15_000,
    }
    encoded = {name: text.encode() for name, text in found.items()}
    attached = EmailMessage(policy=email.policy.SMTP)
    attached["From"], attached["To"], attached["Subject"] = "ann@example.com", "b@example.org", "x"
    attached["X-Case"] = "attached"
    attached.set_content("Grüße")
    attached.add_attachment(bytes(range(256)) * 50, maintype="image", subtype="png", filename="ä.png")
    encoded["attached"] = bytes(attached)
    return encoded


MENDED = {"long line"}
BARE = b"\r\na\r\nb\r\nc\r\n.\r\n.\r\n"


WAYS = [
    (name, tls) for name in sorted(RECEIVERS) for tls in (False, True) if (name, tls) != ("opensmtpd", True)
]


@pytest.mark.parametrize(
    ("name", "tls"), WAYS, ids=[f"{name}-{'tls' if tls else 'plain'}" for name, tls in WAYS]
)
def test_bodies_arrive_as_they_were_and_signatures_verify(tmp_path: Path, name: str, tls: bool) -> None:
    sent = raw_messages()

    async def run(port: int) -> dict[str, str]:
        sections: dict[str, Any] = {"dkim": dkim_section(tmp_path / "keys", "example.com")}
        if tls:
            sections["tls"] = {}
        config = fleet(tmp_path, port, **sections)
        region, spool, node = await start_region(config)
        batch = [
            Message("a@example.com", ("b@example.org",), raw, Stream.TRANSACTIONAL) for raw in sent.values()
        ]
        receipt = decode_receipt(await region.accept(*encode_submission(batch, bytes(16))))
        assert not receipt.errors
        await until(lambda: spool.counts()["queued"] == 0, 40)
        assert spool.counts()["delivered"] == len(sent), [region.status(i) for (i,) in receipt.ids]
        await node.stop()
        await region.stop()
        spool.close()
        return records_of(KeyRing(config.dkim, time.monotonic), "example.com")

    with RECEIVERS[name](tls) as server:
        records = asyncio.run(run(server.port))
        stored = _wait_for(server, len(sent))
        if isinstance(server, Exim):
            assert server.chunked() == (len(sent) if name == "exim-chunking" else 0)
    assert audit(tmp_path / "spool" / "eu").is_clean
    by_case = {_case(message): message for message in stored}
    assert sorted(by_case) == sorted(sent)
    for case, message in by_case.items():
        body = message.partition(b"\r\n\r\n")[2]
        wanted = BARE[2:] if case == "bare" else sent[case].partition(b"\r\n\r\n")[2]
        if case in MENDED:
            parsed = email.message_from_bytes(message, policy=email.policy.SMTP)
            assert parsed.get_payload(decode=True) == wanted
        else:
            assert body == wanted, case
        subject = email.message_from_bytes(message, policy=email.policy.SMTP)["subject"]
        assert subject == ("Grüße" if case == "utf8 header" else "x")
        assert verified(message, records, 2), case
        if name != "aiosmtpd":  # it writes no Received, and takes nothing before STARTTLS
            assert tls is bool(re.search(rb"(?i)\bwith (?:E|UTF8E?)SMTPS\b", message)), "RFC 3848"
    assert set(opendkim_results(tmp_path, stored, records)) == {"pass"}


def _case(message: bytes) -> str:
    return str(email.message_from_bytes(message, policy=email.policy.SMTP)["x-case"])


def _wait_for(server: Any, count: int) -> list[bytes]:
    """What was accepted is moved to the mailbox a little later."""
    deadline = time.monotonic() + 20
    while len(found := server.stored()) < count and time.monotonic() < deadline:
        time.sleep(0.05)
    return list(found)


@pytest.mark.parametrize("name", sorted(RECEIVERS))
def test_addresses_that_are_not_ascii(tmp_path: Path, name: str) -> None:
    """SMTPUTF8 where it is offered; a domain alone goes as A-labels; what has no ASCII form bounces elsewhere."""
    raw = "From: Ann <ann@example.com>\r\nSubject: Grüße\r\n\r\nä\r\n".encode()
    config: Any = None

    async def run(port: int) -> tuple[dict[str, int], str]:
        nonlocal config
        config = fleet(tmp_path, port, dkim=dkim_section(tmp_path / "keys", "example.com"))
        region, spool, node = await start_region(config)
        batch = [
            Message("größe@bücher.example", ("b@example.org",), raw, Stream.TRANSACTIONAL),
            Message("a@bücher.example", ("b@example.org",), raw, Stream.TRANSACTIONAL),
        ]
        receipt = decode_receipt(await region.accept(*encode_submission(batch, bytes(16))))
        await until(lambda: spool.counts()["queued"] == 0, 40)
        counts = spool.counts()
        status = str(region.status(receipt.ids[0][0]))
        await node.stop()
        await region.stop()
        spool.close()
        return counts, status

    with RECEIVERS[name](False) as server:
        counts, status = asyncio.run(run(server.port))
        accepted = 1 if name == "opensmtpd" else 2
        assert (counts["delivered"], counts["bounced"]) == (accepted, 2 - accepted), status
        stored = _wait_for(server, accepted)
    records = records_of(KeyRing(config.dkim, time.monotonic), "example.com")
    assert len(stored) == accepted
    for message in stored:
        parsed = email.message_from_bytes(message, policy=email.policy.SMTP)
        assert parsed["subject"] == "Grüße"
        assert parsed.get_payload(decode=True) == "ä\r\n".encode()
        assert verified(message, records, 2)


@pytest.mark.parametrize(
    ("name", "action"),
    [
        ("postfix", b"delivered"),
        ("exim", b"delivered"),
        ("aiosmtpd", b"relayed"),
    ],
)
def test_a_wished_report_of_a_delivery_comes_once(tmp_path: Path, name: str, action: bytes) -> None:
    """From the host if it offers DSN, else from us: that it was relayed (RFC 3461 section 5.2).

    OpenSMTPD's is a text without the fields of RFC 3464.
    """
    wish = (Options(notify=Notify.SUCCESS, envid="order-17", orcpt="rfc822;old@example.org"),)
    raw = b"From: Ann <ann@example.org>\r\nSubject: x\r\n\r\nx\r\n"

    async def run(server: Any) -> None:
        region, spool, node = await start_region(fleet(tmp_path, server.port))
        batch = [Message("ann@example.org", ("b@example.org",), raw, Stream.TRANSACTIONAL, options=wish)]
        await region.accept(*encode_submission(batch, bytes(16)))
        await until(lambda: len(server.stored()) >= 2, 40)
        await until(lambda: spool.counts()["queued"] == 0 and not spool.notices(10))
        assert spool.counts()["delivered"] == (2 if action == b"relayed" else 1)
        await node.stop()
        await region.stop()
        spool.close()

    with RECEIVERS[name](False) as server:
        asyncio.run(run(server))
        stored = server.stored()
    (report,) = [message for message in stored if b"report-type=delivery-status" in message]
    assert len(stored) == 2
    assert re.findall(rb"(?im)^Action: (\S+)", report) == [action]
    assert re.search(rb"(?im)^Original-Envelope-Id: order-17", report)
    assert re.search(rb"(?im)^Original-Recipient: rfc822; ?old@example.org", report)


def test_a_handshake_that_fails_is_never_followed_by_plain_text(tmp_path: Path) -> None:
    async def run(port: int) -> str:
        config = fleet(tmp_path, port, tls={}, dkim=dkim_section(tmp_path / "keys", "example.com"))
        region, spool, node = await start_region(config)
        batch = [Message("a@example.com", ("b@example.org",), raw_messages()["plain"], Stream.TRANSACTIONAL)]
        receipt = decode_receipt(await region.accept(*encode_submission(batch, bytes(16))))
        ((id_,),) = receipt.ids
        await until(lambda: int((region.status(id_) or {}).get("attempts", 0)) >= 2)  # type: ignore[call-overload]
        status = region.status(id_) or {}
        assert status["state"] == "queued"
        await node.stop()
        await region.stop()
        spool.close()
        return str(status)

    with OpenSmtpd(tls=True) as server:
        assert "TLS handshake failed" in asyncio.run(run(server.port))
        time.sleep(0.5)
        assert server.stored() == []

"""A message goes out with a return path of its own; its bounce and the complaint about it come back as mail."""

import asyncio
import email
import email.policy
import re
import smtplib
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiosmtpd.smtp import Envelope

from engine.bounces.key_files import add_key, use_last_key, write_key
from engine.bounces.report import ReportKind, read_report
from engine.bounces.tokens import LOCAL_PART, TokenKeys, verify_return_path
from engine.config.schema import FleetConfig
from engine.ingress.gateway import Gateway
from engine.region.outbox import event_line
from engine.region.region import Region
from engine.reputation.allowance import decode_summary
from engine.spool.audit import audit
from engine.spool.store import Spool
from engine.values.clock import SteadyClock
from engine.values.message import Message
from engine.values.options import Notify, Options
from engine.values.reply import Reply
from engine.values.stream import Stream
from engine.values.submission import encode_submission
from engine.values.suppression import Reason
from tests.e2e.test_region_in_process import BODY, messages
from tests.support.host import Host
from tests.support.hostile import HostileServer
from tests.support.region import LocalNode, fleet, start_region, until

DOMAIN = "bounce.example.com"
FEEDBACK = "fbl@example.com"
DSN = """\
From: mailer-daemon@example.org
Subject: Undelivered
Content-Type: multipart/report; report-type=delivery-status; boundary=b

--b
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.example.org

Final-Recipient: rfc822; {recipient}
Action: failed
Status: {status}
Diagnostic-Code: smtp; 550 {status} {text}

--b--
"""
ARF = """\
From: feedback@provider.example
Content-Type: multipart/report; report-type=feedback-report; boundary=b

--b
Content-Type: message/feedback-report

Feedback-Type: abuse
Version: 1
User-Agent: x/1

--b
Content-Type: message/rfc822

Return-Path: <{return_path}>
Subject: x

--b--
"""


@dataclass
class Running:
    region: Region
    spool: Spool
    node: LocalNode
    gateway: Gateway

    async def report(self, region: str, signal: bytes) -> str:
        return await self.region.report(signal)

    async def accept(self, region: str, header: bytes, blob: bytes, again: bool) -> bytes:
        return await self.region.accept(header, blob, again=again)

    async def unsubscribe(self, region: str, rows: bytes) -> int:
        raise AssertionError("nobody unsubscribes here")

    async def mail(self, recipient: str, text: str | bytes, sender: str = "") -> int:
        def run() -> int:
            with smtplib.SMTP("127.0.0.1", self.gateway.mail_port, timeout=60) as client:
                client.ehlo()
                client.mail(sender)
                code, _ = client.rcpt(recipient)
                return client.data(text)[0] if code == 250 else code

        return await asyncio.to_thread(run)

    def events(self) -> list[dict[str, Any]]:
        rows = [(seq, event) for seq, events in self.spool.read_outbox(10_000) for event in events]
        return [orjson.loads(event_line(seq, event)) for seq, event in rows]

    def listed(self) -> dict[str, Reason]:
        return {row.address: row.reason for row in self.spool.suppressions(b"", 100)[1]}


def config_of(
    tmp_path: Path, host: Host, postmaster: dict[str, str] | None = None, **sections: Any
) -> FleetConfig:
    key = tmp_path / "key"
    if not key.exists():
        write_key(key)
    return fleet(
        tmp_path,
        host.port,
        tokens={"keys": [{"id": 1, "file": str(key)}]},
        bounces={
            "return_paths": [{"domain": DOMAIN, "streams": ["marketing"]}],
            "feedback": [FEEDBACK],
            "postmaster": postmaster or {},
        },
        ingress={"mail": {"eu": "127.0.0.1:1"}},
        **sections,
    )


@asynccontextmanager
async def running(config: FleetConfig) -> AsyncIterator[Running]:
    region, spool, node = await start_region(config)
    it = Running(region, spool, node, None)  # type: ignore[arg-type]
    it.gateway = Gateway(config, "eu", port=it, clock=SteadyClock())
    it.gateway.mail_port = await it.gateway._mail.start("127.0.0.1", 0)
    try:
        yield it
        region.check()
    finally:
        await it.gateway.stop()
        await node.stop()
        await region.stop()
        spool.close()


async def send(it: Running, batch: list[Message], key: bytes = bytes(16)) -> None:
    await it.region.accept(*encode_submission(batch, key))
    await until(lambda: it.spool.counts()["queued"] == 0)


def test_each_message_has_a_return_path_of_its_own(tmp_path: Path, host: Host) -> None:

    async def run() -> None:
        async with running(config_of(tmp_path, host)) as it:
            others = [
                Message("", ("null@example.org",), BODY % 1, Stream.MARKETING),
                Message("a@example.com", ("other@example.org",), BODY % 2, Stream.TRANSACTIONAL),
                Message("a@example.com", ("one@example.org", "two@example.org"), BODY % 3, Stream.MARKETING),
            ]
            await send(it, [*messages(20), *others])

    asyncio.run(run())
    seen = host.senders()
    assert seen.pop("null@example.org") == ""
    assert seen.pop("other@example.org") == "a@example.com"
    assert len(seen) == len(set(seen.values())) == 22
    for sender in seen.values():
        local, _, domain = sender.partition("@")
        assert domain == DOMAIN
        assert LOCAL_PART.fullmatch(local)


def test_a_late_bounce_lists_its_recipient_once(tmp_path: Path, host: Host) -> None:

    async def run() -> None:
        async with running(config_of(tmp_path, host)) as it:
            await send(it, messages(4))
            paths = host.senders()
            gone = DSN.format(recipient="USER0@example.org", status="5.1.1", text="no such user")
            full = DSN.format(recipient="user1@example.org", status="5.2.2", text="mailbox full")
            spam = DSN.format(recipient="user2@example.org", status="5.7.1", text="spam content")
            for name, text in (("user0", gone), ("user0", gone), ("user1", full), ("user2", spam)):
                assert await it.mail(paths[f"{name}@example.org"], text) == 250
            # whoever gets user3's mail has gone; then user3 himself
            assert await it.mail(paths["user3@example.org"], gone) == 250
            assert await it.mail(paths["user3@example.org"], gone) == 250
            assert it.listed() == {"user0@example.org": Reason.HARD_BOUNCE}, "not user3"
            own = gone.replace("USER0@", "user3@")
            assert await it.mail(paths["user3@example.org"], own) == 250
            assert await it.mail(f"b+{'a' * 34}@{DOMAIN}", gone) == 550
            late = [event for event in it.events() if event["event"] == "late_bounce"]
            assert [(e["recipient"], e["hard"], e["category"]) for e in late] == [
                ("user0@example.org", True, "bad-mailbox"),
                ("user1@example.org", False, "quota-issues"),
                ("user2@example.org", False, "spam-related"),
                ("user3@example.org", False, "bad-mailbox"),
                ("user3@example.org", True, "bad-mailbox"),
            ]
            assert [e.get("elsewhere") for e in late] == [None, None, None, "USER0@example.org", None]
            assert it.region.snapshot()["remembered"] == {"sent": 4, "notices": 0}
            assert it.listed() == dict.fromkeys(
                ("user0@example.org", "user3@example.org"), Reason.HARD_BOUNCE
            )
            counts = it.gateway.reports.counts
            assert (counts["acted"], counts["repeated"], counts["forged"]) == (5, 2, 1)
            await send(it, messages(4), b"2" * 16)

    asyncio.run(run())
    assert Counter(host.recipients()) == {
        "user0@example.org": 1,
        "user1@example.org": 2,
        "user2@example.org": 2,
        "user3@example.org": 1,
    }
    report = audit(tmp_path / "spool" / "eu")
    assert report.is_clean, report.problems
    assert (report.counts["delivered"], report.counts["suppressed"]) == (6, 2)


class SlowHost(Host):
    """Takes a message, and says so when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = threading.Event()

    async def handle_DATA(self, server: object, session: object, envelope: Envelope) -> str:
        answer = await super().handle_DATA(server, session, envelope)
        while not self.may_answer.is_set():
            await asyncio.sleep(0.01)
        return answer


def test_a_bounce_that_overtakes_the_delivery_is_not_lost(tmp_path: Path) -> None:
    async def run() -> None:
        with SlowHost() as host:
            async with running(config_of(tmp_path, host)) as it:
                await it.region.accept(*encode_submission(messages(1), bytes(16)))
                await until(lambda: bool(host.senders()))
                (path,) = host.senders().values()
                gone = DSN.format(recipient="user0@example.org", status="5.1.1", text="no such user")
                assert await it.mail(path, gone) == 451
                assert (it.gateway.reports.counts["early"], it.listed()) == (1, {})
                host.may_answer.set()
                await until(lambda: it.spool.counts()["queued"] == 0)
                assert await it.mail(path, gone) == 250
                assert it.listed() == {"user0@example.org": Reason.HARD_BOUNCE}

    asyncio.run(run())


def test_a_complaint_is_tied_by_the_link_alone(tmp_path: Path, host: Host) -> None:
    """Without return paths: the message keeps its sender, and has an unsubscribe link."""
    write_key(tmp_path / "key")
    config = fleet(
        tmp_path,
        host.port,
        tokens={"keys": [{"id": 1, "file": str(tmp_path / "key")}]},
        bounces={"feedback": [FEEDBACK]},
        unsubscribe={"links": [{"url": "https://news.example.com/u"}]},
        ingress={"mail": {"eu": "127.0.0.1:1"}, "http": {"eu": "127.0.0.1:2"}},
    )

    async def run() -> None:
        async with running(config) as it:
            await send(it, messages(1))
            (content,) = host.messages().values()
            link = re.sub(rb"\r\n ", b" ", content.partition(b"\r\n\r\n")[0])
            field = re.search(rb"^List-Unsubscribe: .*$", link, re.MULTILINE | re.IGNORECASE)
            assert field is not None
            report = ARF.replace("Return-Path: <{return_path}>", field[0].decode().strip())
            assert await it.mail(FEEDBACK, report, "feedback@provider.example") == 250
            assert it.listed() == {"user0@example.org": Reason.COMPLAINT}
            assert it.gateway.reports.counts["acted"] == 1

    asyncio.run(run())


def test_a_return_path_is_not_asked_for_deliveries(tmp_path: Path) -> None:
    """The host's report would come to us: instead the submitter is told that the message was relayed."""

    async def run() -> None:
        with Host() as host:
            async with (
                HostileServer(extensions=("DSN",)) as server,
                running(
                    config_of(
                        tmp_path,
                        host,
                        routes=[
                            {"domains": ["sender.example"], "hosts": [f"127.0.0.1:{host.port}"]},
                            {"domains": ["*"], "hosts": [f"127.0.0.1:{server.port}"]},
                        ],
                    )
                ) as it,
            ):
                wishes = [
                    Options(notify=n, orcpt="rfc822;x@y.example") for n in (Notify.SUCCESS, Notify.NEVER, 0)
                ]
                batch = [
                    Message(
                        "a@sender.example", (f"u{i}@example.org",), BODY % i, Stream.MARKETING, options=(w,)
                    )
                    for i, w in enumerate(wishes)
                ]
                await send(it, batch)
                await until(lambda: len(host.envelopes) == 1)
                asked = sorted(c.partition(b"> ")[2] for c in server.commands if c.startswith(b"RCPT"))
                orcpt = b"ORCPT=rfc822;x@y.example"
                assert asked == [b"NOTIFY=FAILURE " + orcpt, b"NOTIFY=FAILURE " + orcpt, orcpt]
                ((to, sender, data),) = host.envelopes
                assert (to, sender) == ("a@sender.example", "")
                assert b"Action: relayed" in data
                assert b"rfc822; u0@example.org" in data

    asyncio.run(run())


def test_a_key_is_changed_while_it_runs(tmp_path: Path, host: Host) -> None:
    """What was signed before the change comes back after it; a region and a gateway never start anew."""
    config = config_of(tmp_path, host)
    config = config.model_copy(update={"tokens": config.tokens.model_copy(update={"reload": 0.05})})

    async def run() -> None:
        async with running(config) as it:
            await send(it, messages(1))
            add_key(tmp_path / "key")
            use_last_key(tmp_path / "key")
            await asyncio.sleep(0.1)
            await send(it, messages(2), b"2" * 16)
            before, *_ = host.envelopes
            paths = [before[1], host.senders()["user1@example.org"]]
            for path in paths:
                text = DSN.format(recipient="x@y.example", status="5.1.1", text="")
                assert await it.mail(path, text) == 250
            assert it.gateway.reports.counts["acted"] == 2
            first, second = (tmp_path / "key").read_text().split()
            now_ms = SteadyClock().wall_ms()
            for path, key, other in ((paths[0], second, first), (paths[1], first, second)):
                local = path.partition("@")[0]
                assert [
                    verify_return_path(
                        TokenKeys([(1, bytes.fromhex(k))]), local, now_ms=now_ms, expire_ms=10**9
                    )
                    is not None
                    for k in (key, other)
                ] == [True, False]

    asyncio.run(run())


@pytest.mark.parametrize("restart", [False, True])
def test_a_submitter_who_asked_is_told_of_a_late_bounce_once(
    tmp_path: Path, host: Host, restart: bool
) -> None:
    config = config_of(tmp_path, host)
    asking = (Options(notify=Notify.FAILURE, ret="FULL", envid="order-17"),)
    batch = [
        Message("shop@sender.example", ("gone@example.org",), BODY % 1, Stream.MARKETING, options=asking),
        Message("shop@sender.example", ("quiet@example.org",), BODY % 2, Stream.MARKETING),
        Message("", ("null@example.org",), BODY % 3, Stream.MARKETING, options=asking),
    ]

    async def bounce(it: Running, paths: dict[str, str]) -> None:
        elsewhere = ("gone@example.org", "forward@example.org")
        for name, named in (elsewhere, *[(name, name) for name in ("gone@example.org", "quiet@example.org")]):
            text = DSN.format(recipient=named, status="5.1.1", text="no such user")
            for _ in range(2):
                assert await it.mail(paths[name], text) == 250
        await until(lambda: len(host.envelopes) >= 4 and not it.spool.notices(10))
        await until(lambda: it.spool.counts()["queued"] == 0)
        assert len(host.envelopes) == 4

    async def first() -> dict[str, str]:
        async with running(config) as it:
            await send(it, batch)
            paths = host.senders()
            if not restart:
                await bounce(it, paths)
            return paths

    async def second(paths: dict[str, str]) -> None:
        async with running(config) as it:
            await bounce(it, paths)

    paths = asyncio.run(first())
    if restart:
        asyncio.run(second(paths))
    recipient, sender, data = host.envelopes[-1]
    assert (recipient, sender) == ("shop@sender.example", "")
    report = read_report(data, sender="")
    assert report.kind is ReportKind.FAILED
    assert report.failures[0].addresses == ("gone@example.org",)
    assert report.failures[0].reply == Reply(550, "5.1.1", "no such user")
    assert b"Original-Envelope-Id: order-17" in data
    assert b"message/rfc822" not in data
    found = audit(tmp_path / "spool" / "eu")
    assert found.is_clean, found.problems


def test_a_complaint_lists_its_recipient_and_counts_for_the_source(tmp_path: Path, host: Host) -> None:

    async def run() -> None:
        async with running(config_of(tmp_path, host)) as it:
            observe = it.node.observe
            told: Counter[str] = Counter()

            async def listen(source: str, summary: bytes) -> bytes:
                told[source] += sum(row.complaints for row in decode_summary(summary).rows)
                return await observe(source, summary)

            it.node.observe = listen  # type: ignore[method-assign]
            await send(it, messages(2))
            path = host.senders()["user1@example.org"]
            for _ in range(2):
                assert await it.mail(FEEDBACK, ARF.format(return_path=path), "fbl@provider.example") == 250
            assert it.listed() == {"user1@example.org": Reason.COMPLAINT}
            (event,) = [event for event in it.events() if event["event"] == "complaint"]
            assert (event["recipient"], event["feedback"]) == ("user1@example.org", "abuse")
            source = it.node.config.sources[event["source"]].name
            await until(lambda: told[source] == 1)

    asyncio.run(run())


@pytest.mark.parametrize("restart", [False, True])
def test_a_report_after_a_restart(tmp_path: Path, host: Host, restart: bool) -> None:
    """To whom a message went is on disk, and so is that its bounce has come."""
    config = config_of(tmp_path, host)

    async def first() -> str:
        async with running(config) as it:
            await send(it, messages(1))
            path = host.senders()["user0@example.org"]
            if not restart:
                return path
            assert await it.mail(path, DSN.format(recipient="x@y.example", status="5.1.1", text="")) == 250
            return path

    async def second(path: str) -> Counter[str]:
        async with running(config) as it:
            assert await it.mail(path, DSN.format(recipient="x@y.example", status="5.1.1", text="")) == 250
            return it.gateway.reports.counts

    counts = asyncio.run(second(asyncio.run(first())))
    assert counts["repeated" if restart else "acted"] == 1


def test_mail_to_postmaster_is_passed_on_once_and_never_bounced(tmp_path: Path, host: Host) -> None:
    raw = b"From: Eve <eve@provider.example>\r\nSubject: your mail loops\r\n\r\n.\r\nhelp: \xc3\xa4\r\n"
    folder = tmp_path / "kept"

    async def run() -> None:
        forward = {"forward": "ops@example.com", "directory": str(folder)}
        async with running(config_of(tmp_path, host, forward)) as it:

            def work() -> None:
                with smtplib.SMTP("127.0.0.1", it.gateway.mail_port, timeout=20) as client:
                    client.sendmail("eve@provider.example", [f"postmaster@{DOMAIN}"], raw, ["BODY=8BITMIME"])

            for _ in range(2):  # the other host has not seen the answer, and repeats
                await asyncio.to_thread(work)
            await until(lambda: it.spool.counts()["queued"] == 0)
            assert it.gateway.postmaster.counts == {"forwarded": 2}
            ((to, sender, data),) = host.envelopes
            assert (to, sender) == ("ops@example.com", "")
            # an automatic answer to it, and it itself as a bounce, are kept; a person's answer is passed on
            id_ = data.partition(b"Message-ID: ")[2].split(b"\r\n")[0].decode()
            answer = f"From: ops@example.com\nIn-Reply-To: {id_}\nSubject: Re\n"
            assert (
                await it.mail(f"postmaster@{DOMAIN}", f"{answer}Auto-Submitted: auto-replied\n\naway") == 250
            )
            assert await it.mail(f"postmaster@{DOMAIN}", data, "list@example.com") == 250
            assert it.gateway.postmaster.counts == {"forwarded": 2, "stored": 2}
            assert await it.mail(f"postmaster@{DOMAIN}", f"{answer}\nthanks", "ops@example.com") == 250
            await until(lambda: len(host.envelopes) == 2)

    asyncio.run(run())
    message = email.message_from_bytes(host.envelopes[0][2], policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    assert message["subject"] == "Mail to postmaster: your mail loops"
    letter, enclosed = message.iter_parts()
    assert "eve@provider.example" in letter.get_content()
    assert enclosed.get_content()["from"] == "Eve <eve@provider.example>"
    assert raw in host.envelopes[0][2]
    assert len(list(folder.iterdir())) == 2

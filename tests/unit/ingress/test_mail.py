"""The mail listener over real sockets: whom it takes mail for, what it does with it, and its bounds."""

import asyncio
import smtplib
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.bounces.signal import Effect, Signal, SignalKind, decode_signal
from engine.bounces.tokens import DAY_MS, TokenKeys
from engine.bounces.unsubscribe import make_token
from engine.config.bounces import BouncesConfig, IngressConfig, PostmasterConfig, ReturnPath
from engine.ingress.mail import MAX_RECIPIENTS, MailListener, client_of
from engine.ingress.postmaster import Postmaster
from engine.ingress.reports import ReportDesk
from engine.values.ids import make_id
from tests.support.certificates import make, write_pair
from tests.support.clock import ManualClock

REPORTS = Path(__file__).parents[1] / "bounces" / "reports"
DOMAIN = "bounce.example.com"
FEEDBACK = "fbl@feedback.example.com"
CONFIG = BouncesConfig(return_paths=(ReturnPath(domain=DOMAIN),), feedback=(FEEDBACK,))
KEYS = TokenKeys([(1, b"k" * 32)])
ID = make_id(2, 77)


class Regions:
    """What a gateway reaches; `effects` by region, an exception for one that is away."""

    def __init__(self, **effects: Effect | Exception) -> None:
        self.effects = effects
        self.signals: list[tuple[str, Signal]] = []

    async def report(self, region: str, signal: bytes) -> str:
        self.signals.append((region, decode_signal(signal)))
        effect = self.effects.get(region, Effect.UNKNOWN)
        if isinstance(effect, Exception):
            raise effect
        return str(effect)

    async def accept(self, region: str, header: bytes, blob: bytes, again: bool) -> bytes:
        raise AssertionError("nothing is passed on here")


class Running:
    def __init__(self, regions: Regions, folder: Path, **ingress: Any) -> None:
        self.clock = ManualClock()
        self.regions = regions
        config = CONFIG.model_copy(update={"postmaster": PostmasterConfig(directory=folder)})
        self.desk = ReportDesk(
            config,
            KEYS,
            regions={1: "eu", 2: "us"},
            port=regions,
            clock=self.clock,
            postmaster=Postmaster(config, name="mx.example.com", streams={}, port=regions, clock=self.clock),
        )
        self.listener = MailListener(self.desk, IngressConfig(**ingress), name="mx.example.com")
        self.port = 0

    def verp(self, message_id: int = ID) -> str:
        return f"{KEYS.sign_return_path(message_id, self.clock.wall_ms())}@{DOMAIN}"

    async def client(self, work: Callable[[smtplib.SMTP], Any]) -> Any:
        def run() -> Any:
            with smtplib.SMTP("127.0.0.1", self.port, timeout=60) as client:
                return work(client)

        return await asyncio.to_thread(run)

    async def all_closed(self) -> None:
        """The last session's end is on its way."""
        async with asyncio.timeout(60):
            while self.listener._open:
                await asyncio.sleep(0.01)

    async def send(self, recipient: str, data: bytes, sender: str = "") -> tuple[int, bytes]:
        """The first answer that is no success, or the last one."""

        def work(client: smtplib.SMTP) -> tuple[int, bytes]:
            client.ehlo()
            for answer in (lambda: client.mail(sender), lambda: client.rcpt(recipient)):
                code, text = answer()
                if code >= 400:
                    return code, text
            return client.data(data)

        answer: tuple[int, bytes] = await self.client(work)
        return answer


@asynccontextmanager
async def listening(
    regions: Regions, folder: Path = Path("/nowhere"), **ingress: Any
) -> AsyncIterator[Running]:
    running = Running(regions, folder, **ingress)
    running.port = await running.listener.start("127.0.0.1", 0)
    try:
        yield running
    finally:
        await running.listener.stop()


def report(name: str) -> bytes:
    return (REPORTS / f"{name}.eml").read_bytes()


def test_a_bounce_reaches_the_region_that_sent_the_message() -> None:
    async def run() -> None:
        async with listening(Regions(us=Effect.ACTED)) as running:
            assert (await running.send(running.verp(), report("postfix-failed")))[0] == 250
            ((region, signal),) = running.regions.signals
            assert (region, signal.kind, signal.message_id) == ("us", SignalKind.BOUNCE, ID)
            assert signal.failures[0].reply.enhanced == "5.1.1"
            assert running.desk.counts == {"failed": 1, "acted": 1}

    asyncio.run(run())


def test_lines_may_be_longer_than_they_should() -> None:
    """What is returned may have come over BDAT, or from a host that does not count."""

    async def run() -> None:
        async with listening(Regions(us=Effect.ACTED)) as running:
            data = report("postfix-failed").rstrip() + b"\r\n" + b"x" * 20_000 + b"\r\n"
            assert (await running.send(running.verp(), data))[0] == 250
            assert len(running.regions.signals) == 1

    asyncio.run(run())


def test_a_complaint_is_tied_by_the_return_path_that_it_encloses() -> None:
    async def run() -> None:
        async with listening(Regions(us=Effect.ACTED)) as running:
            data = report("arf-abuse").replace(
                b"b+" + b"a" * 34 + b"@bounce.example.com", running.verp().encode()
            )
            assert (await running.send(FEEDBACK, data, "feedback@provider.example"))[0] == 250
            # the second return path in it is the sample's own, in capitals: nobody's token
            assert [signal.kind for _, signal in running.regions.signals] == [SignalKind.COMPLAINT]
            assert running.desk.counts == {"complaint": 1, "acted": 1, "forged": 1}

    asyncio.run(run())


ENCLOSING = (
    "From: staff@hotmail.example\r\nSubject: complaint about message from 192.0.2.1\r\n"
    "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: message/rfc822\r\n\r\n"
    "%s\r\nFrom: news@example.com\r\n\r\nhello\r\n--b--\r\n"
)


def link(message_id: int, at_ms: int) -> str:
    token = make_token(
        KEYS, tenant="t", stream=1, address="a@d.example", message_id=message_id, accepted_ms=at_ms
    )
    return f"List-Unsubscribe: <https://news.example.com/u/{token}>"


@pytest.mark.parametrize("tie", ["return path", "link"])
@pytest.mark.parametrize("has_report", [True, False])
def test_a_complaint_is_tied_by_whatever_the_provider_leaves(tie: str, has_report: bool) -> None:
    """The link where it takes return paths out; a message without a report from Microsoft's programme."""

    async def run() -> None:
        async with listening(Regions(us=Effect.ACTED)) as running:
            field = f"Return-Path: {running.verp()}" if tie != "link" else link(ID, running.clock.wall_ms())
            data = ENCLOSING % field
            if has_report:
                report = (
                    "--b\r\nContent-Type: message/feedback-report\r\n\r\nFeedback-Type: abuse\r\n\r\n--b\r\n"
                )
                data = data.replace("--b\r\n", report, 1)
            assert (await running.send(FEEDBACK, data.encode(), "staff@hotmail.example"))[0] == 250
            assert [(s.kind, s.message_id) for _, s in running.regions.signals] == [
                (SignalKind.COMPLAINT, ID)
            ]

    asyncio.run(run())


def test_a_complaint_that_comes_to_the_return_path_is_tied_by_it() -> None:
    data = (
        'Content-Type: multipart/report; report-type=feedback-report; boundary="b"\r\n\r\n--b\r\n'
        "Content-Type: message/feedback-report\r\n\r\nFeedback-Type: abuse\r\n\r\n--b--\r\n"
    )

    async def run() -> None:
        async with listening(Regions(us=Effect.ACTED)) as running:
            assert (await running.send(running.verp(), data.encode(), "fbl@provider.example"))[0] == 250
            assert [(s.kind, s.message_id) for _, s in running.regions.signals] == [
                (SignalKind.COMPLAINT, ID)
            ]

    asyncio.run(run())


@pytest.mark.parametrize("wrong", ["forged", "old", "to a return path"])
def test_an_enclosed_link_that_proves_nothing(wrong: str) -> None:
    async def run() -> None:
        async with listening(Regions(us=Effect.ACTED)) as running:
            field = link(ID, running.clock.wall_ms())
            if wrong == "forged":
                field = field[:-2] + ("A>" if field[-2] != "A" else "B>")
            if wrong == "old":
                running.clock.advance(40 * DAY_MS / 1000)
            recipient = running.verp() if wrong == "to a return path" else FEEDBACK
            assert (await running.send(recipient, (ENCLOSING % field).encode(), "a@d.example"))[0] == 250
            assert running.regions.signals == []

    asyncio.run(run())


@pytest.mark.parametrize(
    ("recipient", "count"),
    [
        ("somebody@example.org", "refused"),
        ("other@feedback.example.com", "refused"),
        (f"root@{DOMAIN}", "forged"),
        ("postmaster@example.org", "refused"),
        ("abuse", "refused"),
        (f"b+{'a' * 34}@{DOMAIN}", "forged"),
    ],
)
def test_mail_for_others_is_refused(recipient: str, count: str) -> None:
    async def run() -> None:
        async with listening(Regions()) as running:
            code, _ = await running.send(recipient, report("postfix-failed"))
            assert code == 550
            assert running.desk.counts == {count: 1}

    asyncio.run(run())


@pytest.mark.parametrize(
    "recipient",
    [
        "postmaster",
        "PostMaster",
        f"postmaster@{DOMAIN}",
        f"Abuse@{DOMAIN.upper()}",
        "postmaster@mx.example.com",
        "abuse@feedback.example.com",
    ],
)
def test_postmaster_and_abuse_are_there(tmp_path: Path, recipient: str) -> None:
    async def run() -> None:
        async with listening(Regions(), tmp_path) as running:
            code, _ = await running.send(recipient, b"Subject: hello\r\n\r\nhelp\r\n", "a@example.org")
            assert code == 250
            (file,) = tmp_path.iterdir()
            assert file.read_bytes() == b"Subject: hello\r\n\r\nhelp\r\n"
            assert file.stat().st_mode & 0o777 == 0o600

    asyncio.run(run())


def test_a_bounce_to_postmaster_too_acts_and_is_kept(tmp_path: Path) -> None:
    async def run() -> None:
        async with listening(Regions(us=Effect.ACTED), tmp_path) as running:

            def work(client: smtplib.SMTP) -> int:
                refused = client.sendmail(
                    "", [running.verp(), f"postmaster@{DOMAIN}", "x@example.org"], report("qmail")
                )
                return len(refused)

            assert await running.client(work) == 1
            assert [signal.kind for _, signal in running.regions.signals] == [SignalKind.BOUNCE]
            assert len(list(tmp_path.iterdir())) == 1

    asyncio.run(run())


@pytest.mark.parametrize(
    "name", ["postfix-delayed", "delivered", "vacation", "out-of-office", "challenge", "arf-not-spam"]
)
def test_what_is_no_bounce_changes_nothing(name: str) -> None:
    async def run() -> None:
        async with listening(Regions(us=Effect.ACTED)) as running:
            assert (await running.send(running.verp(), report(name)))[0] == 250
            assert running.regions.signals == []
            assert running.desk.counts.total() == 1

    asyncio.run(run())


def test_a_return_path_that_is_too_old_does_nothing() -> None:
    async def run() -> None:
        async with listening(Regions(us=Effect.ACTED)) as running:
            old = running.verp()
            running.clock.advance(16 * DAY_MS / 1000)
            assert (await running.send(old, report("postfix-failed")))[0] == 250
            assert running.regions.signals == []
            assert running.desk.counts["expired"] == 1

    asyncio.run(run())


def test_without_the_region_there_is_no_250() -> None:
    async def run() -> None:
        async with listening(Regions(us=ConnectionError("away"))) as running:
            assert (await running.send(running.verp(), report("postfix-failed")))[0] == 451
            # the others were asked, too: one of them may have taken its mail over
            assert [region for region, _ in running.regions.signals] == ["us", "eu"]
            running.regions.effects["eu"] = Effect.ACTED
            assert (await running.send(running.verp(), report("postfix-failed")))[0] == 250

    asyncio.run(run())


def test_a_message_that_no_region_knows_is_counted() -> None:
    async def run() -> None:
        async with listening(Regions()) as running:
            assert (await running.send(running.verp(), report("postfix-failed")))[0] == 250
            assert running.desk.counts["unknown"] == 1

    asyncio.run(run())


def test_a_bug_is_no_success() -> None:
    async def run() -> None:
        async with listening(Regions(us=ZeroDivisionError("bug"))) as running:
            assert (await running.send(running.verp(), report("postfix-failed")))[0] == 451

    asyncio.run(run())


def test_bounds() -> None:
    async def run() -> None:
        async with listening(Regions(), max_message="64KiB", max_per_client=2) as running:
            code, _ = await running.send(running.verp(), b"Subject: x\r\n\r\n" + b"x" * 70 * 1000)
            assert code in (552, 554, 500)
            assert running.regions.signals == []
            streams = [await asyncio.open_connection("127.0.0.1", running.port) for _ in range(3)]
            greetings = [await reader.readline() for reader, _ in streams]
            assert [line[:3] for line in greetings] == [b"220", b"220", b"421"]
            assert b"aiosmtpd" not in greetings[0]
            for _, writer in streams:
                writer.close()
            await running.all_closed()
            assert (await running.send(FEEDBACK, b"x"))[0] == 250
            await running.all_closed()
            assert running.listener._clients == {}

    asyncio.run(run())


def test_a_message_has_so_many_recipients_at_most() -> None:
    async def run() -> None:
        async with listening(Regions()) as running:

            def work(client: smtplib.SMTP) -> list[int]:
                client.ehlo()
                client.mail("")
                return [client.rcpt(running.verp(make_id(2, n + 1)))[0] for n in range(MAX_RECIPIENTS + 1)]

            codes = await running.client(work)
            assert codes == [250] * MAX_RECIPIENTS + [452]

    asyncio.run(run())


def test_a_session_ends_in_time_whatever_the_client_does() -> None:
    async def run() -> None:
        async with listening(Regions(), session_timeout="300ms") as running:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            await reader.readline()
            lines = 0
            try:
                while True:
                    writer.write(b"NOOP\r\n")
                    await writer.drain()
                    if not await reader.readline():
                        break
                    lines += 1
                    await asyncio.sleep(0.02)
            except ConnectionError:
                pass
            writer.close()
            assert lines

    asyncio.run(run())


def test_what_a_stranger_says_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with listening(Regions()) as running:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(b"\x1b[31mhello\r\nMAIL FROM:<\xff>\r\nEHLO\r\nQUIT\r\n")
            await reader.read()
            writer.close()

    asyncio.run(run())
    assert [record.getMessage() for record in caplog.records if record.levelname != "DEBUG"] == []


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1:2:3:4", "2001:db8::/64"),
        ("2001:db8::ffff", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_whose_connections_are_counted_together(address: str, client: str) -> None:
    assert client_of(address) == client


def test_a_broken_handshake_is_not_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    write_pair(make("mx.example.com"), certificate, key)

    async def run() -> None:
        async with listening(Regions(), certificate=certificate, key=key) as running:
            for last_words in (b"", b"MAIL FROM:<>\r\n"):
                reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
                writer.write(b"EHLO x\r\nSTARTTLS\r\n" + last_words)
                async for line in reader:
                    if line.startswith(b"220 Ready"):
                        break
                writer.transport.abort()
            await running.all_closed()

    asyncio.run(run())
    assert [record.getMessage() for record in caplog.records if record.levelname != "DEBUG"] == []


def test_a_sender_that_is_no_text_is_refused() -> None:
    async def run() -> None:
        async with listening(Regions()) as running:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(
                b"EHLO x\r\nMAIL FROM:<\xff\xfe@d.example>\r\nMAIL FROM:<\xc3\xbc@d.example>\r\nQUIT\r\n"
            )
            answers = (await reader.read()).splitlines()
            assert [line[:10] for line in answers[-3:]] == [b"553 5.1.7 ", b"250 2.1.0 ", b"221 Bye"]
            writer.close()

    asyncio.run(run())


def test_starttls_and_a_new_certificate(tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    write_pair(make("mx.example.com"), certificate, key)

    async def run() -> None:
        async with listening(Regions(us=Effect.ACTED), certificate=certificate, key=key) as running:

            def work(client: smtplib.SMTP) -> bytes:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
                client.starttls(context=context)
                assert isinstance(client.sock, ssl.SSLSocket)
                serial = client.sock.getpeercert(True)
                client.ehlo()
                assert not client.has_extn("auth")  # there is nobody to log in
                assert client.docmd("AUTH", "PLAIN AGEAYg==")[0] == 500
                client.mail("")
                client.rcpt(running.verp())
                assert client.data(report("qmail"))[0] == 250
                assert serial is not None
                return serial

            first = await running.client(work)
            write_pair(make("mx.example.com"), certificate, key)
            assert await running.client(work) != first
            certificate.write_bytes(b"half")
            await running.client(work)
            assert running.listener.counts["connections"] == 3
            await running.all_closed()

    asyncio.run(run())

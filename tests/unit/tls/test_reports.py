"""From what pools have counted to the reports of RFC 8460: sums, bounds, restarts, the document, the mail, the rua."""

import asyncio
import email
import gzip
import json
import random
import ssl
from email import policy as email_policy
from pathlib import Path
from typing import Any

import pytest

from engine.config.load import ConfigError
from engine.config.tls import TlsReportsConfig
from engine.routing.answers import Status, TextAnswer
from engine.tls import book as book_module
from engine.tls import tally as tally_module
from engine.tls.book import DAY_MS, ReportBook
from engine.tls.ledger import SAVE_MS, TlsLedger
from engine.tls.policy import (
    ENCRYPT,
    PLAIN,
    Check,
    Fault,
    HostPolicy,
    PolicyKind,
    TlsFault,
    TlsResult,
)
from engine.tls.report import mail_addresses, rua_of
from engine.tls.reporter import SPREAD_S, TlsReporter
from engine.tls.tally import Tally, decode_findings
from engine.values.message import Receipt
from engine.values.options import Flag, Options
from engine.values.submission import decode_submission, encode_receipt
from tests.support.clock import ManualClock
from tests.support.dns_answers import FakeResolver
from tests.support.fleets import fleet

GOOD = TlsResult("TLSv1.3", "TLS_AES_256_GCM_SHA384")
STS = HostPolicy(
    PolicyKind.STS,
    Check.NAME,
    is_testing=True,
    published=("version: STSv1", "mode: testing", "mx: *.example.net", "max_age: 86400"),
)
DANE = HostPolicy(PolicyKind.DANE, Check.DANE, published=("3 1 1 00ff",))
EXPIRED = TlsFault(Fault.EXPIRED, "STARTTLS: certificate not accepted (certificate has expired)")
PLACE = ("mx.example.net", "192.0.2.25", "198.51.100.1")


class FakeSpool:
    """State and events in memory."""

    def __init__(self) -> None:
        self.states: dict[str, bytes] = {}
        self.events: list[tuple[int, str, dict[str, Any]]] = []

    def get_state(self, key: str) -> bytes | None:
        return self.states.get(key)

    def put_state(self, key: str, value: bytes) -> None:
        self.states[key] = value

    def note_events(self, events: Any) -> None:
        self.events += events


def counted() -> Tally:
    tally = Tally()
    for _ in range(3):
        tally.opened("sts.test", STS, *PLACE, GOOD)
    tally.opened("sts.test", STS, *PLACE, TlsResult("TLSv1.2", "X", fault=EXPIRED))
    tally.refused("dane.test", DANE, *PLACE, TlsFault(Fault.INJECTED, "injected"))
    tally.opened("any.test", ENCRYPT, *PLACE, GOOD)
    tally.opened("plain.test", PLAIN, *PLACE, None)
    return tally


def test_equal_findings_are_one_row_and_draining_begins_anew() -> None:
    tally = counted()
    rows = decode_findings(tally.drain())
    assert [count for _, count in rows] == [3, 1, 1, 1, 1]
    assert rows[0][0].domain == "sts.test"
    assert rows[4][0].verified == "plain"
    assert tally.drain() == b""


def test_the_tally_is_bounded_and_loses_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally_module, "MAX_ROWS", 10)
    tally = Tally()
    for n in range(100):
        tally.opened(f"d{n}.test", ENCRYPT, *PLACE, GOOD)
    rows = decode_findings(tally.drain())
    assert len(rows) == 11
    assert sum(count for _, count in rows) == 100


def test_the_book_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book_module, "MAX_DOMAINS", 5)
    monkeypatch.setattr(book_module, "MAX_DETAILS", 3)
    book = ReportBook()
    for n in range(20):
        tally = Tally()
        tally.opened(f"d{n % 7}.test", ENCRYPT, *PLACE, GOOD)
        tally.refused("d0.test", DANE, "mx", f"192.0.2.{n}", "198.51.100.1", EXPIRED)
        for finding, count in decode_findings(tally.drain()):
            book.note(finding, count, 0)
    assert len(book.domains(0)) == 5
    assert book.lost == 5
    (sums,) = [s for p, s in book.domains(0)["d0.test"].items() if p.type == "tlsa"]
    assert (sums.failed, len(sums.failures)) == (20, 3)


def ledger_of(spool: FakeSpool, clock: ManualClock) -> TlsLedger:
    return TlsLedger(spool, clock)


def test_counts_survive_a_restart() -> None:
    spool, clock = FakeSpool(), ManualClock()
    ledger = ledger_of(spool, clock)
    ledger.note(counted().drain())
    ledger.save()
    assert not spool.states, "at most once a minute"
    clock.advance(SAVE_MS / 1000)
    ledger.save()
    again = ledger_of(spool, clock)
    assert again.book.encode() == ledger.book.encode()
    assert again.book.ended_days(clock.wall_ms() + DAY_MS) == [clock.wall_ms() // DAY_MS]
    spool.states = dict.fromkeys(spool.states, b"\x93c\x80\x00")
    assert ledger_of(spool, clock).book.ended_days(2**60) == [], "a later version's state"


def test_events_and_counters() -> None:
    spool = FakeSpool()
    ledger = ledger_of(spool, ManualClock())
    ledger.note(counted().drain())
    ledger.note(counted().drain())
    assert {kind for _, kind, _ in spool.events} == {"tls"}
    fields = spool.events[1][2]
    assert (fields["domain"], fields["fault"], fields["version"]) == (
        "sts.test",
        "certificate-expired",
        "TLSv1.2",
    )
    assert "certificate has expired" in str(fields["text"])
    assert {row["fault"]: row["sessions"] for row in ledger.listing() if row["fault"]} == {
        "certificate-expired": 2,
        "injected-plaintext": 2,
    }
    assert sum(int(str(row["sessions"])) for row in ledger.listing()) == 14


class Bed:
    """A reporter one day after some mail."""

    def __init__(self, folder: Path, context: ssl.SSLContext | None = None, **config: Any) -> None:
        self.spool, self.clock, self.dns = FakeSpool(), ManualClock(), FakeResolver()
        self.ledger = ledger_of(self.spool, self.clock)
        self.ledger.note(counted().drain())
        self.day = self.clock.wall_ms() // DAY_MS
        self.accepted: list[tuple[list[Any], bytes]] = []
        self.folder = folder
        settings = {"sender": "tls@example.com", "organization": "Example", "contact": "ops@example.com"}
        self.reporter = TlsReporter(
            config=TlsReportsConfig(directory=folder, **(settings | config)),
            region="eu",
            streams=frozenset({"marketing", "transactional"}),
            ledger=self.ledger,
            resolver=self.dns,
            accept=self.accept,
            addresses=self.addresses,
            context=context or ssl.create_default_context(),
            clock=self.clock,
            rng=random.Random(1),
        )
        self.ask("sts.test", "mailto:tls@sts.test,mailto:second@sts.test")

    def ask(self, domain: str, rua: str, status: Status = Status.FOUND) -> None:
        text = f"v=TLSRPTv1; rua={rua}"
        self.dns.text_of[f"_smtp._tls.{domain}"] = TextAnswer(status, (text,) if rua else (), 60.0)

    async def accept(self, header: bytes, blob: bytes) -> bytes:
        submission = decode_submission(header, len(blob))
        for item, offset in zip(submission.items, submission.offsets, strict=True):
            self.accepted.append((item, blob[offset : offset + int(str(item[7]))]))
        return encode_receipt(Receipt("eu", tuple((n,) for n in range(len(submission.items))), ()))

    async def addresses(self, host: str) -> list[str]:
        return ["127.0.0.1"] if host.endswith(".test") else []

    def next_day(self) -> int:
        self.clock.advance(DAY_MS / 1000)
        return asyncio.run(self.reporter.round())


def test_nothing_before_the_day_is_over(tmp_path: Path) -> None:
    bed = Bed(tmp_path)
    assert asyncio.run(bed.reporter.round()) == 0
    assert not bed.accepted
    assert bed.next_day() == 1


def test_the_document(tmp_path: Path) -> None:
    bed = Bed(tmp_path)
    assert bed.next_day() == 1
    (file,) = tmp_path.iterdir()
    begin = bed.day * 86_400
    assert file.name == f"example.com!sts.test!{begin}!{begin + 86_399}!eu.json.gz"
    report = json.loads(gzip.decompress(file.read_bytes()))
    assert report["organization-name"] == "Example"
    assert report["contact-info"] == "ops@example.com"
    assert report["date-range"]["end-datetime"].endswith("T23:59:59Z")
    (policy,) = report["policies"]
    assert policy["policy"] == {
        "policy-type": "sts",
        "policy-domain": "sts.test",
        "policy-string": list(STS.published),
        "mx-host": ["*.example.net"],
    }
    assert policy["summary"] == {
        "total-successful-session-count": 3,
        "total-failure-session-count": 1,
    }
    (failure,) = policy["failure-details"]
    assert failure == {
        "result-type": "certificate-expired",
        "sending-mta-ip": "198.51.100.1",
        "receiving-mx-hostname": "mx.example.net",
        "receiving-ip": "192.0.2.25",
        "failed-session-count": 1,
        "failure-reason-code": EXPIRED.text,
    }


def test_the_mail(tmp_path: Path) -> None:
    bed = Bed(tmp_path)
    bed.next_day()
    assert [item[1] for item, _ in bed.accepted] == [["tls@sts.test"], ["second@sts.test"]]
    item, body = bed.accepted[0]
    assert item[0] == "tls@example.com"
    assert bed.clock.wall_ms() <= int(str(item[5])) <= bed.clock.wall_ms() + SPREAD_S * 1000
    assert len({str(item[6]) for item, _ in bed.accepted}) == 2, "one idempotency key per report and address"
    assert b"\n" not in body.replace(b"\r\n", b"")
    assert max(map(len, body.split(b"\r\n"))) <= 998
    mail = email.message_from_bytes(body, policy=email_policy.default)
    assert mail.get_content_type() == "multipart/report"
    assert mail.get_param("report-type") == "tlsrpt"
    assert mail["TLS-Report-Domain"] == "sts.test"
    assert mail["TLS-Required"] == "No"
    assert item[8] == [list(Options(flags=Flag.ANY_TLS).pack())], "a broken policy does not hold it back"
    assert mail["TLS-Report-Submitter"] == "example.com"
    assert mail["Subject"].startswith("Report Domain: sts.test Submitter: example.com Report-ID: <")
    note, attached = mail.iter_parts()
    assert note.get_content_type() == "text/plain"
    assert attached.get_content_type() == "application/tlsrpt+gzip"
    (file,) = tmp_path.iterdir()
    assert attached.get_filename() == file.name
    assert attached.get_content() == file.read_bytes()


def test_made_once_and_forgotten(tmp_path: Path) -> None:
    bed = Bed(tmp_path)
    bed.next_day()
    assert asyncio.run(bed.reporter.round()) == 0
    assert len(bed.accepted) == 2
    assert ledger_of(bed.spool, bed.clock).book.ended_days(2**60) == [], "written at once"


def test_a_failed_look_up_is_tried_again(tmp_path: Path) -> None:
    bed = Bed(tmp_path)
    bed.ask("sts.test", "", Status.FAILED)
    assert bed.next_day() == 0
    bed.ask("sts.test", "mailto:tls@sts.test")
    assert asyncio.run(bed.reporter.round()) == 1
    bed = Bed(tmp_path)
    bed.ask("sts.test", "", Status.FAILED)
    for _ in range(4):
        bed.next_day()
    assert bed.ledger.book.ended_days(bed.clock.wall_ms()) == [], "not for ever"


def test_a_region_that_refuses_keeps_the_report_for_the_next_round(tmp_path: Path) -> None:
    bed = Bed(tmp_path)

    async def full(header: bytes, blob: bytes) -> bytes:
        raise ConnectionError("no room")

    bed.reporter._accept = full
    assert bed.next_day() == 0
    bed.reporter._accept = bed.accept
    assert asyncio.run(bed.reporter.round()) == 1
    assert len(bed.accepted) == 2


def test_without_a_sender_reports_are_only_written(tmp_path: Path) -> None:
    bed = Bed(tmp_path, sender="")
    assert bed.next_day() == 1
    assert len(list(tmp_path.iterdir())) == 1
    assert not bed.accepted


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["v=TLSRPTv1; rua=mailto:a@b.test"], ["mailto:a@b.test"]),
        (["v=TLSRPTv1;rua=mailto:a@b.test, https://b.test/r;"], ["mailto:a@b.test", "https://b.test/r"]),
        (["v=spf1 -all", "v=TLSRPTv1; rua=mailto:a@b.test"], ["mailto:a@b.test"]),
        (["v=TLSRPTv1; rua=mailto:a@b.test", "v=TLSRPTv1; rua=mailto:c@b.test"], []),
        (["v=TLSRPTv2; rua=mailto:a@b.test"], []),
        (["v=TLSRPTv1;"], []),
        (["v=TLSRPTv1; rua=" + ",".join(f"mailto:a{n}@b.test" for n in range(99))], 5),
    ],
)
def test_who_wants_it(texts: list[str], expected: Any) -> None:
    found = rua_of(texts)
    assert (len(found) if isinstance(expected, int) else found) == expected


def test_only_addresses_that_can_be_written_to() -> None:
    uris = [
        "mailto:a@b.test",
        "MAILTO:c@d.test?subject=x",
        "https://x.test",
        "mailto:a%0d%0ab@c.test",
        "mailto:no",
    ]
    assert mail_addresses(uris) == ["a@b.test", "c@d.test"]


def test_the_sender_is_checked() -> None:
    with pytest.raises(ConfigError, match="sender"):
        fleet(tls={"reports": {"sender": "nobody"}})

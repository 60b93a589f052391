"""Mail to postmaster: passed on or kept, within bounds, and never lost after a 250."""

import asyncio
import email
import email.policy
import os
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from engine.config.bounces import BouncesConfig, ReturnPath
from engine.ingress.postmaster import Postmaster
from engine.spool.errors import SpoolFull
from engine.values.message import ItemError, Receipt
from engine.values.stream import Stream
from engine.values.submission import decode_submission, encode_receipt
from tests.support.clock import ManualClock

DOMAIN = "bounce.example.com"
MAIL = b"From: eve@provider.example\r\nSubject: hello\r\n\r\nhelp\r\n"
TO = [f"postmaster@{DOMAIN}"]


class Regions:
    """`answers` by region: a receipt, or what is raised."""

    def __init__(self, **answers: Receipt | Exception) -> None:
        self.answers = answers
        self.asked: list[tuple[str, bytes, bytes, bool]] = []

    async def accept(self, region: str, header: bytes, blob: bytes, again: bool) -> bytes:
        self.asked.append((region, header, blob, again))
        answer = self.answers[region]
        if isinstance(answer, Exception):
            raise answer
        return encode_receipt(answer)


def desk(folder: Path, regions: Regions, **settings: Any) -> tuple[Postmaster, ManualClock]:
    clock = ManualClock()
    config = BouncesConfig.model_validate(
        {"return_paths": [ReturnPath(domain=DOMAIN)], "postmaster": {"directory": folder, **settings}}
    )
    streams = {"eu": Stream.TRANSACTIONAL, "us": Stream.MARKETING}
    return Postmaster(config, name="mx.example.com", streams=streams, port=regions, clock=clock), clock


def take(it: Postmaster, data: bytes = MAIL, sender: str = "eve@provider.example") -> int:
    return asyncio.run(it.take(sender, TO, data)).code


def test_the_next_region_is_asked_when_one_is_away_or_full(tmp_path: Path) -> None:
    for failure in (ConnectionError("away"), TimeoutError(), SpoolFull("disk", 1, 2)):
        regions = Regions(eu=failure, us=Receipt("us", ((7,),)))
        it, _ = desk(tmp_path, regions, forward="ops@example.com")
        assert take(it) == 250
        (first, second) = regions.asked
        assert (first[0], first[3], second[0], second[3]) == ("eu", True, "us", True)
        item = decode_submission(second[1], len(second[2])).items[0]
        assert item[:3] == ["", ["ops@example.com"], int(Stream.MARKETING)]
        assert item[8] == [], "no notification is asked for"


def test_no_region_no_250(tmp_path: Path) -> None:
    it, _ = desk(tmp_path, Regions(eu=ConnectionError(), us=ConnectionError()), forward="ops@example.com")
    assert take(it) == 451
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "receipt",
    [
        Receipt("eu", ((),), (ItemError(0, "body", "9", "1 to 5 bytes"),)),
        Receipt("eu", ((7,),), suppressed=(7,)),
    ],
)
def test_what_cannot_be_sent_is_kept(tmp_path: Path, receipt: Receipt) -> None:
    it, _ = desk(tmp_path, Regions(eu=receipt), forward="ops@example.com")
    assert take(it) == 250
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [MAIL]


def test_bounds_of_the_folder_and_of_an_hour(tmp_path: Path) -> None:
    it, clock = desk(tmp_path, Regions(), max_stored="200B", max_per_hour=5)
    assert [take(it, MAIL + bytes([i])) for i in (65, 65, 66, 67, 68, 69)] == [250, 250, 250, 250, 452, 451]
    assert it.counts == {"stored": 3, "repeated": 1, "full": 1, "too-often": 1}
    clock.advance(720)
    for file in tmp_path.iterdir():
        file.unlink()
    assert [take(it), take(it)] == [250, 451]


def test_what_a_crash_has_left_takes_no_room_for_ever(tmp_path: Path) -> None:
    it, _ = desk(tmp_path, Regions(), max_stored="200B")
    for name in ("old", "new"):
        (tmp_path / f"{name}.1.part").write_bytes(b"x" * 100)
    os.utime(tmp_path / "old.1.part", (1, 1))
    assert take(it) == 250
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".eml", ".part"]


def test_a_folder_that_cannot_be_written_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    it, _ = desk(tmp_path / "file" / "below", Regions())
    assert take(it) == 451


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n",
        b"no header at all",
        b"Subject: =?utf-8?q?x?=\r\n\tBcc: all@example.com\r\nFrom: \xff\x00\r\n\r\nbare\rand\nends",
        b"Subject: \xc3\xa4\nX: y\n\n--=_x--\n.\n\r\n.\r\n",
    ],
)
def test_strange_mail_stays_enclosed(tmp_path: Path, data: bytes) -> None:
    regions = Regions(eu=Receipt("eu", ((7,),)))
    it, _ = desk(tmp_path, regions, forward="ops@example.com")
    assert take(it, data, "eve\r\nx@y") == 250
    body = regions.asked[0][2]
    head = body.partition(b"\r\n\r\n")[0]
    assert head.isascii()
    assert b"\n" not in body.replace(b"\r\n", b"")
    message = email.message_from_bytes(body, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    assert message["bcc"] is None
    assert [part.get_content_type() for part in message.iter_parts()] == ["text/plain", "message/rfc822"]

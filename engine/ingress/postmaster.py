"""Mail to postmaster and abuse: people of other operators, who must be heard (RFC 5321 section 4.5.1, RFC 2142).

It is passed on, enclosed in a message of ours, to the address in `bounces.postmaster`, or kept in a folder. What is
passed on has the null sender and owes no notification, so no bounce of it comes back. What is an automatic answer to
such a message, or one of them returned, is kept in the folder and not passed on again. Bounds: messages per hour, and
the size of the folder; above them the other host is told to try again later. A 250 is given when the message is in a
region's spool or synced in the folder; the same message twice is kept once.
"""

import asyncio
import logging
import os
import re
import time
from collections import Counter
from email.utils import formatdate
from pathlib import Path
from typing import Protocol

from engine.bounces.parts import split_message
from engine.config.bounces import BouncesConfig
from engine.spool.errors import SpoolError
from engine.values.clock import Clock
from engine.values.message import Message
from engine.values.reply import Reply
from engine.values.stream import Stream
from engine.values.submission import batch_key_of, decode_receipt, encode_submission

log = logging.getLogger(__name__)

ROLES = frozenset({"postmaster", "abuse"})
TAKEN = Reply(250, "2.0.0", "taken in")
OFTEN = Reply(451, "4.7.1", "too much mail for postmaster, try again later")
FULL = Reply(452, "4.3.1", "mailbox full, try again later")
LATER = Reply(451, "4.3.0", "not stored, try again later")
MAX_FILES = 10_000
PART = ".part"
PART_KEPT_S = 3600.0
HOUR_NS = 3_600 * 10**9
LOOKED_AT = 256 << 10
MARK = "postmaster."
_OURS = re.compile(r"<postmaster\.[0-9a-f]{32}@")
_LINE = re.compile(rb"\r\n|\r|\n")


class RegionsPort(Protocol):
    """The regions of the fleet, by name."""

    async def accept(self, region: str, header: bytes, blob: bytes, again: bool) -> bytes:
        """Receipt of a batch. ConnectionError, TimeoutError: it does not answer. SpoolError: it cannot take it."""


class Postmaster:
    """See the module docstring. `streams`: regions, this gateway's own first, and the stream of what they pass on."""

    def __init__(
        self,
        config: BouncesConfig,
        *,
        name: str,
        streams: dict[str, Stream],
        port: RegionsPort,
        clock: Clock,
    ) -> None:
        """`name`: the host name in the listener's greeting."""
        self._config = config.postmaster
        self._name = name
        self._domains = config.domains() | {name.lower()}
        self._sender_domain = next((entry.domain for entry in config.return_paths), name)
        self._streams = streams
        self._port = port
        self._clock = clock
        self._left = float(self._config.max_per_hour)
        self._at_ns = clock.monotonic_ns()
        self.counts: Counter[str] = Counter()

    def is_for(self, address: str) -> bool:
        """Whether an address of the listener is this one; `postmaster` alone is, whatever its case."""
        local, at, domain = address.rpartition("@")
        if not at:
            return address.lower() == "postmaster"
        return local.lower() in ROLES and domain.lower() in self._domains

    async def take(self, sender: str, recipients: list[str], data: bytes) -> Reply:
        """The answer to the end of DATA."""
        if not self._may_take():
            self.counts["too-often"] += 1
            return OFTEN
        key = batch_key_of(sender, "\n".join(recipients), data)
        if self._config.forward and self._streams and not _is_ours(sender, data):
            try:
                is_taken = await self._is_passed_on(
                    self._batch(key, self._enclosing(key, sender, recipients, data))
                )
            except (ConnectionError, TimeoutError, SpoolError) as error:
                log.warning("mail to postmaster is not passed on, its sender tries again: %s", error)
                self.counts["no-answer"] += 1
                return LATER
            if is_taken:
                self.counts["forwarded"] += 1
                return TAKEN
        return await asyncio.to_thread(self._keep, key, data)

    def _may_take(self) -> bool:
        """A token bucket that holds an hour's messages."""
        now_ns, most = self._clock.monotonic_ns(), self._config.max_per_hour
        self._left = min(most, self._left + (now_ns - self._at_ns) * most / HOUR_NS)
        self._at_ns = now_ns
        if self._left < 1:
            return False
        self._left -= 1
        return True

    # -- passing on

    async def _is_passed_on(self, batch: dict[str, tuple[bytes, bytes]]) -> bool:
        """Whether a region has taken it; the first that answers decides. Errors as of the port: none answers."""
        failure: Exception = ConnectionError("no region")
        for region, (header, blob) in batch.items():
            try:
                # whoever tries to deliver it again after a restart here may come when other regions live
                answer = await self._port.accept(region, header, blob, True)
            except (ConnectionError, TimeoutError, SpoolError) as error:
                failure = error
                continue
            receipt = decode_receipt(answer)
            if receipt.errors or receipt.suppressed:
                why = receipt.errors[0].message if receipt.errors else "it is on a suppression list"
                log.error("bounces.postmaster.forward: %s: %s", self._config.forward, why)
                return False
            return True
        raise failure

    def _batch(self, key: bytes, body: bytes) -> dict[str, tuple[bytes, bytes]]:
        """By region, what it is asked to accept: each has streams of its own."""
        to = (self._config.forward,)
        return {
            region: encode_submission([Message("", to, body, stream)], key)
            for region, stream in self._streams.items()
        }

    def _enclosing(self, key: bytes, sender: str, recipients: list[str], data: bytes) -> bytes:
        headers = split_message(data).headers
        from_text = _plain(headers.get("from", ""))
        said = _plain(headers.get("subject", ""))[:200]
        boundary = f"=_{key.hex()}"
        while f"--{boundary}".encode() in data:  # whoever knows it cannot end the enclosed message early
            boundary += "_"
        letter = [
            f"To: {', '.join(map(_plain, recipients))}",
            f"From: {from_text}",
            f"Envelope sender: <{_plain(sender)}>",
            "",
            "The message is enclosed as it came.",
        ]
        kind = b"" if data.isascii() else b"Content-Transfer-Encoding: 8bit\r\n"
        head = [
            f"From: Mail system {self._name} <{MARK[:-1]}@{self._sender_domain}>",
            f"To: <{self._config.forward}>",
            f"Subject: Mail to {_plain(recipients[0].partition('@')[0])}: {said}",
            f"Date: {formatdate(self._clock.wall_ms() // 1000)[:-5]}+0000",
            f"Message-ID: <{MARK}{key.hex()}@{self._name}>",
            "Auto-Submitted: auto-generated",
            "MIME-Version: 1.0",
            f'Content-Type: multipart/mixed; boundary="{boundary}"',
            "",
            f"--{boundary}",
            "Content-Type: text/plain; charset=us-ascii",
            "",
            *letter,
            "",
            f"--{boundary}",
            "Content-Type: message/rfc822",
        ]
        return (
            "".join([f"{line}\r\n" for line in head]).encode()
            + kind
            + b"\r\n"
            + _LINE.sub(b"\r\n", data)
            + f"\r\n--{boundary}--\r\n".encode()
        )

    # -- keeping

    def _keep(self, key: bytes, data: bytes) -> Reply:
        """Write a message into the folder; runs in a thread."""
        folder = self._config.directory
        file = folder / f"{key.hex()}.eml"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            sizes = _sizes(folder)
            if file.name in sizes:
                self.counts["repeated"] += 1
                return TAKEN
            if len(sizes) >= MAX_FILES or sum(sizes.values()) + len(data) > self._config.max_stored:
                self.counts["full"] += 1
                log.error("mail to postmaster is refused: %s has no room (bounces.postmaster)", folder)
                return FULL
            _write_synced(file, data)
        except OSError as error:
            self.counts["not-stored"] += 1
            log.error("mail to postmaster is not stored: %s", error)
            return LATER
        self.counts["stored"] += 1
        return TAKEN


def _sizes(folder: Path) -> dict[str, int]:
    """Of the files by name; what a crash has left half written an hour ago is removed."""
    found = {}
    for entry in os.scandir(folder):
        status = entry.stat()
        if entry.name.endswith(PART) and time.time() - status.st_mtime > PART_KEPT_S:
            Path(entry).unlink(missing_ok=True)
        elif entry.is_file():
            found[entry.name] = status.st_size
    return found


def _write_synced(file: Path, data: bytes) -> None:
    """OSError: nothing of it is to be seen."""
    part = file.with_suffix(f".{os.getpid()}{PART}")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())
        part.replace(file)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _is_ours(sender: str, data: bytes) -> bool:
    """Whether it answers, returns or is what this has passed on, by no person's doing."""
    headers = split_message(data).headers
    if _OURS.search(headers.get("message-id", "")):
        return True
    is_automatic = not sender or headers.get("auto-submitted", "no").strip().lower() != "no"
    return is_automatic and _OURS.search(data[:LOOKED_AT].decode("ascii", "replace")) is not None


def _plain(text: str) -> str:
    return "".join([c if " " <= c <= "~" else "?" for c in text])[:500]

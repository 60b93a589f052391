"""Sends the TLS reports of the days that are over (RFC 8460): a file each, and a mail to whom the domain names.

The `rua` of `_smtp._tls.DOMAIN` decides: a domain without that record gets no report. Mail goes through the region's
own accept path, spread over `SPREAD_S` (section 4.1), with an idempotency key per report and address, so that a crash
between acceptance and the note that it is done sends nothing twice. `https` addresses are not served; the file is
there.

What fails, a look-up, the disk, the spool, is tried again in the next round, until the day is `MAX_AGE_DAYS` old.
"""

import asyncio
import hashlib
import logging
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from engine.config.tls import TlsReportsConfig
from engine.routing.answers import Status, TextAnswer
from engine.spool.errors import SpoolError
from engine.tls.book import DAY_MS
from engine.tls.ledger import TlsLedger
from engine.tls.report import Report, Reporter, mail_addresses, make_mail, make_report, rua_of
from engine.values.clock import Clock
from engine.values.message import Message
from engine.values.stream import Stream
from engine.values.submission import decode_receipt, encode_submission

log = logging.getLogger(__name__)

ROUND_S = 600.0
SPREAD_S = 4 * 3600.0
MAX_AGE_DAYS = 3


class ReportResolver(Protocol):
    async def text(self, name: str) -> TextAnswer: ...


class TlsReporter:
    """One per region. `accept` is the region's."""

    def __init__(
        self,
        *,
        config: TlsReportsConfig,
        region: str,
        streams: frozenset[str],
        ledger: TlsLedger,
        resolver: ReportResolver,
        accept: Callable[[bytes, bytes], Awaitable[bytes]],
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._config = config
        self._region = region
        self._stream = next((s for s in Stream if str(s) in streams), Stream.NOTIFICATION)
        self._ledger = ledger
        self._resolver = resolver
        self._accept = accept
        self._clock = clock
        self._rng = rng
        submitter = config.sender.rpartition("@")[2] or "localhost"
        self._reporter = Reporter(
            config.organization or submitter, config.contact or config.sender, submitter
        )

    async def run(self) -> None:
        """Forever, one round every `ROUND_S`."""
        while True:
            await self.round()
            await asyncio.sleep(ROUND_S)

    async def round(self) -> int:
        """Make and send what is due; returns how many reports were made."""
        now_ms = self._clock.wall_ms()
        made = 0
        for day in self._ledger.book.ended_days(now_ms):
            for domain in list(self._ledger.book.domains(day)):
                try:
                    made += await self._one(day, domain)
                except (OSError, SpoolError) as error:
                    log.error("the TLS report for %s waits: %s", domain, error)
                    self._forget_if_old(day, domain)
        self._ledger.save(now=True)
        return made

    async def _one(self, day: int, domain: str) -> bool:
        answer = await self._resolver.text(f"_smtp._tls.{domain}")
        if answer.status is Status.FAILED:
            self._forget_if_old(day, domain)
            return False
        uris = rua_of(answer.texts)
        if uris:
            policies = self._ledger.book.domains(day)[domain]
            report = make_report(self._reporter, self._region, day, domain, policies)
            await asyncio.to_thread(self._write, report)
            if self._config.sender:
                await self._mail(report, mail_addresses(uris))
        self._ledger.forget(day, domain)
        return bool(uris)

    def _forget_if_old(self, day: int, domain: str) -> None:
        if self._clock.wall_ms() // DAY_MS - day > MAX_AGE_DAYS:
            self._ledger.forget(day, domain)

    def _write(self, report: Report) -> None:
        folder = Path(self._config.directory)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = folder / f".{report.file_name}.{os.getpid()}"
        temporary.write_bytes(report.compressed())
        temporary.replace(folder / report.file_name)

    async def _mail(self, report: Report, recipients: list[str]) -> None:
        now_ms = self._clock.wall_ms()
        messages = [
            Message(
                self._config.sender,
                (recipient,),
                make_mail(
                    self._reporter, report, sender=self._config.sender, recipient=recipient, now_ms=now_ms
                ),
                self._stream,
                send_at_ms=now_ms + round(self._rng.random() * SPREAD_S * 1000),
                key=f"tlsrpt/{hashlib.sha256(f'{report.id} {recipient}'.encode()).hexdigest()}",
            )
            for recipient in recipients
        ]
        if not messages:
            return
        batch = hashlib.sha256(f"tlsrpt {report.id}".encode()).digest()[:16]
        receipt = decode_receipt(await self._accept(*encode_submission(messages, batch)))
        for error in receipt.errors:
            log.error("TLS report %s is not mailed: %s", report.id, error)

"""Sends the TLS reports of the days that are over (RFC 8460): a file each, and mail or a POST to whom the domain names.

The `rua` of `_smtp._tls.DOMAIN` decides: a domain without that record gets no report. Mail goes through the region's
own accept path, with an idempotency key per report and address, so that a crash between acceptance and the note that it
is done sends nothing twice; failures of DANE and MTA-STS do not hold it back (section 5.3.1), it is encrypted all the
same. What is posted (engine/tls/report_post.py) has the report's id, by which a receiver knows it if a restart posts it
again. Both are spread over `SPREAD_S` (section 4.1).

What fails, a look-up, the disk, the spool, a POST, is tried again in the next round, until the day is `MAX_AGE_DAYS`
old.
"""

import asyncio
import hashlib
import logging
import os
import random
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from engine.config.tls import TlsReportsConfig
from engine.routing.answers import Status, TextAnswer
from engine.spool.errors import SpoolError
from engine.tls.book import DAY_MS
from engine.tls.ledger import TlsLedger
from engine.tls.report import Report, Reporter, mail_addresses, make_mail, make_report, rua_of
from engine.tls.report_post import Place, PostFailed, places, post_report
from engine.values.clock import Clock
from engine.values.message import Message
from engine.values.options import Flag, Options
from engine.values.stream import Stream
from engine.values.submission import decode_receipt, encode_submission

log = logging.getLogger(__name__)

ROUND_S = 600.0
SPREAD_S = 4 * 3600.0
MAX_AGE_DAYS = 3
POSTS_AT_ONCE = 10
POST_S = 60.0


class ReportResolver(Protocol):
    async def text(self, name: str) -> TextAnswer: ...


@dataclass(slots=True)
class _Posting:
    """What is still to be posted of one day of one domain, whose counts stay in the book meanwhile."""

    places: dict[str, Place]
    due_ms: float
    tries: int = 0


class TlsReporter:
    """One per region. `accept` is the region's, `addresses` those of a stranger's host that may be connected to."""

    def __init__(
        self,
        *,
        config: TlsReportsConfig,
        region: str,
        streams: frozenset[str],
        ledger: TlsLedger,
        resolver: ReportResolver,
        accept: Callable[[bytes, bytes], Awaitable[bytes]],
        addresses: Callable[[str], Awaitable[Sequence[str]]],
        context: ssl.SSLContext,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._config = config
        self._region = region
        self._stream = next((s for s in Stream if str(s) in streams), Stream.NOTIFICATION)
        self._ledger = ledger
        self._resolver = resolver
        self._accept = accept
        self._addresses = addresses
        self._context = context
        self._postings: dict[tuple[int, str], _Posting] = {}
        self.counts: Counter[str] = Counter()
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
        await self._post_due(now_ms)
        for day in self._ledger.book.ended_days(now_ms):
            for domain in list(self._ledger.book.domains(day)):
                if (day, domain) in self._postings:
                    continue
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
                if posts := places(uris):
                    due_ms = self._clock.wall_ms() + self._rng.random() * SPREAD_S * 1000
                    self._postings[day, domain] = _Posting(posts, due_ms)
                    return True
        self._ledger.forget(day, domain)
        return bool(uris)

    async def _post_due(self, now_ms: int) -> None:
        slots = asyncio.Semaphore(POSTS_AT_ONCE)
        due = [(key, posting) for key, posting in self._postings.items() if posting.due_ms <= now_ms]
        await asyncio.gather(*[self._post(day, domain, posting, slots) for (day, domain), posting in due])
        for (day, domain), posting in due:
            if not posting.places:
                self._ledger.forget(day, domain)
            else:
                posting.tries += 1  # section 5.5
                posting.due_ms = now_ms + 1000 * min(ROUND_S * 2**posting.tries, SPREAD_S)
                self._forget_if_old(day, domain)
            if domain not in self._ledger.book.domains(day):
                del self._postings[day, domain]

    async def _post(self, day: int, domain: str, posting: _Posting, slots: asyncio.Semaphore) -> None:
        async with slots:
            policies = self._ledger.book.domains(day).get(domain)
            if policies is None:
                return
            report = make_report(self._reporter, self._region, day, domain, policies)
            data = report.compressed()
            for uri, place in list(posting.places.items()):
                try:
                    addresses = await self._addresses(place.host)
                    await post_report(place, data, addresses, context=self._context, timeout_s=POST_S)
                except (PostFailed, OSError) as error:
                    self.counts["not-posted"] += 1
                    log.warning("TLS report %s is not posted: %s", report.id, error)
                else:
                    self.counts["posted"] += 1
                    del posting.places[uri]

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
                options=(Options(flags=Flag.ANY_TLS),),
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

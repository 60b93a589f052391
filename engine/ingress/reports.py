"""Mail to the bounce and feedback addresses: whom it may be for, and what is done about it.

Accepted are only return paths with an authentic token (bounces), the configured feedback addresses, and postmaster and
abuse (engine/ingress/postmaster.py); anything else is refused at RCPT, so this relays for nobody and answers nobody: no
notification is ever made here, so no bounce is bounced. A message acts only through a token of ours: the return path
that it was sent to, or for a complaint one that it encloses, there or in an unsubscribe link. What is forged, expired,
repeated or says nothing is accepted, counted and forgotten; its sender learns nothing from that. A 250 is given when
the region has the effect on disk, a 451 if it does not answer or the message is not settled yet.
"""

import asyncio
from collections import Counter
from typing import Protocol

from engine.bounces.report import Report, ReportKind, read_report
from engine.bounces.signal import Effect, Signal, SignalKind, encode_signal
from engine.bounces.tokens import ReturnToken, TokenKeys, verify_return_path
from engine.bounces.unsubscribe import verify_token
from engine.config.bounces import BouncesConfig
from engine.ingress.postmaster import Postmaster
from engine.values.clock import Clock
from engine.values.ids import region_of
from engine.values.reply import Reply

OK = Reply(250, "2.0.0", "taken in")
RCPT_OK = Reply(250, "2.1.5", "recipient ok")
NO_SUCH = Reply(550, "5.1.1", "no such address here")
LATER = Reply(451, "4.3.0", "not stored, try again later")
SMALL = 32 << 10


class TooEarly(Exception):
    """The message is still queued: its delivery is not settled, or not known."""


class RegionsPort(Protocol):
    """The regions of the fleet, by name."""

    async def report(self, region: str, signal: bytes) -> str:
        """Effect of a signal on a region. ConnectionError, TimeoutError: it does not answer."""


class ReportDesk:
    """See the module docstring. `regions`: name by number, this gateway's own first."""

    def __init__(
        self,
        config: BouncesConfig,
        keys: TokenKeys,
        *,
        regions: dict[int, str],
        port: RegionsPort,
        clock: Clock,
        postmaster: Postmaster,
    ) -> None:
        self._config = config
        self._keys = keys
        self._regions = regions
        self._port = port
        self._clock = clock
        self._postmaster = postmaster
        self._domains = {entry.domain for entry in config.return_paths}
        self._feedback = {address.lower() for address in config.feedback}
        self.counts: Counter[str] = Counter()

    def recipient(self, address: str) -> Reply:
        """The answer to RCPT."""
        local, _, domain = address.rpartition("@")
        if self._token(local, domain) is not None or address.lower() in self._feedback:
            return RCPT_OK
        if self._postmaster.is_for(address):
            return RCPT_OK
        self.counts["forged" if domain.lower() in self._domains else "refused"] += 1
        return NO_SUCH

    async def message(self, sender: str, recipients: list[str], data: bytes) -> Reply:
        """The answer to the end of DATA."""
        to_people = [
            one
            for one in dict.fromkeys(recipients)
            if self._postmaster.is_for(one) and one.lower() not in self._feedback
        ]
        to_us = [one for one in dict.fromkeys(recipients) if one not in to_people]
        if to_us and (reply := await self._read(sender, to_us, data)).code != OK.code:
            return reply
        return await self._postmaster.take(sender, to_people, data) if to_people else OK

    async def _read(self, sender: str, recipients: list[str], data: bytes) -> Reply:
        if len(data) > SMALL:  # a few milliseconds at most below that
            report = await asyncio.to_thread(read_report, data, sender=sender)
        else:
            report = read_report(data, sender=sender)
        self.counts[str(report.kind)] += 1
        try:
            for recipient in recipients:
                await self._act(recipient, report)
        except (ConnectionError, TimeoutError):
            self.counts["no-answer"] += 1
            return LATER
        except TooEarly:
            return LATER
        return OK

    async def _act(self, recipient: str, report: Report) -> None:
        is_feedback = recipient.lower() in self._feedback
        if is_feedback and report.kind is ReportKind.UNKNOWN and (report.senders or report.links):
            # Microsoft's programme (JMRP) sends the message that was complained of, and no report with it
            await self._complain(report.senders, report)
        elif report.kind is ReportKind.COMPLAINT:
            # a provider may send complaints to the return path as well
            senders = report.senders if is_feedback else (*report.senders, recipient)
            await self._complain(senders, report)
        elif report.kind is ReportKind.FAILED and not is_feedback:
            token = self._checked(recipient)
            if token is not None:
                await self._signal(SignalKind.BOUNCE, token.message_id, report)

    async def _complain(self, senders: tuple[str, ...], report: Report) -> None:
        ids = {token.message_id for sender in senders if (token := self._checked(sender)) is not None}
        ids.update(message_id for link in report.links if (message_id := self._linked(link)))
        if not (senders or ids):
            self.counts["untied"] += 1
        for message_id in sorted(ids):
            await self._signal(SignalKind.COMPLAINT, message_id, report)

    def _token(self, local: str, domain: str) -> ReturnToken | None:
        if domain.lower() not in self._domains:
            return None
        expire_ms = round(self._config.expire * 1000)
        return verify_return_path(self._keys, local, now_ms=self._clock.wall_ms(), expire_ms=expire_ms)

    def _checked(self, address: str) -> ReturnToken | None:
        """A token that may act; others are counted."""
        local, _, domain = address.rpartition("@")
        token = self._token(local, domain)
        if token is None:
            self.counts["forged"] += 1
        elif token.is_expired:
            self.counts["expired"] += 1
        else:
            return token
        return None

    def _linked(self, link: str) -> int:
        """The message whose unsubscribe link this is, 0 for a link that is none of ours or too old."""
        found = verify_token(
            self._keys,
            link.rpartition("/")[2],
            now_ms=self._clock.wall_ms(),
            expire_ms=round(self._config.expire * 1000),
        )
        return 0 if found is None or found.is_expired else found.message_id

    async def _signal(self, kind: SignalKind, message_id: int, report: Report) -> None:
        """Tell the region that has sent the message: the one that accepted it, or one that took its mail over."""
        signal = encode_signal(
            Signal(
                kind,
                message_id,
                self._clock.wall_ms(),
                report.failures,
                report.is_partial,
                report.feedback,
            )
        )
        first = self._regions.get(region_of(message_id))
        names = dict.fromkeys([*([first] if first else []), *self._regions.values()])
        away: Exception | None = None
        for name in names:
            try:
                effect = await self._port.report(name, signal)
            except (ConnectionError, TimeoutError) as error:
                away = error
                continue
            if effect != Effect.UNKNOWN:
                self.counts[effect] += 1
                if effect == Effect.EARLY:
                    raise TooEarly
                return
        if away is not None:  # it may be the one that knows
            raise away
        self.counts[Effect.UNKNOWN] += 1

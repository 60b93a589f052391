"""What comes back about mail that was delivered: late bounces and complaints, once each per message.

Whoever calls has checked that the report is about a message of ours (engine/ingress). The message's ledger word stays
`delivered`: its host did take it. What is added is an event, an entry in the suppression list where the address is gone
or its owner complained, and the notification of a sender who asked for it, all in one transaction, and the count for
the source's reputation. A failure elsewhere (engine/bounces/tie.py) is told and lists nobody.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from engine.bounces.classifier import Classification, Classifier
from engine.bounces.report import Failure
from engine.bounces.signal import Effect, Signal, SignalKind
from engine.bounces.tie import tied
from engine.config.suppression import SuppressionConfig
from engine.region.observer import Observer
from engine.region.tenants import Tenants
from engine.spool import sent
from engine.spool.sent import Sent
from engine.values.ids import format_id
from engine.values.outcome import OutcomeKind, Scope
from engine.values.reply import Reply
from engine.values.stream import Stream
from engine.values.suppression import MAX_NOTE, Level, Reason, Suppression, compared_text, list_of

Event = tuple[int, str, dict[str, Any]]


class SentStore(Protocol):
    """The part of the spool that is used here."""

    def sent(self, message_id: int) -> Sent | None: ...
    def message(self, message_id: int) -> object | None: ...


class LateReports:
    """See the module docstring. `act` is the spool's `report_sent`, awaited."""

    def __init__(
        self,
        *,
        store: SentStore,
        act: Callable[[int, int, Event, Sequence[Suppression], Reply | None], Awaitable[bool]],
        classifier: Classifier,
        config: SuppressionConfig,
        observer: Observer,
        tenants: Tenants,
    ) -> None:
        self._store = store
        self._act = act
        self._classifier = classifier
        self._config = config
        self._observer = observer
        self._tenants = tenants

    async def take(self, signal: Signal) -> Effect:
        """When this returns, the effect is on disk."""
        # asked first: what is settled between the two questions is known to the second
        is_queued = self._store.message(signal.message_id) is not None
        known = self._store.sent(signal.message_id)
        if known is None and is_queued:
            return Effect.EARLY
        if known is None or known.expires_ms <= signal.at_ms:
            return Effect.UNKNOWN
        if signal.kind is SignalKind.COMPLAINT:
            return await self._complaint(signal, known)
        return await self._bounce(signal, known)

    async def _bounce(self, signal: Signal, known: Sent) -> Effect:
        about = tied(known.recipient, signal.failures, is_partial=signal.is_partial)
        if about is None:
            return Effect.IGNORED
        failure, elsewhere = about
        found = self._classifier.classify(OutcomeKind.BOUNCED, Scope.RECIPIENT, failure.reply)
        is_gone = found.hard and found.scope is Scope.RECIPIENT and not elsewhere
        rows = []
        if is_gone:
            level = self._config.level("hard_bounce")
            rows = [_row(known, signal, Reason.HARD_BOUNCE, level, str(failure.reply))]
        meaning = _meaning(failure, found)
        if elsewhere:
            meaning |= {"hard": False, "elsewhere": elsewhere}
        event = (signal.at_ms, "late_bounce", {**_fields(known, signal), **meaning})
        # what happens elsewhere does not stand in for the bounce of the recipient, should that come too
        flag = sent.ELSEWHERE if elsewhere else sent.BOUNCED
        if not await self._act(signal.message_id, flag, event, rows, failure.reply):
            return Effect.REPEATED
        if is_gone:
            self._observer.note_late(known.source, known.site, "bounced", sent_ms=known.delivered_ms)
            self._tenants.note_late(known.tenant, "bounced")
        return Effect.ACTED

    async def _complaint(self, signal: Signal, known: Sent) -> Effect:
        row = _row(known, signal, Reason.COMPLAINT, self._config.level("complaint"), signal.feedback)
        event = (signal.at_ms, "complaint", {**_fields(known, signal), "feedback": signal.feedback})
        if not await self._act(signal.message_id, sent.COMPLAINED, event, [row], None):
            return Effect.REPEATED
        self._observer.note_late(known.source, known.site, "complaints", sent_ms=known.delivered_ms)
        self._tenants.note_late(known.tenant, "complaints")
        return Effect.ACTED


def _fields(known: Sent, signal: Signal) -> dict[str, Any]:
    return {
        "id": format_id(signal.message_id),
        "recipient": known.recipient,
        "stream": str(Stream(known.stream)),
        "tenant": known.tenant,
        "campaign": known.campaign,
        "source": known.source,
        "site": known.site,
        "delivered_ms": known.delivered_ms,
    }


def _meaning(failure: Failure, found: Classification) -> dict[str, Any]:
    code, enhanced, text = failure.reply
    return {
        "code": code,
        "enhanced": enhanced,
        "text": text,
        "category": str(found.category),
        "hard": found.hard,
        "scope": str(found.scope),
    }


def _row(known: Sent, signal: Signal, reason: Reason, level: Level, note: str) -> Suppression:
    tenant, stream = list_of(level, known.tenant, known.stream)
    said = "".join([c if c.isprintable() else " " for c in note])[:MAX_NOTE]
    return Suppression(
        compared_text(known.recipient), tenant, stream, reason, signal.at_ms, signal.message_id, said
    )

"""What an outcome becomes on disk: final, or due again and when; its class; whether its recipient is suppressed.

Nothing is written here: a region hands the settlements to its spool, all of a report in one transaction.
"""

import random
from collections.abc import Callable, Mapping

from engine.bounces.judge import Judge
from engine.config.schema import FleetConfig
from engine.region.retry import RetrySchedule
from engine.region.windows import Windows
from engine.smtp.policy import TLS_STATUSES
from engine.spool.batches import Remember, Settlement
from engine.spool.store import Spool
from engine.values.outcome import Outcome, OutcomeKind, Scope
from engine.values.reply import Reply
from engine.values.stream import Stream

POOL_DIED = "the delivering process ended before it could report"


class Settling:
    """See the module docstring. `site_name`: of a flow of the scheduler."""

    def __init__(
        self,
        *,
        config: FleetConfig,
        spool: Spool,
        windows: Windows,
        site_name: Callable[[int], str],
        judge: Judge,
        retry: Mapping[int, RetrySchedule],
        rng: random.Random,
    ) -> None:
        self._config = config
        self._spool = spool
        self._windows = windows
        self._site_name = site_name
        self._judge = judge
        self._retry = retry
        self._rng = rng
        # a complaint is tied to its message by either
        bounces, links = config.bounces, config.unsubscribe.links
        self._keeps_sent = bool(bounces.return_paths or (bounces.feedback and links))
        self._keep_sent_ms = round(config.bounces.expire * 1000)

    def settlement(
        self, key: bytes, outcome: Outcome, batch_no: int, now_ms: int, *, rerouted: bool = False
    ) -> Settlement:
        """`rerouted`: its source is suspended now, so it goes out at once over another, or waits for free."""
        if outcome.kind is not OutcomeKind.DEFERRED:
            return Settlement(key, outcome, batch_no)
        record = self._spool.message(outcome.id)
        if record is None:
            return Settlement(due_key=key, outcome=outcome, batch_no=batch_no)
        queue = self._windows.get(int.from_bytes(key[:4], "big"))
        stream = queue.stream if queue is not None else int(Stream.MARKETING)
        free = (
            rerouted
            or outcome.scope is Scope.PROVIDER
            or (outcome.possible_duplicate and outcome.reply.code == 0)
        )
        next_due_ms: int | None
        if now_ms >= record.expires_ms:
            next_due_ms = None
        elif rerouted or outcome.reply.text == POOL_DIED:
            next_due_ms = now_ms
        else:
            next_due_ms = self._retry[stream].next_due_ms(
                now_ms=now_ms, attempts=record.attempts + 1, expires_ms=record.expires_ms, rng=self._rng
            )
        give_up_ms = self._tls_give_up_ms(outcome.reply, record.expires_ms, stream)
        if give_up_ms is not None and now_ms >= give_up_ms:
            return Settlement(due_key=key, outcome=_bounced_for_tls(outcome), batch_no=batch_no)
        if next_due_ms is None:
            outcome = outcome._replace(kind=OutcomeKind.EXPIRED)
            return Settlement(due_key=key, outcome=outcome, batch_no=batch_no)
        if give_up_ms is not None:
            next_due_ms = min(next_due_ms, give_up_ms)
        return Settlement(due_key=key, outcome=outcome, batch_no=batch_no, next_due_ms=next_due_ms, free=free)

    def _tls_give_up_ms(self, reply: Reply, expires_ms: int, stream: int) -> int | None:
        """When a message that TLS keeps back is bounced; None if that is not why, or only at its expiry."""
        deadline_s = self._config.tls.deadline
        if deadline_s is None or reply.code or reply.enhanced not in TLS_STATUSES:
            return None
        return expires_ms - self._retry[stream].expire_ms + round(deadline_s * 1000)

    def completed(self, settlement: Settlement) -> Settlement:
        """With what is kept of a delivery, or the class of any other outcome."""
        if settlement.outcome.kind is OutcomeKind.DELIVERED:
            return self._remembered(settlement) if self._keeps_sent else settlement
        return self._classified(settlement)

    def _remembered(self, settlement: Settlement) -> Settlement:
        """A delivery whose bounce or complaint could come back is kept for it."""
        number = int.from_bytes(settlement.due_key[:4], "big")
        _, stream, tenant, _ = self._spool.known_queue(number)
        if not self._may_come_back(tenant, str(Stream(stream))):
            return settlement
        queue = self._windows.get(number)
        is_routed = queue is not None and queue.flow >= 0
        site = self._site_name(queue.flow) if queue is not None and is_routed else ""
        until_ms = settlement.outcome.at_ms + self._keep_sent_ms
        return settlement._replace(remember=Remember(until_ms, site))

    def _may_come_back(self, tenant: str, stream: str) -> bool:
        bounces = self._config.bounces
        if bounces.return_path(tenant, stream) is not None:
            return True
        return bool(bounces.feedback) and self._config.unsubscribe.link(tenant, stream) is not None

    def _classified(self, settlement: Settlement) -> Settlement:
        outcome = settlement.outcome
        if outcome.kind is OutcomeKind.RETURNED:
            return settlement
        found = self._judge.classify(outcome)
        is_gone = outcome.kind is OutcomeKind.BOUNCED and found.hard and found.scope is Scope.RECIPIENT
        return settlement._replace(
            category=str(found.category),
            hard=found.hard,
            scope=str(found.scope),
            suppress=self._config.suppression.level("hard_bounce") if is_gone else None,
        )


def _bounced_for_tls(outcome: Outcome) -> Outcome:
    """The same answer, now final: 4.7.10 becomes 5.7.10."""
    reply = outcome.reply
    final = Reply(0, f"5{reply.enhanced[1:]}", reply.text)
    return outcome._replace(kind=OutcomeKind.BOUNCED, scope=Scope.DOMAIN, reply=final)

"""What an unsubscribe link does: GET shows a page with a button and changes nothing, POST unsubscribes (RFC 8058).

A link scanner that follows every link in a mail uses GET, so it must not unsubscribe anybody. POST needs no cookie and
no content: the token is the whole request. The answer "done" is given when the entry is on a region's disk. A client
that shows tokens that are none of ours is told to slow down; an authentic one is never held up by that, because a
mailbox provider sends its users' requests from few addresses.
"""

import logging
from collections import Counter, OrderedDict
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from engine.bounces.tokens import TokenKeys
from engine.bounces.unsubscribe import Unsubscription, verify_token
from engine.config.suppression import SuppressionConfig
from engine.config.unsubscribe import UnsubscribeConfig
from engine.spool.errors import SpoolError
from engine.values.clock import Clock
from engine.values.suppression import Reason, Suppression, compared_text, encode_rows, list_of

log = logging.getLogger(__name__)

MAX_CLIENTS = 10_000
BAD_TOKENS = 20
BAD_TOKENS_PER_S = 0.2
MAX_UNDER_WAY = 64


class Answer(StrEnum):
    """What the page says."""

    ASK = "ask"
    DONE = "done"
    UNKNOWN = "unknown"
    EXPIRED = "expired"
    SLOWER = "slower"
    LATER = "later"


class RegionsPort(Protocol):
    """The regions of the fleet, by name."""

    async def unsubscribe(self, region: str, rows: bytes) -> int:
        """Have a region list an address and pass that on. ConnectionError, TimeoutError: it does not answer."""


@dataclass(slots=True)
class _Bucket:
    left: float
    at_ns: int


class UnsubscribeDesk:
    """See the module docstring. `regions`: names, this gateway's own first."""

    def __init__(
        self,
        config: UnsubscribeConfig,
        suppression: SuppressionConfig,
        keys: TokenKeys,
        *,
        regions: list[str],
        port: RegionsPort,
        clock: Clock,
    ) -> None:
        self._expire_ms = round(config.expire * 1000)
        self._level = suppression.level("unsubscribe")
        self._keys = keys
        self._regions = regions
        self._port = port
        self._clock = clock
        self._bad: OrderedDict[str, _Bucket] = OrderedDict()
        self._under_way = 0
        self.counts: Counter[str] = Counter()

    def look(self, token: str, client: str) -> tuple[Answer, str]:
        """For GET: what to show, and the address."""
        found = self._check(token, client)
        return (found, "") if isinstance(found, Answer) else (Answer.ASK, found.address)

    async def unsubscribe(self, token: str, client: str) -> tuple[Answer, str]:
        """For POST."""
        found = self._check(token, client)
        if isinstance(found, Answer):
            return found, ""
        if self._under_way >= MAX_UNDER_WAY:
            self.counts["busy"] += 1
            return Answer.LATER, found.address
        self._under_way += 1
        try:
            return await self._act(found), found.address
        finally:
            self._under_way -= 1

    async def _act(self, found: Unsubscription) -> Answer:
        tenant, stream = list_of(self._level, found.tenant, found.stream)
        row = Suppression(
            compared_text(found.address),
            tenant,
            stream,
            Reason.UNSUBSCRIBE,
            self._clock.wall_ms(),
            found.message_id,
        )
        for region in self._regions:  # any of them will do: it passes the entry on
            try:
                changed = await self._port.unsubscribe(region, encode_rows([row]))
            except (ConnectionError, TimeoutError, SpoolError) as error:
                log.warning("unsubscription: region %s does not take it: %s", region, error)
                continue
            self.counts["unsubscribed" if changed else "repeated"] += 1
            return Answer.DONE
        self.counts["no-answer"] += 1
        return Answer.LATER

    def _check(self, token: str, client: str) -> Unsubscription | Answer:
        found = verify_token(self._keys, token, now_ms=self._clock.wall_ms(), expire_ms=self._expire_ms)
        if found is None:
            self.counts["forged"] += 1
            return Answer.UNKNOWN if self._may_err(client) else Answer.SLOWER
        if found.is_expired:
            self.counts["expired"] += 1
            return Answer.EXPIRED
        return found

    def _may_err(self, client: str) -> bool:
        """A token bucket per client; the clients that were not seen for the longest time are forgotten."""
        now_ns = self._clock.monotonic_ns()
        bucket = self._bad.pop(client, None) or _Bucket(BAD_TOKENS, now_ns)
        bucket.left = min(BAD_TOKENS, bucket.left + (now_ns - bucket.at_ns) / 1e9 * BAD_TOKENS_PER_S)
        bucket.at_ns = now_ns
        self._bad[client] = bucket
        if len(self._bad) > MAX_CLIENTS:
            self._bad.popitem(last=False)
        if bucket.left < 1:
            return False
        bucket.left -= 1
        return True

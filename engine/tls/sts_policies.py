"""The MTA-STS policy of a recipient domain, now: DNS record, cache and fetch together (RFC 8461 sections 3, 5.1).

- The TXT record tells whether there is a policy, and its id whether the stored one is still the domain's.
- A policy is fetched when the id is new, and again once a day, or after half of its `max_age`, so that it does not
  run out unnoticed.
- A fetch or look-up that fails changes nothing: a stored policy goes on until its `max_age` is over (section 3.3).
  Without one there is no policy, the failure is reported, and it is tried again after `RETRY_S` at the earliest.
- Mode `none` is no policy; it replaces a stored one, as its domain wishes (section 8.3).

Answers are kept in memory by the TTL of the TXT record, within bounds.
"""

import asyncio
import logging
import sqlite3
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.routing.answers import Status, TextAnswer
from engine.routing.cache import ExpiringCache
from engine.routing.route import HostAnswer
from engine.tls.policy import Fault, TlsFault
from engine.tls.sts import StsInvalid, StsPolicy, parse_policy, record_id
from engine.tls.sts_fetch import FetchFailed, fetch_policy
from engine.tls.sts_store import StoredPolicy, StsStore
from engine.values.clock import Clock

log = logging.getLogger(__name__)

REFRESH_MS = 86_400_000
RETRY_S = 300.0
MIN_KEPT_S, MAX_KEPT_S = 60.0, 3600.0


class TextResolver(Protocol):
    async def text(self, name: str) -> TextAnswer: ...


@dataclass(frozen=True, slots=True)
class StsAnswer:
    """`policy`: to be applied, or None. `fault`: why there is none although the domain announces one."""

    policy: StsPolicy | None = None
    fault: TlsFault | None = None


NO_POLICY = StsAnswer()


class StsPolicies:
    """Policies by domain. Used on one event loop; the store is called in a thread."""

    def __init__(
        self,
        *,
        resolver: TextResolver,
        addresses: Callable[[str], Awaitable[HostAnswer]],
        store: StsStore,
        context: ssl.SSLContext,
        clock: Clock,
        timeout_s: float,
        limit: int,
        port: int = 443,
    ) -> None:
        self._resolver = resolver
        self._addresses = addresses
        self._store = store
        self._context = context
        self._clock = clock
        self._timeout_s = timeout_s
        self._port = port
        self._answers: ExpiringCache[StsAnswer] = ExpiringCache(limit=limit, clock=clock, loader=self._load)

    def cached(self, domain: str) -> StsAnswer | None:
        return self._answers.get(domain)

    async def get(self, domain: str) -> StsAnswer:
        """The policy that holds for a domain (lower case, ASCII)."""
        return await self._answers.fetch(domain)

    async def _load(self, domain: str) -> tuple[StsAnswer, float]:
        now_ms = self._clock.wall_ms()
        stored = await self._stored(domain, now_ms)
        found = await self._resolver.text(f"_mta-sts.{domain}")
        kept_s = min(max(found.ttl_s, MIN_KEPT_S), MAX_KEPT_S)
        fault: TlsFault | None = None
        try:
            id_ = record_id(found.texts) if found.status is Status.FOUND else None
            if id_ is not None and (stored is None or _is_stale(stored, id_, now_ms)):
                stored = await self._fetch(domain, id_)
        except StsInvalid as error:
            fault = TlsFault(Fault.STS_INVALID, f"{domain}: {error}"[:300])
        except FetchFailed as error:
            fault = TlsFault(error.fault, error.text[:300])
        if fault is not None or found.status is Status.FAILED:
            kept_s = RETRY_S
        if stored is None:
            return StsAnswer(fault=fault), kept_s
        left_s = (stored.expires_ms - now_ms) / 1000
        policy = stored.policy
        return StsAnswer(policy if policy.mode != "none" else None, fault), max(
            min(kept_s, left_s), MIN_KEPT_S
        )

    async def _stored(self, domain: str, now_ms: int) -> StoredPolicy | None:
        try:
            return await asyncio.to_thread(self._store.get, domain, now_ms)
        except sqlite3.Error as error:
            # the disk, not the domain: without the store we know only what can be fetched now
            log.error("MTA-STS policy of %s cannot be read: %s", domain, error)
            return None

    async def _fetch(self, domain: str, id_: str) -> StoredPolicy:
        host = f"mta-sts.{domain}"
        answer = await self._addresses(host)
        addresses: Sequence[str] = [address for _, address in answer.addresses]
        if not addresses:
            raise FetchFailed(Fault.STS_FETCH, f"{host}: {answer.reason}")
        body = await fetch_policy(
            domain, addresses, context=self._context, timeout_s=self._timeout_s, port=self._port
        )
        policy = parse_policy(domain, body)
        now_ms = self._clock.wall_ms()
        try:
            return await asyncio.to_thread(self._store.put, policy, id_, now_ms)
        except (sqlite3.Error, OSError) as error:
            log.error("MTA-STS policy of %s cannot be stored: %s", domain, error)
            return StoredPolicy(policy, id_, now_ms, now_ms + policy.max_age_s * 1000)


def _is_stale(stored: StoredPolicy, id_: str, now_ms: int) -> bool:
    refresh_ms = min(REFRESH_MS, stored.policy.max_age_s * 500)
    return stored.id != id_ or now_ms - stored.fetched_ms >= refresh_ms

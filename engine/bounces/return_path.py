"""The envelope sender on the wire: a return path of its own for every message (VERP), where the configuration says so.

A message with the null sender keeps it: it is a notification itself, and a bounce of it must go nowhere (RFC 5321
section 4.5.5). So does mail that no entry of `bounces.return_paths` fits.
"""

from typing import Any, Protocol

from engine.bounces.tokens import TokenKeys
from engine.config.bounces import BouncesConfig, TokensConfig
from engine.values.clock import Clock
from engine.values.stream import Stream


class QueueNames(Protocol):
    """The spool's reader."""

    def queue(self, number: int) -> tuple[str, int, str, str]:
        """Domain, stream, tenant and campaign of a spool queue."""


class ReturnPaths:
    """Callable: record -> envelope sender."""

    def __init__(
        self, bounces: BouncesConfig, tokens: TokensConfig, *, queues: QueueNames, clock: Clock
    ) -> None:
        """Reads the key files if they are needed; KeyFileError."""
        self._bounces = bounces
        self._queues = queues
        self._clock = clock
        self._keys = TokenKeys.read(tokens) if bounces.return_paths else None
        self._domains: dict[tuple[str, int], str] = {}

    def __call__(self, record: Any) -> str:
        sender: str = record.sender
        if self._keys is None or not sender:
            return sender
        _, stream, tenant, _ = self._queues.queue(record.queue)
        domain = self._domain(tenant, stream)
        if not domain:
            return sender
        return f"{self._keys.sign_return_path(record.id, self._clock.wall_ms())}@{domain}"

    def _domain(self, tenant: str, stream: int) -> str:
        found = self._domains.get((tenant, stream))
        if found is None:
            entry = self._bounces.return_path(tenant, str(Stream(stream)))
            if len(self._domains) > 10_000:
                self._domains.clear()
            found = self._domains[tenant, stream] = "" if entry is None else entry.domain
        return found

"""Turns the notifications that are owed into mail of the region's own spool, exactly once each.

The notification is accepted under a key that belongs to its row, and only then is the row dropped: after a crash
between the two it is accepted again, which does nothing. A full spool makes them wait.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from engine.bounces.notification import compose
from engine.spool.batches import AcceptBatch, AcceptItem
from engine.spool.bodies import DamagedBody
from engine.spool.errors import SpoolFull
from engine.spool.notices import Notice
from engine.values.address import parse_address
from engine.values.clock import Clock
from engine.values.options import Flag, Options

log = logging.getLogger(__name__)

LOOK_S = 0.5
FULL_S = 5.0
BATCH = 50


class NoticeStore(Protocol):
    """The part of the spool that is used here."""

    def notices(self, limit: int) -> list[Notice]: ...
    def notice_done(self, key: bytes) -> Any: ...
    def reader(self) -> Any: ...


class Notices:
    """`submit` accepts a batch and sends it on its way. Notifications go out on the most urgent of `streams`."""

    def __init__(
        self,
        store: NoticeStore,
        *,
        submit: Callable[[AcceptBatch], Awaitable[object]],
        expire_ms: dict[int, int],
        streams: frozenset[int],
        reporter: str,
        clock: Clock,
    ) -> None:
        self._store = store
        self._bodies = store.reader()
        self._submit = submit
        self._expire_ms = expire_ms
        self._streams = streams
        self._reporter = reporter
        self._clock = clock

    async def run(self) -> None:
        """Write for ever."""
        while True:
            try:
                written = await self.write()
            except SpoolFull as error:
                log.warning("notifications wait: %s", error)
                await asyncio.sleep(FULL_S)
                continue
            if not written:
                await asyncio.sleep(LOOK_S)

    async def write(self) -> int:
        """Turn what is owed into mail; how many."""
        owed = self._store.notices(BATCH)
        for notice in owed:
            await self._submit(self._batch(notice))
        if owed:
            # done in the order of the spool's commits: the last one tells that all are
            futures = [self._store.notice_done(notice.key) for notice in owed]
            await asyncio.wrap_future(futures[-1])
        return len(owed)

    def _batch(self, notice: Notice) -> AcceptBatch:
        now_ms = self._clock.wall_ms()
        message = compose(notice, self._body(notice), reporter=self._reporter, now_ms=now_ms)
        address = parse_address(notice.sender)
        stream = min(self._streams)
        item = AcceptItem(
            "",
            (address.text,),
            (address.domain,),
            stream,
            notice.tenant,
            "",
            0,
            len(message),
            now_ms,
            now_ms + self._expire_ms[stream],
            # RFC 8689 section 5: it holds the header of a message that must not be seen on the way
            options=(Options(flags=Flag.REQUIRE_TLS),) if notice.options.requires_tls else (),
        )
        return AcceptBatch(notice.batch_key, [item], message)

    def _body(self, notice: Notice) -> bytes | None:
        if not notice.content:  # a bounce that came later
            return None
        try:
            return bytes(self._bodies.body(notice.content))
        except (OSError, DamagedBody) as error:
            log.error("message %016x: the notification goes out without it: %s", notice.message_id, error)
            return None

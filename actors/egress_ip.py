"""EgressIp: the actor that owns one source's record at every site. A shell around engine.reputation.source.

Its state is kept in its region's spool: loaded before the first summary is judged, written after each change.
"""

import asyncio
import os

import msgpack

from actors.ports import NodeServices
from engine.reputation.allowance import decode_summary, encode_allowances
from engine.reputation.source import SourceRecord


class EgressIpActor:
    """See the module docstring."""

    def __init__(self, source: str, services: NodeServices) -> None:
        self._source = source
        self._link = services.region_link()
        self._lock = asyncio.Lock()
        self._record: SourceRecord | None = None

    @property
    def _key(self) -> str:
        return f"source/{self._source}"

    async def _loaded(self) -> SourceRecord:
        async with self._lock:
            if self._record is None:
                state = await self._link.get_state(self._key)
                if state is None:
                    self._record = SourceRecord(self._source)
                else:
                    self._record = SourceRecord.from_state(self._source, msgpack.unpackb(state))
        return self._record

    async def ping(self) -> int:
        return os.getpid()

    async def observe(self, summary: bytes) -> bytes:
        """Judge a region's summary; returns the allowances that follow."""
        record = await self._loaded()
        at_ms, counts = decode_summary(summary)
        allowances = record.observe(at_ms, counts)
        await self._link.put_state(self._key, msgpack.packb(record.to_state()))
        return encode_allowances(allowances)

    async def snapshot(self) -> dict[str, object]:
        return {"source": self._source, "pid": os.getpid(), "sites": (await self._loaded()).to_state()}

"""The spool as other processes of the node see it: read only, nothing held between calls."""

import logging
import struct
from pathlib import Path

import msgpack

from engine.spool.batches import CampaignRecord
from engine.spool.bodies import SegmentReader
from engine.spool.environment import Environment
from engine.spool.queue_names import decode_name
from engine.spool.records import DamagedRecord, Record, decode_record

log = logging.getLogger(__name__)

MAP_LIMIT = 1 << 40
MAX_QUEUES = 65_536  # whose names are kept in memory
ID_LE = struct.Struct("<Q")


class SpoolReader:
    """Reads records, bodies and campaigns of the spool at `path`, which its region has open."""

    def __init__(self, path: str | Path, environment: Environment | None = None) -> None:
        """`environment` is given where the spool is open in this very process: LMDB allows one opening per process."""
        path = Path(path)
        self._is_owner = environment is None
        self._env = environment or Environment(path, map_size=MAP_LIMIT, readonly=True)
        self._bodies = SegmentReader(path / "bodies")
        self._queues: dict[int, tuple[str, int, str, str]] = {}

    def fetch(self, ids: bytes) -> list[Record | str | None]:
        """Records of packed ids (8 bytes each, little endian); None for one that is gone, text for a damaged one."""
        messages = self._env.db["messages"]
        records: list[Record | str | None] = []
        with self._env.read() as txn:
            for (id_,) in ID_LE.iter_unpack(ids):
                stored = txn.get(id_.to_bytes(8, "big"), db=messages)
                try:
                    records.append(None if stored is None else decode_record(id_, stored))
                except DamagedRecord as error:
                    log.error("spool: %s", error)
                    records.append(str(error))
        return records

    def body(self, content: list[int]) -> bytes:
        return self._bodies.read(content)

    def campaign(self, number: int) -> CampaignRecord:
        """Read anew each time: whoever renders keeps what it makes of it."""
        with self._env.read() as txn:
            stored = txn.get(number.to_bytes(4, "big"), db=self._env.db["campaigns"])
        return CampaignRecord(*msgpack.unpackb(stored)[1:])

    def tenant_of(self, record: Record) -> str:
        """The tenant of a record's queue; KeyError if there is no such queue."""
        return self.queue(record.queue)[2]

    def queue(self, number: int) -> tuple[str, int, str, str]:
        """Domain, stream, tenant and campaign of a spool queue; KeyError if there is none, or its name is damaged."""
        row = self._queues.get(number)
        if row is None:
            with self._env.read() as txn:
                stored = txn.get(number.to_bytes(4, "big"), db=self._env.db["queues"])
            try:
                name = decode_name(number, stored)
            except DamagedRecord as error:
                raise KeyError(str(error)) from error
            if len(self._queues) >= MAX_QUEUES:
                self._queues.clear()
            row = self._queues[number] = name
        return row

    def state(self, key: str) -> bytes | None:
        """A value that the region keeps under that key."""
        with self._env.read() as txn:
            value = txn.get(key.encode(), db=self._env.db["state"])
        return None if value is None else bytes(value)

    def close(self) -> None:
        self._bodies.close()
        if self._is_owner:
            self._env.close()

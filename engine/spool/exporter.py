"""What a standby is sent of own messages: whole, with bodies, templates and idempotency keys, or what has changed.

The payloads are what engine/spool/copies.py takes in. Short read transactions, on any thread.
"""

import logging
from typing import Any

from engine.failover.spans import Spans, ids_of, of_ids
from engine.spool.batches import CampaignRecord
from engine.spool.bodies import DamagedBody
from engine.spool.copies import template_digest
from engine.spool.environment import Environment
from engine.spool.hearsay import AdoptedKeys, is_waiting
from engine.spool.queue_names import QueueName
from engine.spool.reader import SpoolReader
from engine.spool.records import DamagedRecord, Record, due_key, pack

KEYS_AT_ONCE = 2000
TOLD_CAMPAIGNS = 4096

Row = list[Any]

log = logging.getLogger(__name__)


class Exporter:
    """Reads own messages for the standby: short read transactions."""

    def __init__(self, env: Environment, reader: SpoolReader, queue_row: Any) -> None:
        self._env = env
        self._reader = reader
        self._queue_row = queue_row
        self._adopted = AdoptedKeys(env)

    def messages(
        self, spans: Spans, keys: list[bytes], told: dict[int, bytes] | None = None
    ) -> tuple[Spans, bytes]:
        """What is queued of these, with bodies, templates, and these idempotency keys; and keys that were adopted with
        them (hearsay.py), with or without anything queued.

        `told`: campaigns whose templates have gone the same way before, with their digests; they go as that now, and
        the others are put in.
        """
        records = self._records(spans)
        blob = bytearray()
        places: dict[tuple[int, int], list[int]] = {}
        campaigns: dict[int, int] = {}
        rows: list[Row] = []
        for record in records:
            try:
                with self._env.read() as txn:
                    name = self._queue_row(txn, record.queue)
            except DamagedRecord as error:
                log.error("spool: message %016x is not copied: %s", record.id, error)
                continue
            content = record.content
            if len(content) == 4:
                place = places.get((content[0], content[1]))
                if place is None:
                    try:
                        body = self._reader.body(content)
                    except (DamagedBody, OSError) as error:
                        log.error("spool: message %016x is not copied: %s", record.id, error)
                        continue
                    place = places[content[0], content[1]] = [len(blob), content[2], content[3]]
                    blob += body
                exported = list(place)
            else:
                exported = [campaigns.setdefault(content[0], len(campaigns)), content[1]]
            rows.append(_row(record, name, exported))
        found: list[tuple[bytes, bytes]] = []
        adopted = []
        with self._env.read() as txn:
            if rows:
                found = self._values(txn, keys)
            for one in self._adopted.touching(txn, spans):
                if is_waiting(txn, self._env.db, one.owner, one.spans):
                    adopted.append((one.key, one.value, self._values(txn, one.others)))
                else:  # it has been withheld perhaps, and is known for good now
                    found += self._values(txn, [one.key, *one.others])
        if not rows and not found:
            return (), b""
        copied = of_ids(row[0] for row in rows)
        templates = [self._template(number, told) for number in campaigns]
        payload = (found, templates, rows, bytes(blob))
        return copied, bytes(pack((*payload, adopted) if adopted else payload))

    def _template(self, number: int, told: dict[int, bytes] | None) -> list[Any] | bytes:
        if told is not None and number in told:
            return told[number]
        fields = _fields_of(self._reader.campaign(number))
        if told is not None:
            if len(told) >= TOLD_CAMPAIGNS:
                told.clear()
            told[number] = template_digest(fields)
        return fields

    def _values(self, txn: Any, keys: list[bytes]) -> list[tuple[bytes, bytes]]:
        """Those that are known."""
        found = [(key, txn.get(key, db=self._env.db["keys"])) for key in keys]
        return [(key, bytes(value)) for key, value in found if value is not None]

    def updates(self, spans: Spans) -> tuple[Spans, bytes]:
        records = self._records(spans)
        rows = [(r.id, r.due_ms, r.attempts, r.flags, r.last) for r in records]
        return of_ids(r.id for r in records), bytes(pack(rows)) if rows else b""

    def keys(self, cursor: bytes) -> tuple[bytes, bytes]:
        """The idempotency keys after `cursor`; payload, next cursor (b"": the end). Not those of unsafe batches, nor of
        adopted ones that are queued (hearsay.py)."""
        found: list[tuple[bytes, bytes]] = []
        last = b""
        with self._env.read() as txn:
            withheld = self._withheld(txn)
            rows = txn.cursor(db=self._env.db["keys"])
            going = rows.set_range(cursor + b"\0" if cursor else b"\0")
            while going and len(found) < KEYS_AT_ONCE:
                last = bytes(rows.key())
                if last not in withheld and txn.get(last, db=self._env.db["unsafe"]) is None:
                    found.append((last, bytes(rows.value())))
                going = rows.next()
        return bytes(pack((found, [], [], b""))), last if going else b""

    def _withheld(self, txn: Any) -> set[bytes]:
        adopted = self._adopted.all(txn)
        queued = [one for one in adopted if is_waiting(txn, self._env.db, one.owner, one.spans)]
        return {key for one in queued for key in (one.key, *one.others)}

    def due_keys(self, spans: Spans) -> list[bytes]:
        """Of those that are there, and whole."""
        return [due_key(r.queue, r.due_ms, r.id) for r in self._records(spans)]

    def _records(self, spans: Spans) -> list[Record]:
        """Those that are there; of a damaged one there can be no copy."""
        packed = b"".join(id_.to_bytes(8, "little") for id_ in ids_of(spans))
        return [record for record in self._reader.fetch(packed) if isinstance(record, Record)]


def _row(record: Record, name: QueueName, content: list[Any]) -> Row:
    options = None if record.options is None else record.options.pack()
    return [
        record.id,
        *name,
        record.due_ms,
        record.attempts,
        record.flags,
        record.accepted_ms,
        record.expires_ms,
        record.sender,
        record.recipient,
        content,
        record.last,
        options,
    ]


def _fields_of(record: CampaignRecord) -> list[Any]:
    return [
        record.campaign,
        record.tenant,
        record.stream,
        record.sender,
        list(record.field_names),
        record.template,
    ]

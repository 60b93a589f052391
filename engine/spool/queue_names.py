"""The spool queues by number, as the table `queues` has them: domain, stream, tenant and campaign.

A row that is damaged or missing holds up no other queue: what waits in its queue is left alone, and the audit tells.
The row is written anew when something is accepted for the same queue (Draft.queue); the messages are sent from the
next start on.
"""

import logging
from collections.abc import Iterator
from typing import Any, TypeAlias

import msgpack

from engine.spool.due_index import DueIndex
from engine.spool.environment import Environment
from engine.spool.records import DamagedRecord

CACHED_QUEUES = 200_000

log = logging.getLogger(__name__)

QueueName: TypeAlias = tuple[str, int, str, str]


def decode_name(number: int, stored: bytes | None) -> QueueName:
    """DamagedRecord: it is damaged, or there is none."""
    try:
        _, domain, stream, tenant, campaign = msgpack.unpackb(stored)
        if (type(domain), type(stream), type(tenant), type(campaign)) == (str, int, str, str):
            return domain, stream, tenant, campaign
    except Exception as error:  # whatever unpacking makes of arbitrary bytes
        raise DamagedRecord(f"the name of queue {number} is damaged or missing: {error!r}") from error
    raise DamagedRecord(f"the name of queue {number} is damaged")


UNNAMED: QueueName = ("", 0, "", "")


class QueueNames:
    """See the module docstring. At most `CACHED_QUEUES` are kept in memory."""

    def __init__(self, env: Environment, due: DueIndex) -> None:
        self._env = env
        self._due = due
        self._rows: dict[int, QueueName] = {}

    def row(self, txn: Any, number: int) -> QueueName:
        """As a transaction sees it. DamagedRecord."""
        row = self._rows.get(number)
        if row is None:
            row = decode_name(number, txn.get(number.to_bytes(4, "big"), db=self._env.db["queues"]))
            if len(self._rows) > CACHED_QUEUES:
                self._rows.clear()
            self._rows[number] = row
        return row

    def __getitem__(self, number: int) -> QueueName:
        """KeyError: it is damaged or missing."""
        row = self._rows.get(number)
        if row is not None:
            return row
        with self._env.read() as txn:
            try:
                return self.row(txn, number)
            except DamagedRecord as error:
                raise KeyError(str(error)) from error

    def known(self, number: int) -> QueueName:
        """`UNNAMED` if it is damaged or missing: for what counts even so."""
        try:
            return self[number]
        except KeyError:
            return UNNAMED

    def all(self) -> Iterator[tuple[int, str, int, str, str, int | None]]:
        """Every spool queue: number, domain, stream, tenant, campaign, first due time (None: empty)."""
        with self._env.read() as txn:
            stored = [(bytes(key), bytes(value)) for key, value in txn.cursor(db=self._env.db["queues"])]
        first = self._due.first_of(int.from_bytes(key, "big") for key, _ in stored)
        for number, (_, value) in zip(first, stored, strict=True):
            try:
                yield number, *decode_name(number, value), first[number]
            except DamagedRecord as error:
                log.error("spool %s: %s", self._env.path, error)

    def waiting(self) -> Iterator[tuple[int, str, int, str, str, int]]:
        """The spool queues that hold messages, as above, with their first due times. The others, as many as there ever
        were domains and campaigns, cost nothing."""
        for number, first in self._due.waiting():
            try:
                row = self[number]
            except KeyError as error:
                log.error("spool %s: messages wait and are not sent: %s", self._env.path, error)
            else:
                yield number, *row, first

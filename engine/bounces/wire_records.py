"""The spool's records as they go out: with the return paths and unsubscribe links that the configuration asks for.

A return path of ours gets the notifications that hosts make. So a host is asked for those of failures, whatever the
submitter wants to hear: what he hears is the region's matter (engine/spool/notices.py).

A pool (engine/delivery) reads through this, so it knows of neither, and both come before the signature. A stored
message that gets header fields has its link behind its content's place, as a fifth element: no other recipient's is
equal.
"""

from dataclasses import replace
from typing import Any, Protocol

from engine.bounces.return_path import ReturnPaths
from engine.bounces.unsubscribe import UnsubscribeLinks, has_own_field, header_fields
from engine.config.schema import FleetConfig
from engine.values.clock import Clock
from engine.values.options import Notify, Options

STORED = 4  # elements of the content of a stored message: segment, offset, length, crc32


class Reader(Protocol):
    """The spool's reader."""

    def fetch(self, ids: bytes) -> list[Any]: ...
    def body(self, content: Any) -> bytes: ...
    def tenant_of(self, record: Any) -> str: ...
    def queue(self, number: int) -> tuple[str, int, str, str]: ...


class WireRecords:
    """See the module docstring. Reads key files when it is made; KeyFileError."""

    def __init__(self, reader: Reader, config: FleetConfig, clock: Clock) -> None:
        self._reader = reader
        self._sender_of = ReturnPaths(config.bounces, config.tokens, queues=reader, clock=clock)
        self.links = UnsubscribeLinks(config.unsubscribe, config.tokens, reader)
        self._changes_nothing = not (config.bounces.return_paths or config.unsubscribe.links)
        self.tenant_of = reader.tenant_of

    def fetch(self, ids: bytes) -> list[Any]:
        """As the reader's: None for a record that is gone, text for one that cannot be read."""
        records = self._reader.fetch(ids)
        if self._changes_nothing:
            return records
        return [self._changed(record) if isinstance(record, tuple) else record for record in records]

    def _changed(self, record: Any) -> Any:
        content = record.content
        if len(content) == STORED and (url := self.links.url(record)):
            content = [*content, url]
        sender = self._sender_of(record)
        options = record.options
        if options is not None and sender != record.sender:
            options = _of_return_path(options)
        return record._replace(sender=sender, content=content, options=options)

    def body(self, content: Any) -> bytes:
        """The bytes of a stored message, with its link if it has none of its own."""
        body = self._reader.body(content[:STORED])
        if len(content) == STORED or has_own_field(body):
            return body
        return header_fields(content[STORED]) + body


def _of_return_path(options: Options) -> Options:
    return replace(options, notify=Notify.FAILURE) if options.notify else options

"""Replies that no rule knows, counted by their wording, for somebody to write rules from.

Two replies have the same wording if they differ only in numbers, addresses and single tokens with digits in them.
Bounded: `MAX_WORDINGS` wordings, the one not seen for the longest time goes first. The table is kept as one value in
the spool's state; after a crash the counts of the last few seconds are missing.
"""

import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import msgpack

from engine.values.reply import Reply

STATE_KEY = "bounces/unknown"
VERSION = 1
MAX_WORDINGS = 500
MAX_WORDING = 200
MAX_SAMPLE = 400
_VARIABLE = re.compile(r"\S*@\S*|\S*\d\S*")


@dataclass(frozen=True, slots=True)
class UnknownReply:
    """One wording: how often, when first and last (unix milliseconds), and the last reply as it came."""

    count: int
    first_ms: int
    last_ms: int
    sample: str


class UnknownReplies:
    """See the module docstring."""

    def __init__(self, stored: bytes | None = None) -> None:
        self._rows: OrderedDict[str, UnknownReply] = OrderedDict()
        self.is_dirty = False
        if stored is not None:
            version, rows = msgpack.unpackb(stored)
            if version == VERSION:
                for wording, *fields in rows[-MAX_WORDINGS:]:
                    self._rows[wording] = UnknownReply(*fields)

    def note(self, reply: Reply, at_ms: int) -> None:
        wording = wording_of(reply)
        row = self._rows.pop(wording, None)
        count, first_ms = (1, at_ms) if row is None else (row.count + 1, row.first_ms)
        self._rows[wording] = UnknownReply(count, first_ms, at_ms, str(reply)[:MAX_SAMPLE])
        if len(self._rows) > MAX_WORDINGS:
            self._rows.popitem(last=False)
        self.is_dirty = True

    def encode(self) -> bytes:
        """The value to store; the table counts as clean from here on."""
        self.is_dirty = False
        rows = [(w, r.count, r.first_ms, r.last_ms, r.sample) for w, r in self._rows.items()]
        return bytes(msgpack.packb((VERSION, rows)))

    def rows(self) -> Sequence[tuple[str, UnknownReply]]:
        """(wording, row), the most frequent first."""
        return sorted(self._rows.items(), key=lambda item: (-item[1].count, item[0]))


def wording_of(reply: Reply) -> str:
    """The code, the status, and the text with `#` for what varies."""
    text = _VARIABLE.sub("#", reply.text[:MAX_SAMPLE])
    return " ".join(str(Reply(reply.code, reply.enhanced, text)).split())[:MAX_WORDING]

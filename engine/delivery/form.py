"""From a stored or rendered message to the bytes that a host gets, before signing and dot-stuffing.

Line ends become CRLF and NULs go (native/mime). A missing Message-ID or Date is added (RFC 6409 section 8), from the
id and the time of acceptance: every attempt sends the same bytes. Lines behind a header that is no header begin the
body, as receivers read it. What has 8-bit octets exists in two forms: as it is, for hosts with 8BITMIME (and SMTPUTF8,
if they stand in the header), and 7-bit (engine/delivery/mend.py). Lines are at most 998 octets in both (RFC 5321
section 4.5.3.1.6). A space between a field's name and its colon, as in mail of the last century, is dropped: verifiers
of signatures do not find such a From.
"""

import re
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from typing import Any, NamedTuple

from engine.campaign.mailboxes import split_mailboxes
from engine.delivery.mend import Unmendable, mend
from engine.smtp.policy import Verdict
from engine.values.address import AddressError, parse_address
from engine.values.outcome import OutcomeKind, Scope
from engine.values.reply import Reply
from native.mime import (
    BODY_8BIT,
    HAS_DATE,
    HAS_MESSAGE_ID,
    HEAD_8BIT,
    LONG_LINE,
    NAME_SPACE,
    canonicalise,
    survey,
)

BOUNCED_HERE = Verdict(OutcomeKind.BOUNCED, Scope.MESSAGE)
DEFERRED_HERE = Verdict(OutcomeKind.DEFERRED, Scope.MESSAGE)

_COMPLETE = HAS_DATE | HAS_MESSAGE_ID
_EIGHT_BIT = HEAD_8BIT | BODY_8BIT
_UNUSUAL = _EIGHT_BIT | LONG_LINE | NAME_SPACE

_FROM = re.compile(rb"^from[ \t]*:((?:[^\r]|\r\n[ \t])*)", re.IGNORECASE | re.MULTILINE)


class WireMessage(NamedTuple):
    """`data` is canonical and not dot-stuffed. `is_shared`: the same for every recipient with equal content. A tuple,
    because one is made per message.

    `has_utf8_header`: a host must offer SMTPUTF8 (RFC 6531). `is_ascii`: every host can take it.
    """

    data: bytes
    is_ascii: bool
    has_utf8_header: bool
    is_shared: bool


@dataclass(frozen=True, slots=True)
class Unsendable:
    """Why a message cannot go out: the outcome of its jobs."""

    verdict: Verdict
    reply: Reply


class Draft(NamedTuple):
    """A message on its way to a WireMessage: the fields that were `added`, and canonical `data`, of which the header
    is the first `head_size` octets and the body begins at `body_start`. `flags` are those of native.mime.survey.
    """

    data: bytes
    added: bytes
    head_size: int
    body_start: int
    flags: int
    is_shared: bool

    @property
    def head(self) -> bytes:
        """Ends with the CRLF of its last field."""
        return self.added + self.data[: self.head_size]

    @property
    def body(self) -> bytes:
        return self.data[self.body_start :]


def draft_of(raw: bytes, record: Any, *, is_rendered: bool) -> Draft:
    """The cheap part, for every message. `is_rendered`: made from a template for one recipient."""
    data = canonicalise(raw, False)
    head_size, body_start, flags = survey(data)
    added = b"" if flags & _COMPLETE == _COMPLETE else _missing(data[:head_size], flags, record)
    return Draft(data, added, head_size, body_start, flags, not (added or is_rendered))


def is_ready(draft: Draft, *, seven_bit: bool) -> bool:
    """Whether `mended` would give it back as it is."""
    flags = draft.flags
    if not flags & _UNUSUAL:
        return True
    if flags & (LONG_LINE | NAME_SPACE) or seven_bit:
        return False
    return not flags & HEAD_8BIT or _is_utf8(draft.head)  # 8 bits that are not UTF-8 could not be announced


def mended(draft: Draft, *, seven_bit: bool) -> Draft | Unsendable:
    """With short lines, names without a space behind them, and 7-bit if asked for.

    Takes long for large messages: not for the event loop.
    """
    if is_ready(draft, seven_bit=seven_bit):
        return draft
    seven_bit = seven_bit or not _is_utf8(draft.head)
    try:
        head, body = mend(draft.head, draft.body, keep_8bit=not seven_bit)
    except Unmendable as error:
        return Unsendable(BOUNCED_HERE, Reply(0, error.enhanced, str(error)))
    data = b"".join((head, b"\r\n", body))
    head_size, body_start, flags = survey(data)
    return Draft(data, b"", head_size, body_start, flags, draft.is_shared)


def finished(draft: Draft, signature: bytes = b"") -> WireMessage:
    data = draft.data
    if draft.body_start != draft.head_size + 2:  # no empty line, or other than the one behind the header
        data = b"".join((signature, draft.added, data[: draft.head_size], b"\r\n", draft.body))
    elif signature or draft.added:
        data = b"".join((signature, draft.added, data))
    flags = draft.flags
    return WireMessage(data, not flags & _EIGHT_BIT, bool(flags & HEAD_8BIT), draft.is_shared)


def _is_utf8(head: bytes) -> bool:
    try:
        head.decode()
    except UnicodeDecodeError:
        return False
    return True


def _missing(head: bytes, flags: int, record: Any) -> bytes:
    added = b""
    if not flags & HAS_DATE:
        added += _date_field(record.accepted_ms // 1000)
    if not flags & HAS_MESSAGE_ID:
        domain = _id_domain(head, record)
        added += f"Message-ID: <{record.id:016x}.{record.accepted_ms:x}@{domain}>\r\n".encode()
    return added


@lru_cache(maxsize=256)
def _date_field(at_s: int) -> bytes:
    """Kept, because messages come by the hundred in a second, and making it costs more than all else here."""
    return f"Date: {formatdate(at_s)[:-5]}+0000\r\n".encode()


def _id_domain(head: bytes, record: Any) -> str:
    """The domain of From, else that of the sender: the same for every attempt, whatever the source."""
    found = _FROM.search(head)
    if found is not None:
        try:
            pairs = split_mailboxes(found[1].replace(b"\r\n", b"").decode("utf-8", "replace"))
            return parse_address(pairs[0][1]).domain
        except (AddressError, IndexError):
            pass  # a field that nobody can read names no domain
    return str(record.sender).rpartition("@")[2] or "localhost"


def unreadable(error: Exception) -> Unsendable:
    """The spool or a template is damaged: not the recipient's fault, so deferred."""
    return Unsendable(DEFERRED_HERE, Reply(0, "4.3.0", f"the message cannot be made: {error}"[:1024]))

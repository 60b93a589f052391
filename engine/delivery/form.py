"""From a stored or rendered message to the bytes that a host gets, before signing and dot-stuffing.

Line ends become CRLF and NULs go (native/mime). A missing Message-ID or Date is added (RFC 6409 section 8), from the
id and the time of acceptance: every attempt sends the same bytes. Lines behind a header that is no header begin the
body, as receivers read it. What has 8-bit octets exists in two forms: as it is, for hosts with 8BITMIME (and SMTPUTF8,
if they stand in the header), and 7-bit (engine/delivery/mend.py). Lines are at most 998 octets in both (RFC 5321
section 4.5.3.1.6).
"""

import re
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

from engine.campaign.headers import has_short_lines
from engine.campaign.mailboxes import split_mailboxes
from engine.delivery.mend import Unmendable, mend
from engine.smtp.policy import Verdict
from engine.values.address import AddressError, parse_address
from engine.values.outcome import OutcomeKind, Scope
from engine.values.reply import Reply
from native.mime import canonicalise

BOUNCED_HERE = Verdict(OutcomeKind.BOUNCED, Scope.MESSAGE)
DEFERRED_HERE = Verdict(OutcomeKind.DEFERRED, Scope.MESSAGE)

_PRESENT = re.compile(rb"^(message-id|date)[ \t]*:", re.IGNORECASE | re.MULTILINE)
_FIELDS = re.compile(rb"(?:[!-9;-~]+[ \t]*:[^\r]*\r\n(?:[ \t][^\r]*\r\n)*)*")
_FROM = re.compile(rb"^from[ \t]*:((?:[^\r]|\r\n[ \t])*)", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class WireMessage:
    """`data` is canonical and not dot-stuffed. `is_shared`: the same for every recipient with equal content.

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


@dataclass(frozen=True, slots=True)
class Draft:
    """A message on its way to a WireMessage. `head` ends with the CRLF of its last field or is empty; between it and
    `body` stands an empty line. `needs_mending`: not fit to be sent as it is.
    """

    head: bytes
    body: bytes
    is_ascii: bool
    is_shared: bool
    needs_mending: bool


def draft_of(raw: bytes, record: Any, *, is_rendered: bool, seven_bit: bool) -> Draft:
    """The cheap part, for every message. `is_rendered`: made from a template, so it lacks nothing."""
    data = canonicalise(raw, False)
    if data.startswith(b"\r\n"):
        head, body = b"", data[2:]
    else:
        end = data.find(b"\r\n\r\n")
        head, body = (data, b"") if end < 0 else (data[: end + 2], data[end + 4 :])
    added = b""
    if not is_rendered:
        matched = _FIELDS.match(head)
        if matched is not None and matched.end() < len(head):
            head, body = head[: matched.end()], data[matched.end() :]
        added = _missing(head, record)
    is_ascii = data.isascii()
    return Draft(
        added + head,
        body,
        is_ascii,
        is_shared=not added and not is_rendered,
        needs_mending=not has_short_lines(data) or (seven_bit and not is_ascii),
    )


def mended(draft: Draft, *, seven_bit: bool) -> Draft | Unsendable:
    """With short lines, and 7-bit if asked for. Takes long for large messages: not for the event loop."""
    if not draft.head.isascii() and not _is_utf8(draft.head):
        seven_bit = True  # nothing could announce it
    if not draft.needs_mending and not (seven_bit and not draft.is_ascii):
        return draft
    try:
        head, body = mend(draft.head, draft.body, keep_8bit=not seven_bit)
    except Unmendable as error:
        return Unsendable(BOUNCED_HERE, Reply(0, error.enhanced, str(error)))
    is_ascii = head.isascii() and body.isascii()
    return Draft(head, body, is_ascii, draft.is_shared, needs_mending=False)


def is_ready(draft: Draft) -> bool:
    """Whether `mended` would give it back as it is."""
    return not draft.needs_mending and (draft.is_ascii or draft.head.isascii() or _is_utf8(draft.head))


def finished(draft: Draft, signature: bytes = b"") -> WireMessage:
    data = b"".join((signature, draft.head, b"\r\n", draft.body))
    return WireMessage(data, draft.is_ascii, not draft.head.isascii(), draft.is_shared)


def _is_utf8(head: bytes) -> bool:
    try:
        head.decode()
    except UnicodeDecodeError:
        return False
    return True


def _missing(head: bytes, record: Any) -> bytes:
    present = {name.lower() for name in _PRESENT.findall(head)}
    added = b""
    if b"date" not in present:
        added += f"Date: {formatdate(record.accepted_ms // 1000)[:-5]}+0000\r\n".encode()
    if b"message-id" not in present:
        domain = _id_domain(head, record)
        added += f"Message-ID: <{record.id:016x}.{record.accepted_ms:x}@{domain}>\r\n".encode()
    return added


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

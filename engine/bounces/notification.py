"""Delivery status notifications that we write (RFC 3464, in the multipart/report of RFC 6522), byte by byte.

With RET=FULL (RFC 3461 section 4.3) a failure returns the whole message up to `MAX_RETURNED`, otherwise its header; of
a message with REQUIRETLS always the header (RFC 8689 section 5).
What comes from a peer's reply or from an address is reduced to printable ASCII, so it can add neither field nor line.
"""

import binascii
import re
from collections.abc import Sequence
from email.utils import formatdate

from engine.spool.notices import Action, Notice
from engine.values.ids import format_id

MAX_RETURNED = 1 << 20
MAX_HEADER = 64 << 10
MAX_TEXT = 600
_SUBJECTS = {
    Action.FAILED: "Undelivered mail",
    Action.DELAYED: "Mail is delayed",
    Action.RELAYED: "Mail was passed on",
}
_LINE = re.compile(rb"\r\n|\r|\n")


def compose(notice: Notice, body: bytes | None, *, reporter: str, now_ms: int) -> bytes:
    """The notification. `body`: the message it is about, None if that cannot be read. `reporter`: our host name."""
    boundary = f"=_{format_id(notice.message_id)}.{notice.at_ms:x}.{notice.action:d}"
    parts = [
        ("text/plain; charset=us-ascii", _letter(notice, reporter)),
        ("message/delivery-status", _status(notice, reporter)),
    ]
    head = (
        f"From: Mail Delivery System <MAILER-DAEMON@{reporter}>\r\n"
        f"To: <{notice.sender}>\r\n"
        f"Subject: {_SUBJECTS[notice.action]}\r\n"
        f"Date: {_date(now_ms)}\r\n"
        f"Message-ID: <{boundary[2:]}@{reporter}>\r\n"
        "Auto-Submitted: auto-replied\r\n"
        "MIME-Version: 1.0\r\n"
        "Content-Type: multipart/report; report-type=delivery-status;\r\n"
        f' boundary="{boundary}"\r\n'
    ).encode()
    entities = [f"Content-Type: {kind}\r\n\r\n".encode() + content for kind, content in parts]
    if body is not None:
        entities.append(_returned(notice, body))
    mark = f"--{boundary}".encode()
    return (
        head + b"".join(b"\r\n" + mark + b"\r\n" + entity for entity in entities) + b"\r\n" + mark + b"--\r\n"
    )


def _letter(notice: Notice, reporter: str) -> bytes:
    to = _plain(notice.recipient)
    if notice.action is Action.FAILED:
        told = [f"Your message could not be delivered to <{to}>.", "It will not be tried again."]
    elif notice.action is Action.RELAYED:
        told = [
            f"Your message for <{to}> was passed on.",
            "The host that took it does not report deliveries: you will hear only of a failure.",
        ]
    else:
        told = [
            f"Your message could not be delivered to <{to}> yet.",
            f"It is tried until {_date(notice.expires_ms)}; you need not send it again.",
        ]
    where = f"{_plain(notice.host)} said" if notice.host and notice.reply.code else "The reason"
    lines = [f"This is the mail system at {reporter}.", "", *told, "", f"{where}:", f"  {_said(notice)}", ""]
    return _crlf(lines)


def _status(notice: Notice, reporter: str) -> bytes:
    """The machine-readable part, RFC 3464 section 2."""
    options = notice.options
    message = [f"Reporting-MTA: dns; {reporter}"]
    if options.envid:
        message.insert(0, f"Original-Envelope-Id: {_plain(options.envid)}")
    message.append(f"Arrival-Date: {_date(notice.accepted_ms)}")
    recipient = []
    if options.orcpt:
        kind, _, address = options.orcpt.partition(";")
        recipient.append(f"Original-Recipient: {_plain(kind)}; {_plain(address)}")
    recipient += [
        f"Final-Recipient: {_address(notice.recipient)}",
        f"Action: {notice.action}",
        f"Status: {status_of(notice)}",
    ]
    if notice.host:
        recipient.append(f"Remote-MTA: dns; {_plain(notice.host)}")
    if notice.action is Action.RELAYED:
        pass  # a diagnostic is of a failure or a delay (RFC 3464 section 2.3.6)
    elif notice.reply.code:
        recipient.append(f"Diagnostic-Code: smtp; {_said(notice)}")
    elif notice.reply.text:
        recipient.append(f"Diagnostic-Code: x-sendfleet; {_said(notice)}")
    recipient.append(f"Last-Attempt-Date: {_date(notice.at_ms)}")
    if notice.action is Action.DELAYED:
        recipient.append(f"Will-Retry-Until: {_date(notice.expires_ms)}")
    return _crlf([*message, "", *recipient])


def status_of(notice: Notice) -> str:
    """An enhanced status of the class that the action needs (RFC 3464 section 2.3.4)."""
    enhanced, code = notice.reply.enhanced, notice.reply.code
    if notice.action is Action.DELAYED:
        return enhanced if enhanced.startswith("4.") else "4.0.0"
    if notice.action is Action.RELAYED:
        return enhanced if enhanced.startswith("2.") else "2.0.0"
    if enhanced.startswith(("4.", "5.")):
        return enhanced
    return "4.4.7" if 400 <= code < 500 else "5.0.0"


def _returned(notice: Notice, body: bytes) -> bytes:
    wants_full = notice.options.ret == "FULL" and not notice.options.requires_tls
    if wants_full and notice.action is Action.FAILED and len(body) <= MAX_RETURNED:
        encoding = b"" if body.isascii() else b"Content-Transfer-Encoding: 8bit\r\n"
        return b"Content-Type: message/rfc822\r\n" + encoding + b"\r\n" + _LINE.sub(b"\r\n", body)
    text = _LINE.sub(b"\n", body[:MAX_HEADER])
    header = text.partition(b"\n\n")[0].strip(b"\n") + b"\n"
    encoded = binascii.b2a_qp(header, istext=True).replace(b"\n", b"\r\n")
    return (
        b"Content-Type: text/rfc822-headers\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n" + encoded
    )


def _said(notice: Notice) -> str:
    return _plain(str(notice.reply))[:MAX_TEXT] or "no reason was given"


def _address(address: str) -> str:
    """RFC 3464 section 2.3.2; an address that is not ASCII in the form of RFC 6533 section 3."""
    if address.isascii():
        return f"rfc822; {_plain(address)}"
    return "utf-8; " + "".join([c if " " < c <= "~" and c != "\\" else f"\\x{{{ord(c):X}}}" for c in address])


def _plain(text: str) -> str:
    return "".join([c if " " <= c <= "~" else "?" for c in text])


def _date(at_ms: int) -> str:
    return formatdate(at_ms // 1000)[:-5] + "+0000"


def _crlf(lines: Sequence[str]) -> bytes:
    return "".join([f"{line}\r\n" for line in lines]).encode("ascii", "replace")

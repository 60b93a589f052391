"""The syntax of commands and replies that a sink connection needs, without state.

RFC 5321 section 4.1 (paths and parameters), RFC 6531 (internationalised addresses), and the header field that
identifies a message.
"""

import re
from dataclasses import dataclass

from engine.sink.personality import Personality

_PATH = rb'<((?:"(?:[^"\\]|\\.)*"|[^<>"])*)>(?: (.*))?'
_MAIL = re.compile(rb"FROM: ?" + _PATH, re.IGNORECASE | re.DOTALL)
_RCPT = re.compile(rb"TO: ?" + _PATH, re.IGNORECASE | re.DOTALL)
_MESSAGE_ID = re.compile(rb"^Message-ID:\s*(.*?)\s*$", re.IGNORECASE | re.MULTILINE)
_SENDFLEET_ID = re.compile(rb"^X-Sendfleet-ID:\s*(.*?)\s*$", re.IGNORECASE | re.MULTILINE)

_MAIL_PARAMETERS = {b"SIZE", b"BODY", b"SMTPUTF8", b"RET", b"ENVID", b"AUTH"}
_RCPT_PARAMETERS = {b"NOTIFY", b"ORCPT"}


@dataclass(frozen=True, slots=True)
class Mail:
    """A MAIL command that is well formed and asks for nothing that was not offered."""

    sender: str
    utf8: bool
    body_8bit: bool


def parse_mail(argument: bytes, offer: Personality) -> Mail | str:
    """The command, or the reply that refuses it."""
    match = _MAIL.fullmatch(argument)
    if match is None:
        return "501 5.5.4 Syntax: MAIL FROM:<address>"
    utf8 = body_8bit = False
    for word in match[2].split() if match[2] else ():
        key, _, value = word.partition(b"=")
        key = key.upper()
        if key not in _MAIL_PARAMETERS:
            return "555 5.5.4 Unsupported MAIL parameter"
        if key == b"SIZE" and value.isdigit() and len(value) <= 20 and int(value) > offer.size:
            return "552 5.3.4 Message size exceeds the limit"
        if key == b"SMTPUTF8":
            if not offer.smtputf8:
                return "555 5.5.4 SMTPUTF8 is not offered"
            utf8 = True
        if key == b"BODY" and value.upper() == b"8BITMIME":
            if not offer.eightbitmime:
                return "555 5.5.4 8BITMIME is not offered"
            body_8bit = True
    sender = _decode(match[1], utf8=utf8)
    if sender is None:
        return "553 5.6.7 Non-ASCII address without SMTPUTF8"
    return Mail(sender, utf8, body_8bit)


def parse_rcpt(argument: bytes, *, utf8: bool) -> tuple[str, str]:
    """(address, "") of a RCPT command, or ("", the reply that refuses it)."""
    match = _RCPT.fullmatch(argument)
    if match is None or b"@" not in match[1]:
        return "", "501 5.5.4 Syntax: RCPT TO:<address>"
    for word in match[2].split() if match[2] else ():
        if word.partition(b"=")[0].upper() not in _RCPT_PARAMETERS:
            return "", "555 5.5.4 Unsupported RCPT parameter"
    recipient = _decode(match[1], utf8=utf8)
    if recipient is None:
        return "", "553 5.6.7 Non-ASCII address without SMTPUTF8"
    return recipient, ""


def _decode(raw: bytes, *, utf8: bool) -> str | None:
    if raw.isascii():
        return raw.decode("ascii")
    if not utf8:
        return None
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return None


def ehlo_reply(offer: Personality, *, starttls: bool) -> str:
    """The lines of the reply to EHLO."""
    words = [
        offer.hostname,
        f"SIZE {offer.size}",
        *(["PIPELINING"] if offer.pipelining else []),
        *(["CHUNKING"] if offer.chunking else []),
        *(["8BITMIME"] if offer.eightbitmime else []),
        *(["SMTPUTF8"] if offer.smtputf8 else []),
        *(["STARTTLS"] if starttls else []),
        "ENHANCEDSTATUSCODES",
    ]
    return "\r\n".join([*(f"250-{word}" for word in words[:-1]), f"250 {words[-1]}"])


def message_id(body: bytes | bytearray) -> str:
    """X-Sendfleet-ID if the header has one, else Message-ID, else ""."""
    end = body.find(b"\r\n\r\n")
    header = bytes(body if end < 0 else body[: end + 2])
    match = _SENDFLEET_ID.search(header) or _MESSAGE_ID.search(header)
    return match[1].decode("utf-8", "replace") if match is not None else ""

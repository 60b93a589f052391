"""Messages that exist already: .eml files, and directories of them.

The envelope is what the caller gives, else it comes from the message's own fields: the sender from Return-
Path, Sender or From, the recipients from To, Cc and Bcc. Bcc is taken out of what is sent (RFC 5322 section
3.6.3); a missing Date or Message-ID is added (RFC 6409 section 8), from the file's time and content, so that
the same file gives the same bytes again. Line ends become CRLF. Nothing else is changed.

Sending is idempotent: the key of a message is the digest of campaign, envelope and content, good for seven
days.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from stat import S_ISREG

from engine.campaign.mailboxes import split_mailboxes
from engine.values.address import AddressError, parse_address
from engine.values.message import Message
from engine.values.stream import Stream
from native.mime import canonicalise

SUFFIX = ".eml"
MAX_FILE_BYTES = 50 << 20
_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:(.*?)\r\n(?![ \t])", re.DOTALL)


class EmlError(ValueError):
    """A file cannot be sent; the message says why."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(path, message)
        self.path = path
        self.message = message

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


@dataclass(frozen=True, slots=True)
class EmlOptions:
    """`sender` None and no recipients: taken from the message. `campaign` is part of the idempotency key."""

    sender: str | None = None
    recipients: tuple[str, ...] = ()
    stream: Stream = Stream.TRANSACTIONAL
    tenant: str = "default"
    campaign: str = ""


def find_eml(paths: Iterable[Path]) -> Iterator[Path]:
    """The files given, and the *.eml below the directories given, in the order of names."""
    for path in paths:
        if path.is_dir():
            yield from sorted(found for found in path.rglob(f"*{SUFFIX}") if found.is_file())
        else:
            yield path


def read_eml(path: Path, options: EmlOptions) -> Message:
    """The file as a message to submit; raises EmlError."""
    try:
        stat = path.stat()
        if not S_ISREG(stat.st_mode):
            raise EmlError(path, "allowed is a file: a pipe cannot be sent again")
        if stat.st_size > MAX_FILE_BYTES:
            raise EmlError(path, f"{stat.st_size} bytes; allowed are {MAX_FILE_BYTES}")
        data = canonicalise(path.read_bytes(), False)
    except OSError as error:
        raise EmlError(path, f"cannot be read: {error.strerror}") from error
    head, separator, body = data.partition(b"\r\n\r\n")
    if not separator:
        head = head.removesuffix(b"\r\n")
    fields = _fields(path, head + b"\r\n")
    try:
        sender = options.sender if options.sender is not None else _sender(fields)
        sender = parse_address(sender).text if sender else ""
        given = options.recipients or tuple(_addresses(fields, b"to", b"cc", b"bcc"))
        recipients = tuple(dict.fromkeys(parse_address(address).text for address in given))
    except AddressError as error:
        raise EmlError(path, f"envelope: {error}") from None
    if not recipients:
        raise EmlError(path, "no recipient: neither To, Cc nor Bcc has an address, and none was given")
    kept = b"".join(raw for name, _, raw in fields if name != b"bcc")
    content = kept + _missing(fields, sender, data, stat.st_mtime) + b"\r\n" + body
    return Message(
        sender=sender,
        recipients=recipients,
        body=content,
        stream=options.stream,
        tenant=options.tenant,
        campaign=options.campaign,
        key=_key(options.campaign, sender, recipients, data),
    )


def _fields(path: Path, head: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """(lower-case name, unfolded value, the field as it stands), and nothing between them."""
    fields = []
    position = 0
    while position < len(head):
        match = _FIELD.match(head, position)
        if match is None:
            line = head[position : position + 60].split(b"\r\n")[0]
            raise EmlError(path, f"not a message: {line.decode('ascii', 'replace')!r} is no header field")
        fields.append((match[1].lower(), match[2].replace(b"\r\n", b"").strip(), match[0]))
        position = match.end()
    return fields


def _addresses(fields: Sequence[tuple[bytes, bytes, bytes]], *names: bytes) -> list[str]:
    values = [value.decode("utf-8", "replace") for name, value, _ in fields if name in names]
    return [address for value in values for _, address in split_mailboxes(value)]


def _sender(fields: Sequence[tuple[bytes, bytes, bytes]]) -> str:
    for name, value, _ in fields:
        if name == b"return-path":
            return value.decode("utf-8", "replace").strip("<> ")
    for field in (b"sender", b"from"):
        found = _addresses(fields, field)
        if found:
            return found[0]
    raise AddressError("no sender: neither Return-Path, Sender nor From has an address, and none was given")


def _missing(
    fields: Sequence[tuple[bytes, bytes, bytes]], sender: str, data: bytes, modified_s: float
) -> bytes:
    names = {name for name, _, _ in fields}
    added = b""
    if b"date" not in names:
        added += f"Date: {formatdate(int(modified_s))}\r\n".encode()
    if b"message-id" not in names:
        domain = parse_address(sender).domain if sender else "localhost"
        added += f"Message-ID: <{hashlib.sha256(data).hexdigest()[:32]}@{domain}>\r\n".encode()
    return added


def _key(campaign: str, sender: str, recipients: Sequence[str], data: bytes) -> str:
    digest = hashlib.sha256()
    for part in (campaign, sender, *recipients):
        digest.update(part.encode() + b"\0")
    digest.update(data)
    return f"eml:{digest.hexdigest()}"

"""Attachments of a campaign as MIME parts (RFC 2045, RFC 2183): encoded once, the same in every message.

Files to be kept, and those that the HTML part shows by `cid:` (RFC 2392). All are base64. Refused: what cannot be
base64 (messages, multiparts: RFC 2046 section 5), names with control characters, more than MAX_BYTES together.
"""

import binascii
import re
from collections.abc import Sequence
from typing import Final

from engine.campaign.headers import CONTROLS, parameters_field
from engine.values.message import Attachment

MAX_BYTES: Final = 10 << 20  # before encoding: base64 makes 13.7 MiB, and many hosts take no more than 20 MB
MAX_NAME: Final = 255
_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")
_CONTENT_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?(?:@[A-Za-z0-9.-]{1,64})?")
_LINE = 57  # octets in a line of 76 characters


class RenderError(ValueError):
    """A template is wrong, or does not fit the fields. `part` is from, subject, text, html,
    headers.NAME or attachments[NUMBER]."""

    def __init__(self, part: str, message: str) -> None:
        super().__init__(part, message)
        self.part = part
        self.message = message

    def __str__(self) -> str:
        return f"{self.part}: {self.message}"


def encode_attachments(
    attachments: Sequence[Attachment], *, has_html: bool
) -> tuple[list[bytes], list[bytes]]:
    """(parts that the HTML shows, parts to be kept), each with its header and ending with CRLF. Raises RenderError."""
    inline: list[bytes] = []
    kept: list[bytes] = []
    total = 0
    ids: set[str] = set()
    for number, attachment in enumerate(attachments):
        place = f"attachments[{number}]"
        total += len(attachment.data)
        if total > MAX_BYTES:
            raise RenderError(place, f"allowed are {MAX_BYTES} bytes for all attachments together")
        _check(place, attachment, has_html=has_html)
        if attachment.content_id in ids:
            raise RenderError(place, f"inline: {attachment.content_id!r}: allowed is each name once")
        if attachment.content_id:
            ids.add(attachment.content_id)
        (inline if attachment.content_id else kept).append(_part(attachment))
    return inline, kept


def _check(place: str, attachment: Attachment, *, has_html: bool) -> None:
    name, kind = attachment.name, attachment.content_type
    if not 0 < len(name) <= MAX_NAME or CONTROLS.search(name) or "/" in name or "\\" in name:
        raise RenderError(
            place, f"name: {name!r}: allowed are 1 to {MAX_NAME} characters, no / and no control"
        )
    if not _TYPE.fullmatch(kind) or kind.lower().startswith(("multipart/", "message/")):
        raise RenderError(place, f"type: {kind!r}: allowed is TYPE/SUBTYPE, but no multipart and no message")
    if attachment.content_id and not _CONTENT_ID.fullmatch(attachment.content_id):
        raise RenderError(
            place, f"inline: {attachment.content_id!r}: allowed are letters, digits and . _ - inside"
        )
    if attachment.content_id and not has_html:
        raise RenderError(place, "inline: allowed only together with an HTML part")


def _part(attachment: Attachment) -> bytes:
    quoted = attachment.name.replace('"', '\\"')
    place = "inline" if attachment.content_id else "attachment"
    data = attachment.data
    lines = [binascii.b2a_base64(data[i : i + _LINE], newline=False) for i in range(0, len(data), _LINE)]
    return b"".join(
        (
            parameters_field("Content-Type", f'{attachment.content_type}; name="{quoted}"'),
            b"Content-Transfer-Encoding: base64\r\n",
            parameters_field("Content-Disposition", f'{place}; filename="{quoted}"'),
            f"Content-ID: <{attachment.content_id}>\r\n".encode() if attachment.content_id else b"",
            b"\r\n",
            b"\r\n".join(lines),
            b"\r\n",
        )
    )

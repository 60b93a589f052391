"""A message taken apart as far as reports need it: header fields and the parts of its multiparts, within bounds.

Written for mail from strangers: at most `MAX_PARTS` parts, `MAX_DEPTH` levels and `MAX_FIELDS` fields of a header are
looked at, whatever the message has; the time is linear in its size, and nothing is ever raised.
"""

import binascii
import re
from dataclasses import dataclass

MAX_PARTS = 20
MAX_DEPTH = 3
MAX_FIELDS = 400
MAX_TEXT = 64 << 10

_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:[ \t]*(.*)", re.DOTALL)
_BOUNDARY = re.compile(r'boundary\s*=\s*(?:"([^"]{1,200})"|([^\s;"]{1,200}))', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Part:
    """A message or part. `headers`: names in lower case; of fields that are repeated the first, unfolded."""

    headers: dict[str, str]
    body: bytes

    @property
    def kind(self) -> str:
        """type/subtype in lower case; text/plain where nothing is said (RFC 2045 section 5.2)."""
        return self.headers.get("content-type", "text/plain").partition(";")[0].strip().lower()

    def text(self) -> str:
        """The decoded content, its first `MAX_TEXT` bytes, with plain line ends."""
        body = self.body[: 4 * MAX_TEXT]
        encoding = self.headers.get("content-transfer-encoding", "").strip().lower()
        if encoding == "quoted-printable":
            body = binascii.a2b_qp(body)
        elif encoding == "base64":
            letters = re.sub(rb"[^A-Za-z0-9+/]", b"", body)
            letters = letters[: len(letters) // 4 * 4]
            try:
                body = binascii.a2b_base64(letters)
            except binascii.Error:
                body = b""
        return body[:MAX_TEXT].decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")


def split_message(data: bytes) -> Part:
    """Header and body of a message."""
    data = data.replace(b"\r\n", b"\n")
    if data.startswith(b"\n"):
        return Part({}, data[1:])
    head, _, body = data.partition(b"\n\n")
    return Part(read_fields(head), body)


def read_fields(head: bytes) -> dict[str, str]:
    """Fields of a header, or of a delivery status group, by their names in lower case."""
    fields: dict[str, str] = {}
    for line in re.sub(rb"\n[ \t]+", b" ", head).split(b"\n", MAX_FIELDS)[:MAX_FIELDS]:
        found = _FIELD.fullmatch(line)
        if found is not None:
            name = found[1].decode("ascii").lower()
            fields.setdefault(name, found[2].decode("utf-8", "replace").strip())
    return fields


def leaves(message: Part) -> list[Part]:
    """The parts that are no multiparts themselves, in order; the message itself if it is none."""
    found: list[Part] = []
    _collect(message, 0, found)
    return found


def _collect(part: Part, depth: int, found: list[Part]) -> None:
    if len(found) >= MAX_PARTS:
        return
    boundary = _BOUNDARY.search(part.headers.get("content-type", ""))
    if not part.kind.startswith("multipart/") or boundary is None or depth == MAX_DEPTH:
        found.append(part)
        return
    mark = b"--" + (boundary[1] or boundary[2]).encode("utf-8", "replace")
    pieces = re.split(
        rb"(?:^|\n)" + re.escape(mark) + rb"(?:--)?[ \t]*(?=\n|$)", part.body, maxsplit=MAX_PARTS
    )
    for piece in pieces[1:]:
        if piece.strip() and len(found) < MAX_PARTS:
            _collect(split_message(piece.removeprefix(b"\n")), depth + 1, found)

"""Messages made fit for the wire without a change of what they say: lines of at most 998 octets, 7-bit where asked.

Works on the octets; what is fit stays as it is. A part gets another Content-Transfer-Encoding (RFC 2045 section 6),
the parts of a multipart and the message in a message/rfc822 each for themselves. Header fields are folded anew, and
what is not ASCII in them becomes encoded words (RFC 2047), A-labels or RFC 2231 parameters. Refused: what would break
a signature inside (multipart/signed, RFC 1847 section 2.1), encodings that nobody knows, and addresses that have no
ASCII form.
"""

import binascii
import re
from collections.abc import Sequence
from typing import Final

from engine.campaign.headers import (
    MAX_LINE,
    PARAMETER,
    decoded,
    has_short_lines,
    mailboxes_field,
    parameters_field,
    unstructured,
)
from engine.values.address import AddressError

MAX_DEPTH: Final = 20
_BASE64_LINE = 76

_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:([^\r]*(?:\r\n[ \t][^\r]*)*)\r\n")
_ADDRESSES = re.compile(rb"(?:resent-)?(?:from|sender|to|cc|bcc)|reply-to", re.IGNORECASE)
_PARAMETERS = re.compile(rb"content-(?:type|disposition)", re.IGNORECASE)

Field = tuple[bytes, bytes, bytes]  # name in lower case, value without its line ends, the whole field


class Unmendable(ValueError):
    """The message cannot be made fit. `enhanced` is the status that says so (RFC 3463)."""

    def __init__(self, message: str, enhanced: str = "5.6.3") -> None:
        super().__init__(message)
        self.enhanced = enhanced


def mend(head: bytes, body: bytes, *, keep_8bit: bool) -> tuple[bytes, bytes]:
    """Head (each field with its CRLF) and body, fit to be sent; raises Unmendable."""
    return _Mender(keep_8bit).entity(head, body, 0, b"text/plain")


class _Mender:
    def __init__(self, keep_8bit: bool) -> None:
        self._keep_8bit = keep_8bit

    def is_fit(self, data: bytes) -> bool:
        return (self._keep_8bit or data.isascii()) and has_short_lines(data)

    def entity(self, head: bytes, body: bytes, depth: int, default: bytes) -> tuple[bytes, bytes]:
        """A message (depth 0) or a part."""
        if depth > MAX_DEPTH:
            raise Unmendable(f"more than {MAX_DEPTH} parts inside each other")
        fields = _fields(head)
        if not self.is_fit(body):
            encoding, body, kind = self._content(fields, body, depth, default)
            fields = _with(fields, b"Content-Transfer-Encoding", encoding)
            if kind:
                fields = _with(fields, b"Content-Type", kind)
            if depth == 0:
                fields = _with(fields, b"MIME-Version", b"1.0")
        return b"".join([field[2] if self.is_fit(field[2]) else _refold(field) for field in fields]), body

    def _content(
        self, fields: Sequence[Field], body: bytes, depth: int, default: bytes
    ) -> tuple[bytes, bytes, bytes]:
        """(transfer encoding, content in it, Content-Type if there must be another)."""
        value = _value(fields, b"content-type")
        kind = (value or default).partition(b";")[0].strip().lower()
        encoding = (_value(fields, b"content-transfer-encoding") or b"7bit").strip().lower()
        plain = b"8bit" if self._keep_8bit else b"7bit"
        if kind == b"multipart/signed":
            raise Unmendable("the content is signed and has 8-bit octets or lines of more than 998")
        if kind.startswith(b"multipart/"):
            inner = b"message/rfc822" if kind == b"multipart/digest" else b"text/plain"
            return plain, self._multipart(value or b"", body, depth, inner), b""
        if kind in (b"message/rfc822", b"message/global") and encoding in (b"7bit", b"8bit", b"binary"):
            head, rest = split(body)
            head, rest = self.entity(head, rest, depth + 1, b"text/plain")
            return plain, head + b"\r\n" + rest, b"message/rfc822" if kind == b"message/global" else b""
        if kind.startswith(b"message/"):
            raise Unmendable(f"a part of type {_shown(kind)} must not be encoded (RFC 2046 section 5.2)")
        content = _decoded(encoding, body)
        missing = b"" if value or content.isascii() else _text_kind(content)
        if kind.startswith(b"text/") and encoding != b"base64" and _eight_bit(content) * 6 <= len(content):
            return b"quoted-printable", _quoted_printable(content), missing
        return b"base64", _base64(content), missing

    def _multipart(self, kind: bytes, body: bytes, depth: int, default: bytes) -> bytes:
        boundary = _boundary(kind)
        if boundary is None:
            raise Unmendable("a multipart without a boundary")
        delimiter = re.compile(rb"^--%b(--)?[ \t]*\r\n" % re.escape(boundary), re.MULTILINE)
        out: list[bytes] = []
        start = 0
        is_part = False
        for match in delimiter.finditer(body if body.endswith(b"\r\n") else body + b"\r\n"):
            piece = body[start : match.start()]
            if is_part:
                # the line end before a delimiter belongs to it (RFC 2046 section 5.1.1)
                head, rest = split(piece.removesuffix(b"\r\n"))
                head, rest = self.entity(head, rest, depth + 1, default)
                out += [head, b"\r\n", rest, b"\r\n"]
            elif self.is_fit(piece):
                out.append(piece)  # what stands before the first part is for nobody, but may stay
            out.append(b"--%b%b\r\n" % (boundary, match[1] or b""))
            is_part = match[1] is None
            start = match.end()
            if not is_part:
                break
        if start == 0 or is_part:
            raise Unmendable("a multipart that does not end")
        if self.is_fit(body[start:]):
            out.append(body[start:])
        return b"".join(out)


def split(data: bytes) -> tuple[bytes, bytes]:
    """Head and body of a message or part; the empty line between them is dropped."""
    if data.startswith(b"\r\n"):
        return b"", data[2:]
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return (data if data.endswith(b"\r\n") or not data else data + b"\r\n"), b""
    return data[: end + 2], data[end + 4 :]


def _fields(head: bytes) -> list[Field]:
    fields = []
    position = 0
    while position < len(head):
        match = _FIELD.match(head, position)
        if match is None:
            raise Unmendable(f"{_shown(head[position : position + 40])} is no header field", "5.6.0")
        whole = b"%b:%b\r\n" % (match[1], match[2])  # without spaces before the colon (RFC 5322 section 4.5)
        fields.append((match[1].lower(), match[2].replace(b"\r\n", b"").strip(), whole))
        position = match.end()
    return fields


def _value(fields: Sequence[Field], name: bytes) -> bytes | None:
    return next((value for found, value, _ in fields if found == name), None)


def _with(fields: Sequence[Field], name: bytes, value: bytes) -> list[Field]:
    """The fields with this one replaced where it stands, or added."""
    field = (name.lower(), value, b"%b: %b\r\n" % (name, value))
    if name == b"MIME-Version" and _value(fields, field[0]) is not None:
        return list(fields)
    places = [i for i, (found, _, _) in enumerate(fields) if found == field[0]]
    if not places:
        return [*fields, field]
    return [field if i == places[0] else old for i, old in enumerate(fields) if i not in places[1:]]


def _refold(field: Field) -> bytes:
    name, value, raw = field
    written = raw[: raw.index(b":")].rstrip().decode()
    text = _text(value)
    try:
        if _ADDRESSES.fullmatch(name):
            refolded = mailboxes_field(written, text)
        elif _PARAMETERS.fullmatch(name):
            refolded = parameters_field(written, text)
        else:
            refolded = unstructured(written, decoded(text))
    except AddressError as error:
        raise Unmendable(f"{written}: {error}", "5.6.7") from None
    except ValueError as error:
        raise Unmendable(f"{written}: {error}", "5.6.0") from None
    if not refolded.isascii():
        raise Unmendable(f"{written}: an address has no ASCII form, and SMTPUTF8 is not offered", "5.6.7")
    if not has_short_lines(refolded):
        raise Unmendable(f"{written}: a line of more than {MAX_LINE} octets that cannot be folded", "5.6.0")
    return refolded


def _boundary(kind: bytes) -> bytes | None:
    for key, _, quoted, token in PARAMETER.findall(_text(kind[kind.find(b";") :])):
        if key.lower() == "boundary":
            value = re.sub(r"\\(.)", r"\1", quoted) if quoted else token
            return value.encode() or None if value.isascii() else None
    return None


def _decoded(encoding: bytes, body: bytes) -> bytes:
    """The content itself; an encoding that was not kept to (8-bit in quoted-printable) is read leniently."""
    if encoding in (b"7bit", b"8bit", b"binary"):
        return body
    try:
        if encoding == b"quoted-printable":
            return binascii.a2b_qp(body)
        if encoding == b"base64":
            return binascii.a2b_base64(body)
    except ValueError as error:
        raise Unmendable(f"a part that is not {_shown(encoding)}: {error}") from None
    raise Unmendable(f"the transfer encoding {_shown(encoding)} is unknown")


def _text_kind(content: bytes) -> bytes:
    try:
        content.decode()
    except UnicodeDecodeError:
        return b"text/plain; charset=unknown-8bit"  # RFC 1428
    return b"text/plain; charset=utf-8"


def _eight_bit(content: bytes) -> int:
    return len(content) - len(content.translate(None, _HIGH))


def _quoted_printable(content: bytes) -> bytes:
    lines = [binascii.b2a_qp(line, istext=False).replace(b"=\n", b"=\r\n") for line in content.split(b"\r\n")]
    return b"\r\n".join(lines)


def _base64(content: bytes) -> bytes:
    packed = binascii.b2a_base64(content, newline=False)
    return b"".join([packed[i : i + _BASE64_LINE] + b"\r\n" for i in range(0, len(packed), _BASE64_LINE)])


def _text(value: bytes) -> str:
    """Header octets as text; those that are not UTF-8 are taken for Latin-1."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _shown(data: bytes) -> str:
    return repr(data[:60].decode("ascii", "replace"))


_HIGH = bytes(range(128, 256))

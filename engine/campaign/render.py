"""A campaign's template and one recipient's fields become a complete message (RFC 5322, RFC 2045).

The same input gives the same bytes, in every process and on each retry: Date is the time of acceptance,
Message-ID comes from the id and that time (the time, because ids begin anew when a spool is made anew, and
mailbox providers drop a Message-ID that they have seen). The boundary comes from the template: so a body that
does not depend on the recipient is the same in every message, and hashed once for their signatures.

The message is 7-bit with CRLF and lines of at most 998 octets, so it passes every server unchanged and can be
signed as it is. A part that is ASCII with short lines goes as it is; another becomes quoted-printable, or
base64 where that is smaller. Only a recipient whose own address is not ASCII brings UTF-8 into a header (RFC
6532); such mail needs SMTPUTF8 anyway.

Templates are Jinja2 in a sandbox (sandbox.py), compiled once, autoescaped in the HTML part only. An unknown variable is
an error, never an empty text. Besides the fields a template knows `recipient` (the address), `message_id` (16 hex
digits) and `unsubscribe_url`, where the configuration makes links. The link is in the header too (RFC 8058), unless
the template has a List-Unsubscribe of its own.

Cost: the parts of the MIME structure that do not change are made once; per message there remain the
rendering, one encoding and one join.
"""

import binascii
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import jinja2
from jinja2 import meta, nodes
from jinja2.runtime import Context

from engine.bounces.unsubscribe import header_fields
from engine.campaign.attachments import RenderError, encode_attachments
from engine.campaign.headers import CONTROLS, NAME, has_short_lines, mailbox, mailbox_field, unstructured
from engine.campaign.sandbox import Sandbox, begin, joined
from engine.values.address import AddressError
from engine.values.message import CampaignTemplate
from native.mime import canonicalise

BUILT_IN_VARIABLES: Final = frozenset({"recipient", "message_id", "unsubscribe_url"})
OWN_HEADERS: Final = frozenset(
    """from to cc bcc subject date message-id mime-version reply-to sender return-path received
    dkim-signature""".split()  # noqa: SIM905
)
MAX_LINES_KEPT: Final = 4096
NESTED: Final = "nested too deep"
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_BASE64_LINE = 76

Values = dict[str, Any]
Part = Callable[[Values], str]


_PLAIN = Sandbox(autoescape=False)
_HTML = Sandbox(autoescape=True)


def _is_static(source: str) -> bool:
    return "{{" not in source and "{%" not in source and "{#" not in source


def template_parts(template: CampaignTemplate) -> list[tuple[str, str]]:
    """Every part with Jinja2 source in it, with the name that errors give it."""
    parts = [("from", template.header_from), ("subject", template.subject)]
    parts += [("text", template.text), ("html", template.html), ("reply_to", template.reply_to)]
    return parts + [(f"headers.{name}", value) for name, value in template.headers.items()]


def template_variables(template: CampaignTemplate) -> set[str]:
    """The fields that the template wants of each recipient. Raises RenderError on bad syntax."""
    found: set[str] = set()
    for part, source in template_parts(template):
        try:
            tree = _PLAIN.parse(source)
            found |= meta.find_undeclared_variables(tree) | _shown_globals(tree)
        except jinja2.TemplateSyntaxError as error:
            raise RenderError(part, f"line {error.lineno}: {error.message}") from None
        except RecursionError:
            raise RenderError(part, NESTED) from None
    return found - BUILT_IN_VARIABLES


def _shown_globals(tree: nodes.Template) -> set[str]:
    """Functions' names in another place than that of a call: there fields of these names are meant."""
    called = {id(call.node) for call in tree.find_all(nodes.Call)}
    names = list(tree.find_all(nodes.Name))
    own = {name.name for name in names if name.ctx != "load"}
    return {name.name for name in names if id(name) not in called} & _PLAIN.globals.keys() - own


class Renderer:
    """Renders one campaign. Raises RenderError if the template cannot work for any recipient."""

    def __init__(self, template: CampaignTemplate) -> None:
        if not template.text and not template.html:
            raise RenderError("text", "a message needs a text part or an HTML part")
        self._head = self._compile_headers(template)
        self._text = _compile("text", template.text, _PLAIN) if template.text else None
        self._html = _compile("html", template.html, _HTML) if template.html else None
        self._id_domain = _domain(template).encode()
        self._has_own_unsubscribe = "list-unsubscribe" in {name.lower() for name in template.headers}
        digest = hashlib.sha256(repr(template).encode("utf-8", "replace")).hexdigest()
        self._token = digest[:32].encode()
        self._inline, self._attached = encode_attachments(template.attachments, has_html=bool(template.html))
        self._lines = LineEncoder()
        self._date_second = -1
        self._date = b""

    def _compile_headers(self, template: CampaignTemplate) -> list[bytes | Callable[[Values], bytes]]:
        fields = [
            _header("from", "From", template.header_from, mailbox_field),
            _header("subject", "Subject", template.subject, unstructured),
        ]
        if template.reply_to:
            fields.append(_header("reply_to", "Reply-To", template.reply_to, mailbox_field))
        for name, value in template.headers.items():
            part = f"headers.{name}"
            if not NAME.fullmatch(name):
                raise RenderError(part, "not a header name")
            if name.lower() in OWN_HEADERS or name.lower().startswith("content-"):
                raise RenderError(part, "this header is written by the engine")
            fields.append(_header(part, name, value, unstructured))
        merged: list[bytes | Callable[[Values], bytes]] = []
        for field in fields:
            if merged and isinstance(field, bytes) and isinstance(merged[-1], bytes):
                merged[-1] += field
            else:
                merged.append(field)
        return merged

    @property
    def attached_bytes(self) -> int:
        """What the encoded attachments take in memory."""
        return sum(map(len, (*self._inline, *self._attached)))

    def render(
        self,
        fields: Mapping[str, str],
        recipient: str,
        id_: int,
        accepted_ms: int,
        *,
        unsubscribe_url: str = "",
    ) -> bytes:
        """The message to one recipient. Raises RenderError if a field is missing or the template fails."""
        token = b"%016x.%x" % (id_, accepted_ms)
        values = {**_PLAIN.globals, **fields, "recipient": recipient, "message_id": f"{id_:016x}"}
        if unsubscribe_url:
            values["unsubscribe_url"] = unsubscribe_url
        out = [field if type(field) is bytes else field(values) for field in self._head]  # type: ignore[operator]
        out.append(
            b"To: %b\r\nDate: %b\r\nMessage-ID: <%b@%b>\r\nMIME-Version: 1.0\r\n"
            % (recipient.encode(), self._date_of(accepted_ms), token, self._id_domain)
        )
        if unsubscribe_url and not self._has_own_unsubscribe:
            out.append(_unsubscribe_fields(unsubscribe_url))
        content = self._content(values)
        if self._attached:
            content = self._multipart(b"mixed", b"m", [content, *self._attached])
        out.append(content)
        return b"".join(out)

    def _content(self, values: Values) -> bytes:
        """What is read: text, HTML with its images, or both to choose from."""
        parts = []
        if self._text is not None:
            parts.append(self._entity(b"plain", self._text(values)))
        if self._html is not None:
            html = self._entity(b"html", self._html(values))
            parts.append(self._multipart(b"related", b"r", [html, *self._inline]) if self._inline else html)
        return parts[0] if len(parts) == 1 else self._multipart(b"alternative", b"a", parts)

    def _multipart(self, kind: bytes, letter: bytes, parts: Sequence[bytes]) -> bytes:
        """Parts that end with a line end. None of the boundaries begins as another ends (RFC 2046 section 5.1.1)."""
        boundary = b"=_%b%b" % (letter, self._token)
        pieces = [b"--%b\r\n%b\r\n" % (boundary, part) for part in parts]
        return b'Content-Type: multipart/%b; boundary="%b"\r\n\r\n%b--%b--\r\n' % (
            kind,
            boundary,
            b"".join(pieces),
            boundary,
        )

    def _entity(self, kind: bytes, text: str) -> bytes:
        """Headers and content of one part; ends with a line end."""
        data = canonicalise(text.encode("utf-8", "replace"), False)
        if text.isascii():
            if has_short_lines(data) and self._token not in data:
                return b"Content-Type: text/%b; charset=us-ascii\r\n\r\n%b" % (kind, data)
            return _encoded(kind, b"us-ascii", b"quoted-printable", self._lines.encode(data))
        # quoted-printable makes three octets of each that is not ASCII, base64 four of any three
        if (len(data) - len(text)) * 9 < len(data):
            return _encoded(kind, b"utf-8", b"quoted-printable", self._lines.encode(data))
        packed = binascii.b2a_base64(data, newline=False)
        lines = [packed[i : i + _BASE64_LINE] for i in range(0, len(packed), _BASE64_LINE)]
        return _encoded(kind, b"utf-8", b"base64", b"\r\n".join(lines) + b"\r\n")

    def _date_of(self, accepted_ms: int) -> bytes:
        second = accepted_ms // 1000
        if second != self._date_second:
            at = time.gmtime(second)
            self._date = (
                f"{_DAYS[at.tm_wday]}, {at.tm_mday:02d} {_MONTHS[at.tm_mon - 1]} {at.tm_year:04d} "
                f"{at.tm_hour:02d}:{at.tm_min:02d}:{at.tm_sec:02d} +0000"
            ).encode()
            self._date_second = second
        return self._date


class LineEncoder:
    """Quoted-printable (RFC 2045 section 6.7), line by line. Most lines of a campaign are the same in every
    message, so the encoded lines are kept, up to a bound.
    """

    def __init__(self) -> None:
        self._kept: dict[bytes, bytes] = {}

    def encode(self, data: bytes) -> bytes:
        """Encode text whose lines end with CRLF."""
        kept = self._kept
        out = []
        for line in data.split(b"\r\n"):
            encoded = kept.get(line)
            if encoded is None:
                encoded = binascii.b2a_qp(line, istext=True).replace(b"=\n", b"=\r\n")
                if len(kept) >= MAX_LINES_KEPT:
                    kept.clear()
                kept[line] = encoded
            out.append(encoded)
        return b"\r\n".join(out)


def check_fields(template: CampaignTemplate, field_names: Sequence[str]) -> list[str]:
    """Fields that the template wants and the recipients do not have."""
    return sorted(template_variables(template) - set(field_names))


def _domain(template: CampaignTemplate) -> str:
    """The domain of Message-ID: that of From, or of the sender where From depends on the recipient."""
    source = template.header_from if _is_static(template.header_from) else template.sender
    try:
        return mailbox(source)[1].domain
    except AddressError as error:
        raise RenderError("from", str(error)) from None


def _compile(part: str, source: str, environment: Sandbox) -> Part:
    if _is_static(source):
        return lambda values: source
    try:
        compiled = environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise RenderError(part, f"line {error.lineno}: {error.message}") from None
    except RecursionError:
        raise RenderError(part, NESTED) from None

    # a context on the values themselves: Template.render would copy them, and takes four times as long
    root = compiled.root_render_func
    blocks = compiled.blocks

    def render(values: Values) -> str:
        try:
            begin(values)
            return joined(root(Context(environment, values, None, blocks)))
        except Exception as error:
            raise RenderError(part, f"{type(error).__name__}: {error}") from error

    return render


def _header(
    part: str, name: str, source: str, encode: Callable[[str, str], bytes]
) -> bytes | Callable[[Values], bytes]:
    def encoded(text: str) -> bytes:
        try:
            return encode(name, text)
        except AddressError as error:
            raise RenderError(part, str(error)) from None

    if _is_static(source):
        return encoded(source)
    compiled = _compile(part, CONTROLS.sub(" ", source), _PLAIN)
    return lambda values: encoded(compiled(values))


def _unsubscribe_fields(url: str) -> bytes:
    try:
        return header_fields(url)
    except ValueError as error:
        raise RenderError("headers.List-Unsubscribe", str(error)) from None


def _encoded(kind: bytes, charset: bytes, encoding: bytes, body: bytes) -> bytes:
    return b"Content-Type: text/%b; charset=%b\r\nContent-Transfer-Encoding: %b\r\n\r\n%b" % (
        kind,
        charset,
        encoding,
        body,
    )

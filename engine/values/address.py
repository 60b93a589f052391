"""Mail addresses: the one validator at the boundary. Whatever passes here is safe in a command, a key and a
header.

An address is local-part@domain (RFC 5321 section 4.1.2), with UTF-8 in the local part as RFC 6531 allows.
Limits of section 4.5.3.1: local part 64 octets, domain 255, path 256 with its angle brackets, so 254 for the
address.

Normal form: the domain in lower case and as A-labels (UTS 46, then IDNA 2008); a quoted local part without
its quotes where it needs none; UTF-8 in NFC. The case of the local part is kept: it belongs to the receiving
host.

Refused: all control characters (C0, DEL, C1, so also any CR or LF), invisible and unassigned code points,
address literals and bare IP addresses (mail goes where the DNS says), domains of one label. The null reverse-
path "" is no address; callers that allow it ask before.
"""

import re
import unicodedata
from typing import NamedTuple

import idna

MAX_LOCAL = 64
MAX_DOMAIN = 255
MAX_PATH = 254

_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_PLAIN = re.compile(
    rf"({_ATEXT}++(?:\.{_ATEXT}++)*+)@((?:{_LABEL}\.)+[A-Za-z](?:[A-Za-z0-9-]{{0,61}}[A-Za-z0-9])?)"
)
_DOMAIN = re.compile(rf"(?:{_LABEL}\.)+[A-Za-z](?:[A-Za-z0-9-]{{0,61}}[A-Za-z0-9])?")
_DOT_ATOM = re.compile(rf"{_ATEXT}++(?:\.{_ATEXT}++)*+")
_UTF8_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\u0080-\U0010ffff-]"
_UTF8_DOT_ATOM = re.compile(rf"{_UTF8_ATEXT}++(?:\.{_UTF8_ATEXT}++)*+")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_REFUSED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


class AddressError(ValueError):
    """The text is not an address that mail can be sent to; the message says why."""


class Address(NamedTuple):
    """A normalised address. `text` is what stands in the envelope; `domain` its ASCII form in lower case.

    `needs_smtputf8`: the local part is not ASCII, only a host that offers SMTPUTF8 can take it.
    """

    text: str
    domain: str
    needs_smtputf8: bool = False

    @property
    def local(self) -> str:
        return self.text[: -len(self.domain) - 1]


def parse_address(text: str) -> Address:
    """Return the normal form; raises AddressError."""
    match = _PLAIN.fullmatch(text)
    if match is not None and len(text) <= MAX_PATH:
        local, domain = match.groups()
        if len(local) <= MAX_LOCAL and "--" not in domain:
            lower = domain.lower()
            # as Address(...), in half the time: this is asked for every recipient
            return tuple.__new__(Address, (text if lower == domain else f"{local}@{lower}", lower, False))
    return _parse_slowly(text)


def _parse_slowly(text: str) -> Address:
    """Everything that is not plain ASCII without quotes, and everything that is wrong."""
    if not text:
        raise AddressError("empty")
    if len(text) > MAX_PATH * 4:
        raise AddressError(f"longer than {MAX_PATH} octets")
    for character in text:
        if unicodedata.category(character) in _REFUSED_CATEGORIES:
            raise AddressError(f"contains the control or invisible character U+{ord(character):04X}")
    local, at, domain = text.rpartition("@")
    if not at:
        raise AddressError("no @")
    local = _local_part(unicodedata.normalize("NFC", local))
    domain = _domain_part(domain)
    address = f"{local}@{domain}"
    if len(address.encode()) > MAX_PATH:
        raise AddressError(f"longer than {MAX_PATH} octets")
    return Address(address, domain, not local.isascii())


def _local_part(local: str) -> str:
    if not local:
        raise AddressError("nothing before the @")
    if local.startswith('"'):
        quoted = _QUOTED.fullmatch(local)
        if quoted is None:
            raise AddressError("the quotes before the @ do not match")
        content = re.sub(r"\\(.)", r"\1", quoted[1])
        if _UTF8_DOT_ATOM.fullmatch(content):
            local = content
        else:
            escaped = content.replace("\\", "\\\\").replace('"', '\\"')
            local = f'"{escaped}"'
    elif not _UTF8_DOT_ATOM.fullmatch(local) or any(c.isspace() for c in local):
        wrong = "".join(sorted({c for c in local if c.isascii() and c != "." and not _DOT_ATOM.fullmatch(c)}))
        if wrong:
            raise AddressError(f"before the @ {wrong!r} is allowed only inside double quotes")
        if any(c.isspace() for c in local):
            raise AddressError("a space before the @ is allowed only inside double quotes")
        raise AddressError("a dot before the @ must stand between other characters")
    if len(local.encode()) > MAX_LOCAL:
        raise AddressError(f"more than {MAX_LOCAL} octets before the @")
    return local


def ascii_domain(domain: str) -> str:
    """A domain in lower case and as A-labels; raises AddressError. The one conversion, for addresses and for routes."""
    if domain.isascii():
        return domain.lower()
    try:
        return idna.encode(domain, uts46=True, std3_rules=True).decode().lower()
    except (idna.IDNAError, UnicodeError) as error:
        raise AddressError(f"domain: {error}") from None


def _domain_part(domain: str) -> str:
    if not domain:
        raise AddressError("nothing behind the @")
    if domain.startswith("["):
        raise AddressError("address literals are not supported: a domain is needed behind the @")
    domain = ascii_domain(domain)
    if len(domain) > MAX_DOMAIN:
        raise AddressError(f"domain longer than {MAX_DOMAIN} octets")
    if "." not in domain:
        raise AddressError("the domain needs at least two labels, as in example.com")
    if not _DOMAIN.fullmatch(domain):
        raise AddressError(
            "domain: allowed are labels of 1 to 63 letters, digits and inner hyphens, the last one not a number"
        )
    for label in domain.split("."):
        if label[2:4] == "--":
            try:
                idna.ulabel(label)
            except (idna.IDNAError, UnicodeError) as error:
                raise AddressError(f"domain: {error}") from None
    return domain

"""SPF records as terms, and macro strings (RFC 7208 sections 4.6.1, 5, 6, 7 and 12). No DNS here.

A record with any syntax error is wrong as a whole (section 4.6: permerror), so `parse_record` checks everything
before anything is evaluated.
"""

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import quote

VERSION = "v=spf1"
_DIRECTIVE = re.compile(r"([+?~-]?)([A-Za-z][A-Za-z0-9_.-]*)(.*)", re.DOTALL)
_MODIFIER = re.compile(r"([A-Za-z][A-Za-z0-9_.-]*)=(.*)", re.DOTALL)
_PREFIXES = re.compile(r"(.*?)(?:/(0|[1-9][0-9]?))?(?://(0|[1-9][0-9]{0,2}))?", re.DOTALL)
_MACRO = re.compile(r"%(?:%|_|-|\{([A-Za-z])([0-9]*)([rR]?)([.+,/_=-]*)\})")
_DOMAIN_END = re.compile(
    r"(?:.*\.(?=[A-Za-z0-9-]*[A-Za-z-])[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.?|.*%\{[^}]*\}|.*%[%_-])",
    re.DOTALL,
)
_LETTERS = "slodiphv"
_EXPLANATION_LETTERS = _LETTERS + "crt"
MECHANISMS = ("all", "include", "a", "mx", "ptr", "ip4", "ip6", "exists")


class SpfSyntaxError(ValueError):
    """The record is not one of RFC 7208; the message names the term."""


@dataclass(frozen=True, slots=True)
class Mechanism:
    """`qualifier` is one of + - ~ ?. `domain` is a macro string, "" for the current one; `network` of ip4 and ip6."""

    qualifier: str
    name: str
    domain: str = ""
    network: ipaddress.IPv4Network | ipaddress.IPv6Network | None = None
    prefix4: int = 32
    prefix6: int = 128
    text: str = ""


@dataclass(frozen=True, slots=True)
class SpfRecord:
    """A parsed record. `redirect` is None where there is none; `exp` is of no use to us and only checked."""

    mechanisms: tuple[Mechanism, ...]
    redirect: str | None


def is_spf(text: str) -> bool:
    """Whether a TXT record claims to be SPF (section 4.5): the version, then a space or the end."""
    return text[: len(VERSION)].lower() == VERSION and text[len(VERSION) : len(VERSION) + 1] in ("", " ")


def parse_record(text: str) -> SpfRecord:
    """Raises SpfSyntaxError."""
    mechanisms: list[Mechanism] = []
    modifiers: dict[str, str] = {}
    for term in text[len(VERSION) :].split(" "):
        if not term:
            continue
        modifier = _MODIFIER.fullmatch(term)
        if modifier is None:
            mechanisms.append(_mechanism(term))
            continue
        name, value = modifier[1].lower(), modifier[2]
        if name in ("redirect", "exp"):
            if name in modifiers:
                raise SpfSyntaxError(f"{name}= stands twice")
            _check_domain(value, term)
        else:
            _check_macros(value, term, _EXPLANATION_LETTERS)
        modifiers.setdefault(name, value)
    return SpfRecord(tuple(mechanisms), modifiers.get("redirect"))


def _mechanism(term: str) -> Mechanism:
    match = _DIRECTIVE.fullmatch(term)
    if match is None:
        raise SpfSyntaxError(f"{term!r} is no term")
    qualifier, name, rest = match[1] or "+", match[2].lower(), match[3]
    if name not in MECHANISMS:
        raise SpfSyntaxError(f"{term!r}: allowed are {', '.join(MECHANISMS)}")
    if name == "all":
        if rest:
            raise SpfSyntaxError(f"{term!r}: `all` has no argument")
        return Mechanism(qualifier, name, text=term)
    if name in ("ip4", "ip6"):
        return Mechanism(qualifier, name, network=_network(name, rest, term), text=term)
    if name in ("include", "exists") and not rest.startswith(":"):
        raise SpfSyntaxError(f"{term!r}: needs a domain, as in {name}:example.com")
    domain, prefix4, prefix6 = rest, None, None
    if name in ("a", "mx"):
        # a slash inside %{...} is a delimiter, not a prefix length
        parts = _PREFIXES.fullmatch(rest)
        assert parts is not None  # the first group takes anything
        domain, prefix4, prefix6 = parts.groups()
    if domain:
        if not domain.startswith(":"):
            raise SpfSyntaxError(f"{term!r}: a domain comes after a colon")
        domain = domain[1:]
        _check_domain(domain, term)
    if (prefix4 is not None and int(prefix4) > 32) or (prefix6 is not None and int(prefix6) > 128):
        raise SpfSyntaxError(f"{term!r}: allowed are prefixes up to /32 and //128")
    return Mechanism(
        qualifier,
        name,
        domain,
        prefix4=32 if prefix4 is None else int(prefix4),
        prefix6=128 if prefix6 is None else int(prefix6),
        text=term,
    )


def _network(name: str, rest: str, term: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    _, slash, prefix = rest[1:].partition("/")
    kind = ipaddress.IPv4Network if name == "ip4" else ipaddress.IPv6Network
    try:
        if not rest.startswith(":") or (slash and not re.fullmatch(r"0|[1-9][0-9]{0,2}", prefix)):
            raise ValueError
        return kind(rest[1:], strict=False)
    except ValueError:
        raise SpfSyntaxError(f"{term!r}: allowed is {name}:ADDRESS or {name}:ADDRESS/PREFIX") from None


def _check_domain(text: str, term: str) -> None:
    _check_macros(text, term, _LETTERS)
    if not _DOMAIN_END.fullmatch(text):
        raise SpfSyntaxError(f"{term!r}: {text!r} is not a domain")


def _check_macros(text: str, term: str, letters: str) -> None:
    rest = _MACRO.sub("", text)
    if "%" in rest or any(not 0x21 <= ord(character) <= 0x7E for character in rest):
        raise SpfSyntaxError(f"{term!r}: a `%` that begins no macro, or a character that is not ASCII")
    for match in _MACRO.finditer(text):
        letter, digits = match[1], match[2]
        if letter is None:
            continue
        if letter.lower() not in letters or (digits and int(digits) == 0):
            raise SpfSyntaxError(f"{term!r}: {match[0]} is no macro")


def uses_macro(text: str, letter: str) -> bool:
    """Whether a macro string contains %{letter...}."""
    return any((match[1] or "").lower() == letter for match in _MACRO.finditer(text))


def expand(text: str, values: dict[str, str]) -> str:
    """Replace the macros of a checked string; `values` by letter (section 7.3)."""

    def replace(match: re.Match[str]) -> str:
        letter = match[1]
        if letter is None:
            return {"%%": "%", "%_": " ", "%-": "%20"}[match[0]]
        parts = re.split(f"[{re.escape(match[4] or '.')}]", values[letter.lower()])
        if match[3]:
            parts.reverse()
        if match[2]:
            parts = parts[-int(match[2]) :]
        joined = ".".join(parts)
        return quote(joined, safe="-._~") if letter.isupper() else joined

    return _MACRO.sub(replace, text)

"""How one recipient's copy of a message is to be sent: what a submitter asks beyond sender, recipient and body.

DSN parameters (RFC 3461) are kept decoded; `xtext` makes their form in a command. REQUIRETLS is RFC 8689,
SMTPUTF8 RFC 6531, 8BITMIME RFC 6152. Nothing here can hold a control character: `check` refuses it, at the
boundary, with the field, so that no command or DSN field made from it can be broken.

A value travels as a list `[flags, ret, envid, notify, orcpt]`; whoever reads one takes fewer elements too.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import Any, Final

MAX_ENVID: Final = 100  # RFC 3461 section 4.4, before encoding
MAX_ORCPT: Final = 500  # RFC 3461 section 4.2

_PRINTABLE = re.compile(r"[ -~]*")
_ADDRESS_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}")
_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*")
_HEX = re.compile(r"\+([0-9A-F]{2})")


class Flag(IntFlag):
    """REQUIRE_TLS: bounce rather than pass on without REQUIRETLS. SMTPUTF8, BODY_8BIT: declared by the
    submitter; what the bytes need is found out anyway. VERP: the return path should tell the recipient. ANY_TLS: the
    policies of the recipients' side (DANE, MTA-STS) do not hold the message back, as `TLS-Required: No` of RFC 8689
    section 4.2.2 says; TLS itself is as mandatory as ever.
    """

    REQUIRE_TLS = 1
    SMTPUTF8 = 2
    BODY_8BIT = 4
    VERP = 8
    ANY_TLS = 16


class Notify(IntFlag):
    """When the sender wants a DSN. 0: nothing was said, which means failures (and delays as is the custom)."""

    NEVER = 1
    SUCCESS = 2
    FAILURE = 4
    DELAY = 8


class OptionError(ValueError):
    """A value that cannot be sent. `field` names it."""

    def __init__(self, field: str, value: object, message: str) -> None:
        super().__init__(field, value, message)
        self.field = field
        self.value = value
        self.message = message

    def __str__(self) -> str:
        return f"{self.field}: {self.value!r}: {self.message}"


@dataclass(frozen=True, slots=True)
class Options:
    """`ret` is "", "FULL" or "HDRS"; `orcpt` "" or "rfc822;user@example.com" (type; address)."""

    flags: int = 0
    ret: str = ""
    envid: str = ""
    notify: int = 0
    orcpt: str = ""

    @property
    def requires_tls(self) -> bool:
        return bool(self.flags & Flag.REQUIRE_TLS)

    @property
    def tls_wish(self) -> int:
        """REQUIRE_TLS, ANY_TLS, or 0: which of a domain's routes the message takes."""
        return int(self.flags) & _TLS_WISHES

    @property
    def wants_verp(self) -> bool:
        return bool(self.flags & Flag.VERP)

    def pack(self) -> tuple[int, str, str, int, str]:
        return int(self.flags), self.ret, self.envid, int(self.notify), self.orcpt

    def check(self) -> None:
        """Raise OptionError for the first field that is not allowed."""
        if not _is_bits(self.flags, 31):
            raise OptionError("options.flags", self.flags, "allowed are 0 to 31")
        if self.tls_wish == _TLS_WISHES:
            raise OptionError("options.flags", self.flags, "allowed is one of REQUIRE_TLS and ANY_TLS")
        if self.ret not in ("", "FULL", "HDRS"):
            raise OptionError("options.ret", self.ret, "allowed are FULL and HDRS")
        if not isinstance(self.envid, str) or not _PRINTABLE.fullmatch(self.envid):
            raise OptionError("options.envid", self.envid, "allowed are printable ASCII characters")
        if len(self.envid) > MAX_ENVID:
            raise OptionError("options.envid", self.envid, f"allowed are {MAX_ENVID} characters")
        if not _is_bits(self.notify, 15):
            raise OptionError("options.notify", self.notify, "allowed are 0 to 15")
        if self.notify & Notify.NEVER and self.notify != Notify.NEVER:
            raise OptionError("options.notify", self.notify, "NEVER stands alone (RFC 3461 section 4.1)")
        if not isinstance(self.orcpt, str) or len(self.orcpt) > MAX_ORCPT:
            raise OptionError("options.orcpt", self.orcpt, f"expected text of at most {MAX_ORCPT} characters")
        if self.orcpt:
            kind, semicolon, address = self.orcpt.partition(";")
            if not semicolon or not _ADDRESS_TYPE.fullmatch(kind) or not address:
                raise OptionError("options.orcpt", self.orcpt, "expected TYPE;ADDRESS, as in rfc822;a@b.c")
            if not _PRINTABLE.fullmatch(address):
                raise OptionError("options.orcpt", self.orcpt, "allowed are printable ASCII characters")


_TLS_WISHES: Final = int(Flag.REQUIRE_TLS | Flag.ANY_TLS)


def _is_bits(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def unpack_options(fields: Sequence[Any] | None) -> Options | None:
    return None if fields is None else Options(*fields[:5])


def parse_notify(text: str) -> int:
    """The value of a NOTIFY parameter; raises OptionError."""
    found = 0
    for word in text.split(","):
        try:
            found |= Notify[word.upper()]
        except KeyError:
            raise OptionError("NOTIFY", text, "allowed are NEVER, or SUCCESS, FAILURE, DELAY") from None
    Options(notify=found).check()
    return found


def format_notify(notify: int) -> str:
    return ",".join(str(flag.name) for flag in Notify if notify & flag)


def xtext(text: str) -> str:
    """RFC 3461 section 4: what is not graphic ASCII, and "+" and "=", as +HH."""
    return "".join([c if "!" <= c <= "~" and c not in "+=" else f"+{ord(c):02X}" for c in text])


def parse_xtext(field: str, text: str) -> str:
    """The decoded text; raises OptionError if it is not xtext, or holds what is not printable ASCII."""
    decoded = _HEX.sub(lambda match: chr(int(match[1], 16)), text)
    if not _XTEXT.fullmatch(text) or not _PRINTABLE.fullmatch(decoded):
        raise OptionError(field, text, "expected xtext of printable characters (RFC 3461 section 4)")
    return decoded


def spread(options: Iterable[Options], recipients: int) -> tuple[Options | None, ...]:
    """One per recipient, of none (no wishes), one (for all) or just as many; raises OptionError."""
    given = tuple(options)
    if not given:
        return (None,) * recipients
    if len(given) not in (1, recipients):
        raise OptionError("options", len(given), f"expected none, one, or one per recipient ({recipients})")
    for one in given:
        one.check()
    return given if len(given) == recipients else given * recipients

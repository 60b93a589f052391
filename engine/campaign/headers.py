"""Header fields as bytes (RFC 5322 section 2.2, RFC 2047): always 7-bit, folded, and never a line more than
asked for.

No value can add a line: every control character becomes a space before anything else is done. Text that is
not ASCII, that could be read as an encoded word, or that has a word too long to fold, becomes encoded words
of UTF-8 in base64, cut between characters.
"""

import binascii
import re
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from urllib.parse import quote

from engine.campaign.mailboxes import split_mailboxes
from engine.values.address import Address, AddressError, parse_address

NAME = re.compile(r"[!-9;-~]{1,76}")
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
MAX_LINE = 998  # RFC 5322 section 2.1.1
FOLD_AT = 76
LONGEST_WORD = 900
MAX_DECODED = 64 << 10  # the library takes quadratic time for encoded words
WORD_BYTES = 45  # 60 characters of base64, 72 with the frame "=?utf-8?b?" "?="; RFC 2047 allows 75

PARAMETER = re.compile(r';\s*([^\s;=*"]+)(\*[0-9*]*)?\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]*))\s*')
_PHRASE = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~ -]+")


def unstructured(name: str, value: str) -> bytes:
    """A whole field with its CRLF, e.g. of Subject."""
    text = CONTROLS.sub(" ", value).strip()
    if text.isascii() and "=?" not in text:
        if len(name) + 2 + len(text) <= FOLD_AT:
            return f"{name}: {text}\r\n".encode()
        folded = _fold(text, len(name) + 2)
        if folded is not None:
            return f"{name}: {folded}\r\n".encode()
    return f"{name}: {encoded_words(text, len(name) + 2)}\r\n".encode()


def _fold(text: str, used: int) -> str | None:
    """Break before spaces; None if there is a word, or a run of spaces, that no line can hold."""
    lines: list[str] = []
    line = ""
    for word in text.split(" "):
        if len(word) > LONGEST_WORD or len(line) > LONGEST_WORD:
            return None
        candidate = f"{line} {word}" if line or not word else word
        # a folded line must hold more than spaces, so an empty word never starts one
        if line.strip() and word and used + len(candidate) > FOLD_AT:
            lines.append(line)
            line, used = word, 1
        else:
            line = candidate
    lines.append(line)
    return "\r\n ".join(lines)


def encoded_words(text: str, used: int = 0) -> str:
    """RFC 2047 words of at most 75 characters, folded. `used`: characters before it on its line."""
    words: list[str] = []
    room = max(12, min(WORD_BYTES, (FOLD_AT - used - 12) // 4 * 3))
    piece = bytearray()
    for character in text:
        data = character.encode("utf-8", "replace")
        if len(piece) + len(data) > room:
            words.append(_word(piece))
            piece = bytearray()
            room = WORD_BYTES
        piece += data
    if piece or not words:
        words.append(_word(piece))
    return "\r\n ".join(words)


def _word(data: bytes | bytearray) -> str:
    return f"=?utf-8?b?{binascii.b2a_base64(data, newline=False).decode()}?="


def mailbox(value: str) -> tuple[str, Address]:
    """Split "Name <address>" or "address"; raises AddressError."""
    text = CONTROLS.sub(" ", value).strip()
    pairs = split_mailboxes(text)
    if len(pairs) != 1:
        raise AddressError(f"expected one address, as in Name <user@example.com>, not {len(pairs)}")
    name, address = pairs[0]
    return name, parse_address(address)


def mailbox_field(field: str, value: str) -> bytes:
    """A whole field with one mailbox, e.g. From. Raises AddressError."""
    name, address = mailbox(value)
    return f"{field}: {_mailbox(name, address, len(field) + 2)}\r\n".encode()


def mailboxes_field(field: str, value: str) -> bytes:
    """A whole field with any number of mailboxes, each on a line of its own. Raises AddressError."""
    pairs = split_mailboxes(CONTROLS.sub(" ", value).strip())
    listed = [_mailbox(decoded(name), parse_address(address), len(field) + 2) for name, address in pairs]
    if not listed:
        raise AddressError("no address")
    return (f"{field}: " + ",\r\n ".join(listed) + "\r\n").encode()


def decoded(text: str) -> str:
    """Without encoded words, where they can be read; up to `MAX_DECODED` characters."""
    if "=?" not in text or len(text) > MAX_DECODED:
        return text
    try:
        return CONTROLS.sub(" ", str(make_header(decode_header(text))))
    except (HeaderParseError, LookupError, ValueError):
        return text


def _mailbox(name: str, address: Address, used: int) -> str:
    """`used`: characters before it on its line."""
    if not name:
        return address.text
    if not name.isascii() or "=?" in name:
        phrase = encoded_words(name, used)
    elif _PHRASE.fullmatch(name):
        phrase = name
    else:
        escaped = name.replace("\\", "\\\\").replace('"', '\\"')
        phrase = f'"{escaped}"'
    last_line = used + len(phrase) if "\r\n" not in phrase else len(phrase) - phrase.rfind("\n")
    space = " " if last_line + len(address.text) + 3 <= FOLD_AT else "\r\n "
    return f"{phrase}{space}<{address.text}>"


def parameters_field(name: str, text: str) -> bytes:
    """A whole field like Content-Type; parameters that are not ASCII in the form of RFC 2231 section 4.

    Raises ValueError.
    """
    start = text.find(";")
    first = text if start < 0 else text[:start]
    if not first.isascii():
        raise ValueError("not ASCII")
    lines = [f"{name}: {first.strip()}"]
    position = len(text) if start < 0 else start
    while position < len(text):
        match = PARAMETER.match(text, position)
        if match is None:
            if not text[position:].strip("; \t"):
                break
            raise ValueError("parameters that cannot be read")
        key, star, quoted, token = match.groups()
        if not key.isascii():
            raise ValueError("a parameter's name is not ASCII")
        if quoted is not None and not quoted.isascii():
            plain = re.sub(r"\\(.)", r"\1", quoted)
            lines += _extended(key, plain)
        elif token and not token.isascii():
            lines += _extended(key, token)
        else:
            shown = f'"{quoted}"' if quoted is not None else token
            lines.append(f" {key}{star or ''}={shown}")
        position = match.end()
    return ";\r\n".join(lines).encode() + b"\r\n"


def _extended(key: str, value: str) -> list[str]:
    encoded = quote(value, safe="!#$&+-.^_`|~")
    room = FOLD_AT - len(key) - 14
    if len(encoded) <= room:
        return [f" {key}*=utf-8''{encoded}"]
    pieces = re.findall(rf"(?:%..|[^%]){{1,{room // 3}}}", encoded)
    lines = [f" {key}*{i}*={piece}" for i, piece in enumerate(pieces)]
    lines[0] = f" {key}*0*=utf-8''{pieces[0]}"
    return lines


def has_short_lines(data: bytes) -> bool:
    """Whether every line has at most 998 octets before its CRLF: one look per 1,000 octets, not per line."""
    start = 0
    size = len(data)
    while size - start > MAX_LINE + 2:
        end = data.rfind(b"\n", start, start + MAX_LINE + 2)
        if end < 0:
            return False
        start = end + 1
    return True

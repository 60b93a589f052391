"""RFC 6376 section 3.4 word for word: the oracle of native/dkim.pyx."""

import re
from collections.abc import Sequence


def relaxed_body(body: bytes) -> bytes:
    lines = body.split(b"\r\n")
    if lines[-1] == b"":
        lines.pop()
    lines = [re.sub(rb"[ \t]+", b" ", re.sub(rb"[ \t]+$", b"", line)) for line in lines]
    while lines and lines[-1] == b"":
        lines.pop()
    return b"".join(line + b"\r\n" for line in lines)


def fields_of(head: bytes) -> list[tuple[bytes, bytes]]:
    """(lower-case name, value with folds) of each field."""
    unfolded = re.sub(rb"\r\n(?=[ \t])", b"\0", head)
    fields = []
    for line in unfolded.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if colon:
            fields.append((name.rstrip(b" \t").lower(), value.replace(b"\0", b"")))
    return fields


def relaxed_headers(head: bytes, names: Sequence[tuple[bytes, bool]]) -> tuple[list[bytes], bytes]:
    listed: list[bytes] = []
    out = b""
    for name, oversigned in names:
        for found, value in reversed(fields_of(head)):
            if found == name:
                listed.append(name)
                out += name + b":" + re.sub(rb"[ \t]+", b" ", value).strip(b" \t") + b"\r\n"
        if oversigned:
            listed.append(name)
    return listed, out

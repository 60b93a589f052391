"""A slow, obvious reading of SMTP replies: the oracle of native/replies.pyx."""

import re

MAX_LINE = 8 * 1024
MAX_REPLY = 32 * 1024
MAX_TEXT = 1024
ENHANCED = re.compile(rb"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?: |$)")


def read_replies(stream: bytes) -> tuple[list[tuple[int, str, str]], bool]:
    """All complete replies, and whether what follows them is malformed."""
    replies: list[tuple[int, str, str]] = []
    lines: list[bytes] = []
    size = 0
    while True:
        raw, newline, rest = stream.partition(b"\n")
        if not newline:
            return replies, len(raw) > MAX_LINE or size + len(raw) > MAX_REPLY
        stream = rest
        size += len(raw) + 1
        if len(raw) + 1 > MAX_LINE or size > MAX_REPLY:
            return replies, True
        line = raw[:-1] if raw.endswith(b"\r") else raw
        if not re.fullmatch(rb"[2-5][0-9][0-9](?:[ -].*)?", line, re.DOTALL):
            return replies, True
        if lines and line[:3] != lines[0][:3]:
            return replies, True
        lines.append(line)
        if line[3:4] == b"-":
            continue
        replies.append((int(line[:3]), *describe(lines)))
        lines = []
        size = 0


def describe(lines: list[bytes]) -> tuple[str, str]:
    """(enhanced, text) of the lines of one reply."""
    found = ENHANCED.match(lines[0][4:])
    enhanced = found.group(1) if found else b""
    parts = []
    for line in lines:
        text = line[4:]
        again = ENHANCED.match(text)
        if enhanced and again and again.group(1) == enhanced:
            text = text[len(enhanced) :]
        text = text.lstrip(b" ").rstrip(b" \t")
        if text:
            parts.append(bytes(32 if c < 32 or c == 127 else c for c in text))
    joined = b" ".join(parts)[: MAX_TEXT * 4]
    return enhanced.decode(), joined.decode("utf-8", "replace")[:MAX_TEXT]

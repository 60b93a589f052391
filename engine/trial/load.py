"""The messages of a trial: plain text of the size asked for, each to a recipient of its own.

The recipient's local part carries the message's number, so an event or a sink's record can be traced to it.
"""

import time
from collections.abc import Sequence

from engine.values.message import Message
from engine.values.stream import Stream

BATCH = 200
BATCH_BYTES = 4 << 20  # keeps the client's memory small with large messages
BATCHES_PER_S = 10  # at a low rate batches are small, so that the rate is even

USER, AHEAD = "user", "ahead"  # local parts: of what is counted, and of what goes before it

_LINE = b"Nothing but a line of a throughput trial, repeated until the size is right.\r\n"


def batch_size(size: int, rate: float) -> int:
    """How many messages of that size one submit carries."""
    count = max(1, min(BATCH, BATCH_BYTES // size))
    return max(1, min(count, int(rate / BATCHES_PER_S))) if rate else count


def body_of(number: int, size: int) -> bytes:
    """A message of exactly `size` bytes (at least its header's)."""
    head = (
        f"From: Bench <bench@bench.invalid>\r\nSubject: Trial {number}\r\n"
        f"Message-ID: <{number}.{time.time_ns()}@bench.invalid>\r\nMIME-Version: 1.0\r\n\r\n"
    ).encode()
    text = _LINE * (max(0, size - len(head)) // len(_LINE) + 1)
    return head + text[: max(2, size - len(head) - 2)] + b"\r\n"


def batch_of(
    numbers: range, domains: Sequence[str], size: int, campaign: str, *, local_part: str = USER
) -> list[Message]:
    """Messages of the marketing stream, so that a trial on a fleet at work stays behind urgent mail."""
    return [
        Message(
            "bench@bench.invalid",
            (f"{local_part}{number}@{domains[number % len(domains)]}",),
            body_of(number, size),
            Stream.MARKETING,
            campaign=campaign,
        )
        for number in numbers
    ]


def number_of(recipient: str, *, local_part: str = USER) -> int:
    """The number of a trial's recipient."""
    return int(recipient.partition("@")[0].removeprefix(local_part))

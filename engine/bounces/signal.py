"""What a gateway tells a region about a message that it sent: an authenticated report, as bytes and back."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import msgpack

from engine.bounces.report import Failure
from engine.values.reply import Reply

VERSION = 1


class SignalKind(StrEnum):
    BOUNCE = "bounce"
    COMPLAINT = "complaint"


class Effect(StrEnum):
    """What a region did. ACTED: it is on disk. REPEATED: it was before. UNKNOWN: it has no such message, any more.
    EARLY: the message is still queued, because its delivery is not settled yet, or a host took it and did not say so.
    """

    ACTED = "acted"
    REPEATED = "repeated"
    IGNORED = "ignored"
    UNKNOWN = "unknown"
    EARLY = "early"


@dataclass(frozen=True, slots=True)
class Signal:
    """`failures`, `is_partial` and `feedback` are those of engine/bounces/report.py."""

    kind: SignalKind
    message_id: int
    at_ms: int
    failures: Sequence[Failure] = ()
    is_partial: bool = False
    feedback: str = ""


def encode_signal(signal: Signal) -> bytes:
    failures = [(failure.addresses, tuple(failure.reply)) for failure in signal.failures]
    return bytes(
        msgpack.packb(
            (
                VERSION,
                str(signal.kind),
                signal.message_id,
                signal.at_ms,
                failures,
                signal.is_partial,
                signal.feedback,
            )
        )
    )


def decode_signal(data: bytes) -> Signal:
    """ValueError: not a signal of this version."""
    version, kind, message_id, at_ms, failures, is_partial, feedback = msgpack.unpackb(data)
    if version != VERSION:
        raise ValueError(f"signal of version {version!r}: this region reads {VERSION}")
    return Signal(
        SignalKind(kind),
        message_id,
        at_ms,
        [Failure(tuple(addresses), Reply(*reply)) for addresses, reply in failures],
        is_partial,
        feedback,
    )

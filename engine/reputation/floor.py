"""The last source of a stream never leaves silently.

When every source of a stream is out of the rotation at a site, the floor policy decides: `hold` lets the mail wait,
`trickle` lets the best of them send a message now and then. Either way somebody must know: a breach is an alert.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from engine.values.stream import Stream


@dataclass(frozen=True, slots=True)
class Candidate:
    """A source as the floor sees it: `streams` it serves, whether it is in the rotation, its score."""

    number: int
    streams: frozenset[Stream]
    serves: bool
    score: int


@dataclass(frozen=True, slots=True)
class Breach:
    """No source of `stream` is left; `kept` trickles, or is None when the mail is held."""

    stream: Stream
    kept: int | None


def find_breaches(candidates: Iterable[Candidate], policy: Literal["hold", "trickle"]) -> list[Breach]:
    """The streams that lost their last source. A stream that no candidate serves is no breach."""
    rows = list(candidates)
    breaches = []
    for stream in Stream:
        able = [row for row in rows if stream in row.streams]
        if not able or any(row.serves for row in able):
            continue
        best = max(able, key=lambda row: (row.score, -row.number))
        breaches.append(Breach(stream, best.number if policy == "trickle" else None))
    return breaches

"""The last source of a stream never leaves silently.

When every source that may carry a tenant's mail in a stream is out of the rotation at a site, the floor policy decides:
`hold` lets the mail wait, `trickle` lets the best of them send a message now and then. Either way somebody must know: a
breach is an alert. Looked at are the classes of tenants, and each tenant that has a source dedicated to it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from engine.reputation.serving import ALL_CLASSES, bit_of
from engine.values.quality import Quality
from engine.values.stream import Stream


@dataclass(frozen=True, slots=True)
class Candidate:
    """A source as the floor sees it: `streams` it serves, whether it is in the rotation, its score, the classes of
    tenants that it is for (bits as in engine/reputation/serving.py), and the tenant it is dedicated to."""

    number: int
    streams: frozenset[Stream]
    serves: bool
    score: int
    classes: int = ALL_CLASSES
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Breach:
    """No source of `stream` is left for `whose` mail ("": all); `kept` trickles, or is None when the mail is held."""

    stream: Stream
    kept: int | None
    whose: str = ""


def find_breaches(candidates: Iterable[Candidate], policy: Literal["hold", "trickle"]) -> list[Breach]:
    """The streams that lost their last source. A stream that no candidate serves is no breach."""
    rows = list(candidates)
    breaches = []
    for stream in Stream:
        for whose, able in _groups([row for row in rows if stream in row.streams], stream):
            if any(row.serves for row in able):
                continue
            best = max(able, key=lambda row: (row.score, -row.number))
            breaches.append(Breach(stream, best.number if policy == "trickle" else None, whose))
    return breaches


def _groups(rows: Sequence[Candidate], stream: Stream) -> list[tuple[str, list[Candidate]]]:
    """Whose mail, and the sources that may carry it; those whose sources are the same are one."""
    shared = [row for row in rows if not row.tenant]
    classes = [(q, [r for r in shared if r.classes & bit_of(int(stream), int(q))]) for q in Quality]
    found = [(f"tenants of the class {q}", able) for q, able in classes if able]
    if all(able == shared for _, able in classes):
        found = [("", shared)] if shared else []
    for tenant in sorted({row.tenant for row in rows} - {""}):
        found.append((f"the tenant {tenant}", [r for r in rows if r.tenant in ("", tenant)]))
    return found

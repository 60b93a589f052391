"""From what was seen to the figures of a drill. Pure: times are seconds on one clock, 0 at the start of the drill.

The reroute time is the longest gap between two deliveries from the fault on, the one that it falls into included. A gap
that never ends counts to the end of the watch. The drain time runs from the fault until all that had a receipt by then
has arrived.
"""

import itertools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

BIN_S = 0.1


@dataclass(frozen=True, slots=True)
class Arrival:
    """One delivery. `source` is the name of the source that it came over."""

    at_s: float
    recipient: str
    source: str


@dataclass(frozen=True, slots=True)
class Submission:
    """One batch: accepted recipients, or why there is no receipt. `region`: to which it was submitted; `taken_by`:
    whose receipt it is, with copies perhaps another's."""

    sent_s: float
    answered_s: float
    region: str
    recipients: tuple[str, ...]
    refused: int = 0
    error: str = ""
    taken_by: str = ""


@dataclass(frozen=True, slots=True)
class Watch:
    """What was seen. `fault_s`: when it was made; `end_s`: the last moment at which there was load.

    `submissions`: None if the load is not the drill's own, as on a live fleet: what was accepted is not known then, and
    an arrival is an event, of which there is one for each message, however often it was sent. `may_refuse`: the regions
    that the fault allows to refuse mail. The share of what was hit is what was submitted to the region `hit`, whoever
    sends it; where the load is not the drill's own, or `hit` is "", what came over the sources in `affected`.
    """

    arrivals: Sequence[Arrival]
    submissions: Sequence[Submission] | None
    fault_s: float
    end_s: float
    detected_s: float | None
    affected: Collection[str] = ()
    marked: Collection[str] = ()
    settled_otherwise: Collection[str] = ()
    may_refuse: Collection[str] = ()
    hit: str = ""


@dataclass(slots=True)
class Figures:
    """Seconds and counts. None: not measured; of the detection also: did not happen."""

    detection_s: float | None = None
    gap_s: float = 0.0
    share_gap_s: float | None = None
    gap_before_s: float | None = None
    drain_s: float | None = None
    accepted: int | None = None
    refused: int | None = None
    refused_elsewhere: int | None = None
    delivered: int = 0
    lost: int | None = None
    duplicated: int | None = None
    unmarked: int | None = None
    receipt_p50_ms: float | None = None
    receipt_p99_ms: float | None = None
    receipt_p99_before_ms: float | None = None
    errors: dict[str, int] = field(default_factory=dict)


OF_THE_LOAD = (
    "drain_s",
    "accepted",
    "refused",
    "refused_elsewhere",
    "lost",
    "duplicated",
    "unmarked",
    "receipt_p50_ms",
    "receipt_p99_ms",
    "receipt_p99_before_ms",
)
"""Figures that only a load of the drill's own gives."""


def figures_of(watch: Watch) -> Figures:
    arrivals = sorted(watch.arrivals, key=lambda arrival: arrival.at_s)
    times = [arrival.at_s for arrival in arrivals]
    before = [time for time in times if time <= watch.fault_s]
    share = share_of(watch, arrivals)
    counts = Counter(arrival.recipient for arrival in arrivals)
    found = Figures(
        detection_s=None if watch.detected_s is None else watch.detected_s - watch.fault_s,
        gap_s=longest_gap(times, watch.fault_s, watch.end_s),
        gap_before_s=longest_gap(before, 0.0, watch.fault_s, leading=False) if before else None,
        delivered=len(counts),
    )
    if share and share[0] <= watch.fault_s:  # what sent nothing before the fault is not missed after it
        found.share_gap_s = longest_gap(share, watch.fault_s, watch.end_s)
    if watch.submissions is not None:
        _add_load(found, watch, watch.submissions, counts)
        found.drain_s = _drain_s(arrivals, watch.submissions, watch.fault_s)
    return found


def share_of(watch: Watch, arrivals: Sequence[Arrival]) -> list[float]:
    """When what was hit arrived, in the order of `arrivals`."""
    if watch.hit and watch.submissions is not None:
        theirs = {r for s in watch.submissions if s.region == watch.hit for r in s.recipients}
        return [arrival.at_s for arrival in arrivals if arrival.recipient in theirs]
    return [arrival.at_s for arrival in arrivals if arrival.source in watch.affected]


def _drain_s(arrivals: Sequence[Arrival], submissions: Sequence[Submission], fault_s: float) -> float:
    """`arrivals` ascending. What never arrives is lost, and counted as that."""
    left = {r for s in submissions if s.answered_s <= fault_s for r in s.recipients}
    last_s = fault_s
    for arrival in arrivals:
        if arrival.recipient in left:
            left.remove(arrival.recipient)
            last_s = max(last_s, arrival.at_s)
    return last_s - fault_s


def _add_load(
    found: Figures, watch: Watch, submissions: Sequence[Submission], counts: Mapping[str, int]
) -> None:
    """What is known because the load is the drill's own."""
    accepted = [recipient for submission in submissions for recipient in submission.recipients]
    twice = {recipient for recipient, count in counts.items() if count > 1}
    waits = [(s.sent_s, (s.answered_s - s.sent_s) * 1e3) for s in submissions if s.recipients]
    found.accepted = len(accepted)
    found.refused = sum(submission.refused for submission in submissions)
    found.refused_elsewhere = sum(s.refused for s in submissions if s.region not in watch.may_refuse)
    found.lost = len(set(accepted) - counts.keys() - set(watch.settled_otherwise))
    found.duplicated = len(twice)
    found.unmarked = len(twice - set(watch.marked))
    found.receipt_p50_ms = _share([wait for _, wait in waits], 0.5)
    found.receipt_p99_ms = _share([wait for sent, wait in waits if sent >= watch.fault_s], 0.99)
    found.receipt_p99_before_ms = _share([wait for sent, wait in waits if sent < watch.fault_s], 0.99)
    found.errors = dict(Counter(s.error for s in submissions if s.error))


def longest_gap(times: Sequence[float], from_s: float, to_s: float, *, leading: bool = True) -> float:
    """The longest time without a delivery that overlaps [from_s, to_s]; `times` ascending.

    `leading`: whether the time between `from_s` and the first delivery ever counts.
    """
    before = [time for time in times if time <= from_s]
    after = [time for time in times if time > from_s]
    marks = [before[-1]] if before else [from_s] if leading else []
    for time in after:
        marks.append(time)
        if time >= to_s:
            break
    if not marks or marks[-1] < to_s:
        marks.append(to_s)
    return max((later - earlier for earlier, later in itertools.pairwise(marks)), default=0.0)


def _share(values: Sequence[float], share: float) -> float | None:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else None


def binned(times: Sequence[float], end_s: float) -> list[int]:
    """How many fall into each tenth of a second."""
    bins = [0] * (int(end_s / BIN_S) + 1)
    for time in times:
        if 0 <= time <= end_s:
            bins[int(time / BIN_S)] += 1
    return bins

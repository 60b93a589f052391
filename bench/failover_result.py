"""The result of bench/failover.py: a file that is whole after every round, what it says, and its table (README)."""

import json
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from bench.harness import commit, machine

PRICE = "price"
HEADINGS = (
    "fault",
    "rounds",
    "detection, s",
    "reroute, s",
    "gap before, s",
    "drain, s",
    "receipts p99, ms",
    "accepted",
    "lost",
    "twice, unmarked",
)
TWICE_WITHIN_S = 0.5  # what was settled so lately may not have been known to the standby
SECONDS = ("detection_s", "share_gap_s", "share_gap_before_s", "drain_s")


class Result:
    """See the module docstring. `document` is what the file holds."""

    def __init__(self, path: Path, document: dict[str, Any]) -> None:
        self._path = path
        self.document = document

    @classmethod
    def read(cls, path: Path, settings: Mapping[str, object] | None, *, is_fresh: bool) -> Self:
        """What is there, to go on with; ValueError if it is of other settings or another machine, or not a result.

        `settings` None: only to look at it.
        """
        here = machine()
        if is_fresh or not path.exists():
            if settings is None:
                raise ValueError(f"{path} does not exist: run the bench first")
            head = {"bench": "failover", "machine": here, "durable": True, "settings": dict(settings)}
            return cls(path, {**head, "rounds": {}})
        try:
            document = json.loads(path.read_text())
            found = {"settings": document["settings"], "machine": document["machine"]}
            document["rounds"].items()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is not a result of this bench ({error!r}): --fresh begins anew"
            ) from None
        if settings is not None:
            for name, wanted in (("settings", dict(settings)), ("machine", here)):
                if found[name] != wanted:
                    raise ValueError(
                        f"{path} was measured with {name} {found[name]}, and these are {wanted}: --fresh begins anew"
                    )
        return cls(path, document)

    def count(self, name: str) -> int:
        return len(self.document["rounds"].get(name, []))

    def add(self, name: str, figures: Mapping[str, Any]) -> None:
        """Returns when it is in the file."""
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.document["rounds"].setdefault(name, []).append({"at": at, "commit": commit(), **figures})
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_suffix(".new")
        draft.write_text(json.dumps(self.document, indent=1) + "\n")
        draft.replace(self._path)


def faults_of(document: Mapping[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for name, rounds in document["rounds"].items():
        if not name.startswith("replicas"):
            yield name, rounds


def failures(document: Mapping[str, Any]) -> list[str]:
    """What must not be, of all rounds."""
    found = [
        f"{name}, round {number}: {figures[key]} {text}"
        for name, rounds in faults_of(document)
        for number, figures in enumerate(rounds, 1)
        for key, text in (("lost", "messages lost"), ("unmarked", "sent twice without the mark"))
        if figures[key]
    ]
    for name, rounds in faults_of(document):
        for number, figures in enumerate(rounds, 1):
            if "oldest_twice_s" not in figures:
                continue  # a round from before this was measured
            if figures["oldest_twice_s"] > TWICE_WITHIN_S:
                found.append(
                    f"{name}, round {number}: what came {figures['oldest_twice_s']:.1f} s before the fault came again"
                )
    for name, rounds in document["rounds"].items():
        if name.startswith("replicas"):
            found += [
                f"{name}, round {number}: {figures['unique']} of {figures['messages']} messages arrived"
                for number, figures in enumerate(rounds, 1)
                if figures["unique"] != figures["messages"]
            ]
    return found


def table(document: Mapping[str, Any]) -> list[str]:
    """Markdown: medians, and the worst in parentheses."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|---" * len(HEADINGS) + "|"]
    for name, rounds in faults_of(document):
        cells = [name, str(len(rounds))]
        cells += [_both([figures[key] for figures in rounds], 2) for key in SECONDS]
        cells.append(_both([figures["receipt_p99_ms"] for figures in rounds], 0))
        sums = {
            key: sum(figures[key] for figures in rounds)
            for key in ("accepted", "lost", "duplicated", "unmarked")
        }
        cells += [f"{sums['accepted']:,}", str(sums["lost"]), f"{sums['duplicated']:,}, {sums['unmarked']}"]
        lines.append("| " + " | ".join(cells) + " |")
    rates = [figures["accepted_per_s"] for _, rounds in faults_of(document) for figures in rounds]
    if rates:
        lines += [
            "",
            f"Asked for {document['settings']['rate']:,.0f} messages/s, accepted {_both(rates, 0, min)}.",
        ]
    pairs = list(
        zip(*(document["rounds"].get(name, []) for name in ("replicas-0", "replicas-1")), strict=False)
    )
    if pairs:
        speeds = [
            [part["messages"] / part["seconds"] for part in parts] for parts in zip(*pairs, strict=True)
        ]
        ratios = [with_copies / without for without, with_copies in zip(*speeds, strict=True)]
        lines += [
            "",
            f"Without copies {statistics.median(speeds[0]):,.0f} messages/s, with {statistics.median(speeds[1]):,.0f}: "
            f"{_both(ratios, 2, min)} of it, {len(ratios)} rounds.",
        ]
    return lines


def _both(values: list[float | None], digits: int, worst: Any = max) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):,.{digits}f} ({worst(known):,.{digits}f})" if known else "-"

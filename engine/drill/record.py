"""The record of one drill: what JSON files, the HTML report and the history are made of."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from engine.drill.figures import Figures
from engine.drill.scenarios import Scenario

VERSION = 1
_NAME = re.compile(r"[0-9]{8}T[0-9]{6}Z-[a-z-]+(?:-[0-9]+)?\.json")


@dataclass(frozen=True, slots=True)
class Check:
    """One assertion: `is_met`, and in words what was wanted and found."""

    name: str
    is_met: bool
    text: str


@dataclass(slots=True)
class DrillRecord:
    """`at` is UTC as 20260131T120000Z. `marks` are (seconds, text); series count deliveries per tenth of a second."""

    scenario: str
    title: str
    expects: str
    at: str
    fleet: str
    is_live: bool
    target: str
    rate: float
    caveat: str = ""
    figures: Figures = field(default_factory=Figures)
    checks: list[Check] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)
    delivered: list[int] = field(default_factory=list)
    delivered_share: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    machine: str = ""

    @property
    def is_passed(self) -> bool:
        return bool(self.checks) and all(check.is_met for check in self.checks)


def judge(scenario: Scenario, figures: Figures, *, extra: Mapping[str, bool]) -> list[Check]:
    """The assertions of a drill. `extra`: what the scenario looks at besides the figures, in words."""
    bounds = scenario.bounds
    checks = [
        Check(
            "nothing lost",
            figures.lost == 0,
            f"{figures.lost} of {figures.accepted} accepted messages lost"
            if figures.accepted
            else "the drill submitted nothing: see the audit",
        ),
        Check(
            "duplicates are marked",
            figures.unmarked == 0,
            f"{figures.duplicated} sent twice, {figures.unmarked} of them without the mark",
        ),
        Check("there was load", figures.delivered > 0, f"{figures.delivered} messages delivered"),
    ]
    for name, found, bound in (
        ("detected in time", figures.detection_s, bounds.detection_s),
        ("deliveries go on", figures.gap_s, bounds.gap_s),
        ("what was hit is rerouted", figures.share_gap_s, bounds.share_gap_s),
    ):
        if bound is not None:
            text = "did not happen" if found is None else f"{found:.2f} s"
            checks.append(Check(name, found is not None and found <= bound, f"{text}, at most {bound:g} s"))
    checks += [Check(text, is_met, "yes" if is_met else "no") for text, is_met in extra.items()]
    return checks


def write_record(record: DrillRecord, directory: Path) -> Path:
    """Write it as JSON into the history, under a name of its own; returns the path."""
    directory.mkdir(parents=True, exist_ok=True)
    data = json.dumps({"version": VERSION, "passed": record.is_passed, **asdict(record)}, indent=1) + "\n"
    for number in range(1, 1000):
        suffix = "" if number == 1 else f"-{number}"
        path = directory / f"{record.at}-{record.scenario}{suffix}.json"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            continue
        with os.fdopen(descriptor, "w") as file:
            file.write(data)
        return path
    raise FileExistsError(f"{directory}: a thousand drills of {record.scenario} in one second")


def read_records(directory: Path) -> tuple[list[DrillRecord], list[str]]:
    """All drills of a history, oldest first, and what could not be read."""
    records, problems = [], []
    for path in sorted(directory.glob("*.json"), key=_order) if directory.is_dir() else ():
        if not _NAME.fullmatch(path.name):
            continue
        try:
            records.append(_parse(path.read_text()))
        except (OSError, ValueError, TypeError, KeyError) as error:
            problems.append(f"{path}: not a drill's record: {error}")
    return records, problems


def _order(path: Path) -> tuple[str, int, str]:
    """By time, and by number within one second."""
    return path.stem[:16], len(path.stem), path.stem


def _parse(text: str) -> DrillRecord:
    data = json.loads(text)
    if data["version"] != VERSION:
        raise ValueError(f"version {data['version']}: allowed is {VERSION}")
    known = {f.name for f in fields(DrillRecord)}
    values = {key: value for key, value in data.items() if key in known}
    values["figures"] = Figures(**data["figures"])
    values["checks"] = [Check(**check) for check in data["checks"]]
    values["marks"] = [(float(at_s), str(name)) for at_s, name in data["marks"]]
    return DrillRecord(**values)

"""The record of one drill: what JSON files, the HTML report and the history are made of."""

import json
import os
import platform
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from engine.drill.figures import OF_THE_LOAD, Figures
from engine.drill.scenarios import Scenario

VERSION = 3
NOT_MEASURED = "not measured"
_NAME = re.compile(r"[0-9]{8}T[0-9]{6}Z-[a-z-]+(?:-[0-9]+)?\.json")


@dataclass(frozen=True, slots=True)
class Check:
    """One assertion: `is_met` (None: not measured), and in words what was wanted and found."""

    name: str
    is_met: bool | None
    text: str

    @property
    def state(self) -> str:
        return "not measured" if self.is_met is None else "met" if self.is_met else "not met"


@dataclass(slots=True)
class DrillRecord:
    """`at` is UTC as 20260131T120000Z. `marks` are (seconds, text); series count deliveries per tenth of a second.

    `at` is of the fault, or of the beginning if it came to none. `not_run`: why the scenario was not run, "" if it was;
    `is_lacking`: this machine lacks what it needs. `failure`: why it was begun and has no figures, "" if it has.
    `replicas`: the fleet's; None in older records.
    """

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
    not_run: str = ""
    is_lacking: bool = False
    failure: str = ""
    replicas: int | None = None

    @property
    def is_passed(self) -> bool:
        states = [check.is_met for check in self.checks]
        return not self.reason and True in states and False not in states

    @property
    def reason(self) -> str:
        """Why there are no figures, "" if there are."""
        return self.not_run or self.failure

    @property
    def kind(self) -> tuple[object, ...]:
        """Figures of drills of the same kind can be compared: another rate or machine has other ones."""
        machine = self.machine.partition(", Linux ")[0]
        return self.scenario, self.fleet, self.is_live, self.rate, self.replicas, machine

    @property
    def verdict(self) -> str:
        if self.not_run:
            return "not run" if self.is_lacking else "refused"
        return "passed" if self.is_passed else "not passed"


def record_of(
    scenario: Scenario, *, fleet: str, is_live: bool, target: str, at_s: float, not_run: str = ""
) -> DrillRecord:
    """Without figures. `at_s`: unix seconds."""
    return DrillRecord(
        scenario=scenario.name,
        title=scenario.title,
        expects=scenario.expects,
        at=time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at_s)),
        fleet=fleet,
        is_live=is_live,
        target=target,
        rate=0.0,
        machine=f"{platform.node()}, {os.cpu_count()} cores, {platform.machine()}, Linux {platform.release()}",
        not_run=not_run,
    )


def judge(scenario: Scenario, figures: Figures, *, extra: Mapping[str, bool | None]) -> list[Check]:
    """The assertions of a drill. `extra`: what the scenario looks at besides the figures, in words."""
    bounds = scenario.bounds
    lost = unmarked = NOT_MEASURED
    if figures.accepted:
        lost = f"{figures.lost} of {figures.accepted} accepted messages lost"
    if figures.unmarked is not None:
        unmarked = f"{figures.duplicated} sent twice, {figures.unmarked} of them without the mark"
    is_loaded = figures.delivered > 0 and figures.accepted != 0
    elsewhere = figures.refused_elsewhere
    refused = NOT_MEASURED if elsewhere is None else f"{elsewhere} messages"
    checks = [
        Check("nothing lost", figures.lost == 0 if figures.accepted else None, lost),
        Check("duplicates are marked", None if figures.unmarked is None else figures.unmarked == 0, unmarked),
        Check(
            "nothing refused where nothing was hit", None if elsewhere is None else elsewhere == 0, refused
        ),
        Check("there was load", is_loaded, f"{figures.delivered} messages delivered"),
    ]
    if bounds.detection_s is not None:
        found_s = figures.detection_s
        text = "did not happen" if found_s is None else f"{found_s:.2f} s"
        is_met = found_s is not None and found_s <= bounds.detection_s
        checks.append(Check("detected in time", is_met, f"{text}, at most {bounds.detection_s:g} s"))
    for name, found, bound in (
        ("deliveries go on", figures.gap_s, bounds.gap_s),
        ("what was hit is rerouted", figures.share_gap_s, bounds.share_gap_s),
    ):
        if bound is not None:
            text = NOT_MEASURED if found is None else f"{found:.2f} s"
            checks.append(
                Check(name, None if found is None else found <= bound, f"{text}, at most {bound:g} s")
            )
    words = {None: NOT_MEASURED, True: "yes", False: "no"}
    checks += [Check(text, is_met, words[is_met]) for text, is_met in extra.items()]
    return checks


def write_record(record: DrillRecord, directory: Path) -> Path:
    """Write it as JSON into the history, under a name of its own; returns the path."""
    directory.mkdir(parents=True, exist_ok=True)
    head = {"version": VERSION, "passed": record.is_passed, "verdict": record.verdict}
    data = json.dumps({**head, **asdict(record)}, indent=1) + "\n"
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
    if data["version"] not in range(1, VERSION + 1):
        raise ValueError(f"version {data['version']}: allowed are 1 to {VERSION}")
    if data["version"] == 1 and data["is_live"]:  # it has zeros for what was not measured
        data["figures"] |= dict.fromkeys(OF_THE_LOAD)
    if data["version"] < 3:  # from the end of the load, and so about zero
        data["figures"]["drain_s"] = None
    known = {f.name for f in fields(DrillRecord)}
    values = {key: value for key, value in data.items() if key in known}
    values["figures"] = Figures(**data["figures"])
    values["checks"] = [Check(**check) for check in data["checks"]]
    values["marks"] = [(float(at_s), str(name)) for at_s, name in data["marks"]]
    return DrillRecord(**values)

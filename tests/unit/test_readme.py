"""The README says how many cases of what are tested; the tests themselves say whether that is so."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.fault.test_hostile_server import number_of_cases
from tests.fault.test_spool_kill_points import LEAST_KILLS

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\|[^|]+\| ([\d,]+) \| (tests/\S+\.py) \|$", re.MULTILINE)

STALE = 0.8  # a number that is smaller than this share of the truth tells too little


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_there_are_as_many_cases_as_are_told() -> None:
    told = {path: number(count) for count, path in ROW.findall((ROOT / "README.md").read_text())}
    assert len(told) >= 5
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *told],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert collected.returncode == 0, collected.stdout + collected.stderr
    counted = Counter(line.partition("::")[0] for line in collected.stdout.splitlines() if "::" in line)
    counted["tests/fault/test_hostile_server.py"] = number_of_cases()  # many in one test
    for path, count in told.items():
        assert STALE * counted[path] <= count <= counted[path], f"{path} has {counted[path]} cases"


def test_kills_rounds_and_messages_are_those_that_are_run() -> None:
    readme = " ".join((ROOT / "README.md").read_text().split())
    found = re.search(r"at least (\d+) kills in each run", readme)
    assert found is not None
    assert int(found[1]) == LEAST_KILLS
    crash = (ROOT / "tests" / "ray" / "test_crash.py").read_text()
    makefile = (ROOT / "Makefile").read_text()
    found = re.search(
        r"CI does one round with ([\d,]+) messages; `make soak` does (\d+) rounds with ([\d,]+)", readme
    )
    assert found is not None
    assert f'"SENDFLEET_CRASH_MESSAGES", "{number(found[1])}"' in crash
    assert '"SENDFLEET_CRASH_ROUNDS", "1"' in crash
    assert f"ROUNDS ?= {found[2]}\n" in makefile
    assert f"MESSAGES ?= {number(found[3])}\n" in makefile


def test_every_file_that_the_documents_name_is_there() -> None:
    """Links between documents, and example files in commands."""
    missing = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = path.read_text()
        for target in re.findall(r"\]\(([^)#:\s]+)\)", text):
            if not (path.parent / target).exists():
                missing.append(f"{path.relative_to(ROOT)}: {target}")
        for target in re.findall(r"\b(?:examples|tools)/[\w./-]*\w", text):
            if not (ROOT / target).exists():
                missing.append(f"{path.relative_to(ROOT)}: {target}")
    assert missing == []

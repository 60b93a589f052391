"""Every drill once, each on a temporary fleet of its own: does each mechanism work on this machine, and how fast?

    python -m bench.drills [--scenario NAME]... [--rate 100] [--note TEXT] [--result FILE]

What `sendfleet drill` finds and its exit status, scenario by scenario, in bench/results/drills.json; with `--scenario`
these alone are taken anew. `dns` is run with the name server that tools/install_test_servers.sh has unpacked. Exit
status 0 only if no drill failed; what this machine cannot run (3) is in the result with the reason.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from actors.undertaker import Undertaker
from bench.harness import RESULTS, commit, machine
from bench.servers import TOOLS, environment
from engine.cli.drill import NOT_RUN
from engine.drill.record import DrillRecord, read_records
from engine.drill.scenarios import SCENARIOS

LONGEST_S = 600.0
FIGURES = (
    "detection_s",
    "gap_s",
    "share_gap_s",
    "gap_before_s",
    "drain_s",
    "accepted",
    "refused",
    "lost",
    "duplicated",
    "unmarked",
    "receipt_p99_ms",
    "receipt_p99_before_ms",
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.drills", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--scenario", action="append", choices=list(SCENARIOS), help="only this; may be given again"
    )
    parser.add_argument("--rate", type=float, default=100.0, help="messages per second")
    parser.add_argument("--result", type=Path, help="another file than bench/results/drills.json")
    parser.add_argument("--note", default="", help="kept with the result, as that the machine was not idle")
    options = parser.parse_args(arguments)
    path = options.result or RESULTS / "drills.json"
    results = json.loads(path.read_text())["results"] if options.scenario and path.exists() else {}
    with Undertaker() as undertaker, tempfile.TemporaryDirectory(prefix="sf-") as name:
        directory = Path(name)
        undertaker.take(directory)
        surroundings = _with_knot(directory)
        for scenario in options.scenario or SCENARIOS:
            results[scenario] = run(scenario, directory / scenario, options.rate, surroundings)
            print(
                f"{scenario}: {results[scenario]['verdict']}, {results[scenario]['seconds']:.0f} s",
                flush=True,
            )
            document = {
                "bench": "drills",
                "machine": machine(),
                "settings": {"rate": options.rate, "note": options.note},
                "results": results,
            }
            path.write_text(
                json.dumps(document, indent=1) + "\n"
            )  # each, in case that the next is interrupted
    return int(any(result["status"] not in (0, NOT_RUN) for result in results.values()))


def _with_knot(directory: Path) -> dict[str, str]:
    """The environment in which `knotd` is the unpacked one with its own libraries; as it is, if there is none."""
    program = TOOLS / "usr/sbin/knotd"
    if not program.exists():
        return dict(os.environ)
    wrapper = directory / "bin" / "knotd"
    wrapper.parent.mkdir()
    libraries = environment()["LD_LIBRARY_PATH"]
    wrapper.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH="{libraries}" exec "{program}" "$@"\n')
    wrapper.chmod(0o755)
    return os.environ | {"PATH": f"{wrapper.parent}:{os.environ['PATH']}"}


def run(scenario: str, directory: Path, rate: float, surroundings: dict[str, str]) -> dict[str, Any]:
    """One drill in a process of its own; what it found."""
    command = [sys.executable, "-m", "actors", "drill", "--scenario", scenario]
    command += ["--directory", str(directory), "--rate", f"{rate:g}"]
    began_s = time.monotonic()
    try:
        status = subprocess.run(command, env=surroundings, timeout=LONGEST_S, stdout=sys.stderr).returncode
    except subprocess.TimeoutExpired:
        status = -1
    found: dict[str, Any] = {
        "status": status,
        "verdict": "no result",
        "seconds": round(time.monotonic() - began_s, 1),
    }
    records, _ = read_records(directory)
    return {**found, **_of(records[0])} if records else found


def _of(record: DrillRecord) -> dict[str, Any]:
    figures = asdict(record.figures)
    return {
        "at": record.at,
        "commit": commit(),
        "verdict": record.verdict,
        "reason": record.reason,
        "not_met": [f"{check.name} ({check.text})" for check in record.checks if check.is_met is False],
        "not_measured": [check.name for check in record.checks if check.is_met is None],
        **{name: figures[name] for name in FIGURES if not record.reason},
        "errors": figures["errors"],
        "notes": record.notes,
    }


if __name__ == "__main__":
    sys.exit(main())

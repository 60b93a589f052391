"""The demo: a campaign of 10,000 recipients through a two-region fleet on loopback, and an audit at the end.

Run by `make demo`. Everything happens in var/demo: a sink with five provider personalities, a fleet of two Ray nodes,
a recipients file with some bad rows. Exit status 0 only if every recipient of the file is accounted for, in the
fleet's own books and in the sink's.
"""

import argparse
import importlib
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import yaml

from actors.environment import prepare
from engine.config.load import load_fleet
from engine.sink.log import SinkLog

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "var" / "demo"
FLEET = WORK / "fleet.yaml"
SENDFLEET = [sys.executable, "-m", "actors"]
DRAIN_TIMEOUT_S = 120


def write_fleet() -> None:
    fleet = yaml.safe_load((ROOT / "examples" / "fleet.yaml").read_text())
    fleet["spool"]["directory"] = str(WORK / "spool")
    fleet["events"]["directory"] = str(WORK / "events")
    FLEET.write_text(yaml.safe_dump(fleet, sort_keys=False))


def write_campaign(count: int) -> Path:
    example = ROOT / "examples" / "campaign"
    target = WORK / "campaign"
    shutil.copytree(example, target)
    subprocess.run(
        [
            sys.executable,
            str(target / "make_recipients.py"),
            "--count",
            str(count),
            str(target / "recipients.csv"),
        ],
        check=True,
    )
    return target / "campaign.yaml"


def sendfleet(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    print(f"\n$ sendfleet {' '.join(arguments)}", flush=True)
    return subprocess.run([*SENDFLEET, *arguments, "--fleet", str(FLEET)], check=check, text=True, cwd=ROOT)


def drain() -> None:
    """Wait until nothing is queued, with one connected client: a command for each look would load the machine."""
    client = importlib.import_module("actors.client").connect(FLEET)
    deadline = time.monotonic() + DRAIN_TIMEOUT_S
    while True:
        regions = client.snapshot()["regions"]
        counts = {name: region.get("counts", {}) for name, region in regions.items()}
        line = "   ".join(
            f"{region}: " + " ".join(f"{kind} {number}" for kind, number in sorted(of.items()) if number)
            for region, of in counts.items()
        )
        print(f"  {line}", flush=True)
        if all(of.get("queued") == 0 for of in counts.values()):
            client.close()
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"demo: still queued after {DRAIN_TIMEOUT_S} s: {counts}")
        time.sleep(1)


def compare_with_sink(log: Path) -> None:
    """Every recipient that the fleet calls delivered has been accepted by the sink, once, and no other."""
    accepted = SinkLog(log).recipients()
    events: Counter[str] = Counter()
    marked = set()
    for path in sorted((WORK / "events").glob("*/events-*.jsonl")):
        for line in path.read_text().splitlines():
            event = json.loads(line)
            if event["event"] == "delivered":
                events[event["recipient"]] += 1
                if event["possible_duplicate"]:
                    marked.add(event["recipient"])
    twice = {recipient for recipient, count in accepted.items() if count > 1} - marked
    missing = set(events) - set(accepted)
    unknown = set(accepted) - set(events)
    print(
        f"\nsink: {sum(accepted.values())} accepted, {len(accepted)} recipients; fleet: {len(events)} delivered"
    )
    if twice or missing or unknown:
        raise SystemExit(
            f"demo: sent twice {len(twice)}, not at the sink {len(missing)}, unknown {len(unknown)}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipients", type=int, default=10_000)
    arguments = parser.parse_args()
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    write_fleet()
    campaign = write_campaign(arguments.recipients)
    prepare(load_fleet(FLEET))  # before Ray is imported
    sink_log = WORK / "sink.jsonl"
    sink = subprocess.Popen(
        [*SENDFLEET, "sink", "--log", str(sink_log)],
        cwd=ROOT,
    )
    try:
        sendfleet("up")
        started = time.monotonic()
        sendfleet("send", str(campaign))
        drain()
        print(f"drained {time.monotonic() - started:.1f} s after the campaign began")
        sendfleet("audit")
        compare_with_sink(sink_log)
        time.sleep(0.3)
    finally:
        sendfleet("down", check=False)
        sink.terminate()
        sink.wait(10)
    print("demo: every message is accounted for")
    return 0


if __name__ == "__main__":
    sys.exit(main())

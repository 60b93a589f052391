"""A steady load on a fleet of this machine: `python -m tests.support.drill_load FLEET` until its input ends.

A line with a number says that it runs; then, as JSON, the recipients for which there is a receipt.
"""

import asyncio
import importlib
import json
import sys
import time
from pathlib import Path

from actors.drill.fleets import DOMAIN, RunningFleet
from actors.environment import prepare
from actors.local_cluster import LocalCluster
from engine.config.load import load_fleet
from engine.drill.load import Load

RATE = 50.0


async def run(running: RunningFleet, regions: tuple[str, ...]) -> list[str]:
    load = Load(running, regions, DOMAIN, RATE, began_s=time.monotonic())
    load.start()
    print(RATE, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await load.stop()
    return [recipient for submission in load.submissions for recipient in submission.recipients]


def main() -> None:
    config = load_fleet(Path(sys.argv[1]))
    prepare(config)
    importlib.import_module("actors.deploy").connect_ray(LocalCluster(config).address())
    regions = tuple(region.name for region in config.regions)
    print(json.dumps(asyncio.run(run(RunningFleet(config), regions))))


if __name__ == "__main__":
    main()

"""A client in a process of its own, for tests that kill everything: `python -m tests.support.ray_driver`.

submit FLEET COUNT   submit COUNT messages in batches whose keys depend on their number only: doing it again is safe
drain FLEET          return when no region has anything queued
"""

import argparse
import asyncio
from pathlib import Path

from actors.client import connect
from tests.support.ray_fleet import messages

BATCH = 100


async def submit(client: object, count: int) -> None:
    for first in range(0, count, BATCH):
        batch = messages(min(BATCH, count - first), first=first)
        receipt = await client.submit(batch, key=first.to_bytes(16, "big"))  # type: ignore[attr-defined]
        assert not receipt.errors
        print(first + len(batch), flush=True)


async def drain(client: object) -> None:
    while True:
        regions = (await client.snapshot())["regions"].values()  # type: ignore[attr-defined]
        if all(region.get("counts", {}).get("queued") == 0 for region in regions):
            return
        await asyncio.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("task", choices=("submit", "drain"))
    parser.add_argument("fleet", type=Path)
    parser.add_argument("count", type=int, nargs="?", default=0)
    arguments = parser.parse_args()
    client = connect(arguments.fleet).asynchronous
    asyncio.run(submit(client, arguments.count) if arguments.task == "submit" else drain(client))


if __name__ == "__main__":
    main()

"""What the suppression list costs when mail is accepted and dispatched: none, 100,000 rows, and 1,000,000.

    python -m bench.suppression [--messages 50000]

One spool, batches of 500 small messages, each batch accepted and put in flight; every commit synced. "Changed since":
the list is changed after the mail was accepted, so each message is looked up again at dispatch.
"""

import argparse
import os
import shutil
import struct
import sys
import tempfile
import time
from pathlib import Path

from bench.harness import Measurement, compare, print_results, write_result
from engine.spool.batches import AcceptBatch, AcceptItem
from engine.spool.store import Spool, SpoolOptions
from engine.values.clock import SystemClock
from engine.values.suppression import ANY_STREAM, Reason, Suppression

BATCH = 500
PAGE = 5000
BODY = b"Subject: x\r\n\r\nx\r\n"


def run(rows: int, messages: int, *, old: bool) -> Measurement:
    path = Path(tempfile.mkdtemp(prefix="suppression-"))
    clock = SystemClock()
    spool = Spool.open(path, region_number=1, clock=clock, options=SpoolOptions(min_free=0))
    try:
        for first in range(0, rows, PAGE):
            page = [_row(number) for number in range(first, min(rows, first + PAGE))]
            spool.suppress(page, log=False).result()
        batches = [_batch(first) for first in range(0, messages, BATCH)]
        started = time.monotonic()
        results = [spool.accept(batch) for batch in batches]
        ids = [[id_ for item in result.result().ids for id_ in item] for result in results]
        accepted = time.monotonic()
        if old and rows:
            spool.suppress([_row(rows + 1)], log=False).result()
        flying = [
            spool.dispatch(number, struct.pack(f"<{len(group)}Q", *group), {})
            for number, group in enumerate(ids, 1)
        ]
        if any(future.result() for future in flying):
            raise ValueError("nobody in this bench is on the list")
        ended = time.monotonic()
        per_accept, per_dispatch = (accepted - started) / messages, (ended - accepted) / messages
    finally:
        spool.close()
        shutil.rmtree(path)
    return Measurement(
        messages,
        ended - started,
        None,
        {"accept_us": per_accept * 1e6, "dispatch_us": per_dispatch * 1e6},
    )


def _row(number: int) -> Suppression:
    return Suppression(f"gone{number}@example.net", "default", ANY_STREAM, Reason.HARD_BOUNCE, 1, number)


def _batch(first: int) -> AcceptBatch:
    items = [
        AcceptItem(
            "a@example.com",
            (f"user{number}@example.net",),
            ("example.net",),
            2,
            "default",
            "",
            index * len(BODY),
            len(BODY),
            1_800_000_000_000,
            1_800_100_000_000,
        )
        for index, number in enumerate(range(first, first + BATCH))
    ]
    return AcceptBatch(os.urandom(16), items, BODY * BATCH)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=50_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    messages = options.messages
    runs = {
        "no list": lambda: run(0, messages, old=False),
        "100,000 rows": lambda: run(100_000, messages, old=False),
        f"{options.rows:,} rows": lambda: run(options.rows, messages, old=False),
        f"{options.rows:,} rows, changed since": lambda: run(options.rows, messages, old=True),
    }
    results = compare(runs, repeats=options.repeats)
    print_results("accept and dispatch beside a suppression list, every commit synced", results)
    write_result("suppression", results, settings={"messages": messages, "batch": BATCH}, is_durable=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How fast a source leaves the rotation: milliseconds from a provider's first S3140 to the last message that the burned
source still offered, and to the first that another source delivered. Target: 100 ms.

A region with its pools in one process against a sink that begins to block one of two client addresses after some
messages. Times are those of the sink, so they hold everything: the wire, the pool's report, the region's decision.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from bench.harness import Measurement, compare, print_results, write_result
from engine.config.schema import FleetConfig
from engine.sink.process import SinkProcess
from engine.values.message import Message
from engine.values.stream import Stream
from engine.values.submission import decode_receipt, encode_submission
from tests.support.region import fleet, start_region, until

BURNED = "127.0.0.11"
S3140 = (
    "550 5.7.1 Unfortunately, messages from [127.0.0.11] weren't sent. Please contact your Internet service "
    "provider since part of their network is on our block list (S3140)."
)
BODY = b"From: a@example.com\r\nTo: b@example.org\r\nMessage-ID: <%d@example.com>\r\n\r\nhello\r\n"


def burned_fleet(directory: Path, port: int) -> FleetConfig:
    route = {"domains": ["*"], "hosts": [f"127.0.0.1:{port}"], "provider": "outlook"}
    plain = {"provider": "outlook", "mode": "disabled", "reason": "loopback bench"}
    return fleet(directory, port, routes=[route], tls={"exceptions": [plain]})


def run(messages: int, after: int) -> Measurement:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        personalities = directory / "personalities.yaml"
        personalities.write_text(
            "personalities:\n  outlook:\n    block:\n"
            f"      clients: ['{BURNED}']\n      after: {after}\n      lasts: 1h\n      reply: \"{S3140}\"\n"
        )
        with SinkProcess(personalities, directory / "sink.log") as sink:
            begin = time.perf_counter()
            asyncio.run(deliver(burned_fleet(directory, sink.addresses["outlook"][1]), messages))
            spent = time.perf_counter() - begin
            log = sink.log()
            refused = sorted(row.at_ns for row in log.refusals if row.client == BURNED)
            others = sorted(row.at_ns for row in log.acceptances if row.client != BURNED)
            if len(log.recipients()) != messages:
                raise AssertionError(f"{len(log.recipients())} of {messages} recipients were reached")
    after_first = [at for at in others if at > refused[0]]
    figures = {
        "out_of_rotation_ms": (refused[-1] - refused[0]) / 1e6,
        "refused_messages": float(len(refused)),
        "next_delivery_ms": (after_first[0] - refused[0]) / 1e6,
    }
    return Measurement(messages, spent, None, figures)


async def deliver(config: FleetConfig, count: int) -> None:
    """Submit everything at once and wait until it is delivered."""
    region, spool, node = await start_region(config)
    for first in range(0, count, 500):
        batch = [
            Message("a@example.com", (f"user{n}@outlook.test",), BODY % n, Stream.MARKETING)
            for n in range(first, min(count, first + 500))
        ]
        receipt = decode_receipt(await region.accept(*encode_submission(batch, first.to_bytes(16, "big"))))
        if receipt.errors:
            raise AssertionError(str(receipt.errors[0]))
    await until(lambda: spool.counts()["delivered"] == count, 120.0)
    await node.stop()
    await region.stop()
    spool.close()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=3_000)
    parser.add_argument(
        "--after", type=int, default=500, help="Messages that the sink takes from the source."
    )
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    results = compare({"burned": lambda: run(options.messages, options.after)}, repeats=options.repeats)
    print_results("a source that a provider blocks", results)
    for measurement in results["burned"]:
        print({key: round(value, 2) for key, value in measurement.figures.items()})
    settings = {"messages": options.messages, "after": options.after}
    write_result("burned_source", results, settings=settings, is_durable=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

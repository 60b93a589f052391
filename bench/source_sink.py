"""The ceiling: smtp-source straight into smtp-sink, no engine between, nothing durable.

    python -m bench.source_sink [--messages 40000] [--sessions 20] [--repeats 3]

Both are C; what this machine shows here is what SMTP over loopback costs without pipelining.
"""

import argparse
import time

from bench.harness import (
    Measurement,
    Meter,
    Miscounted,
    await_count,
    by_pid,
    compare,
    print_results,
    write_result,
)
from bench.smtp_sink import SmtpSink
from bench.smtp_source import end_source, start_source

SIZES = (2048, 10240)
TIMEOUT_S = 120.0


def run(sink: SmtpSink, *, messages: int, size: int, sessions: int) -> Measurement:
    """One run; CPU is that of the load and the sink together."""
    sink.mark()
    begin = time.monotonic()
    source = start_source(sink.port, messages=messages, size=size, sessions=sessions)
    with Meter(by_pid(source.pid, sink.pid)) as meter:
        end_source(source, timeout_s=TIMEOUT_S)
        end = await_count(sink.messages, messages, timeout_s=TIMEOUT_S)
    return Measurement(messages, end - begin, meter.usage)


def verify(*, messages: int, size: int, sessions: int) -> None:
    """An untimed run with the messages kept: as many different ones as were sent, or Miscounted."""
    with SmtpSink(dump=True) as sink:
        source = start_source(sink.port, messages=messages, size=size, sessions=sessions)
        end_source(source, timeout_s=TIMEOUT_S)
        await_count(sink.messages, messages, timeout_s=TIMEOUT_S)
        unique = sink.unique()
    if len(unique) != messages or unique.total() != messages:
        raise Miscounted(messages, unique.total(), len(unique))


def main() -> None:
    parser = argparse.ArgumentParser(description="smtp-source into smtp-sink")
    parser.add_argument("--messages", type=int, default=40_000)
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    verify(messages=2000, size=2048, sessions=options.sessions)
    with SmtpSink() as sink:
        runs = {
            f"source-sink {size} B": lambda size=size: run(
                sink, messages=options.messages, size=size, sessions=options.sessions
            )
            for size in SIZES
        }
        results = compare(runs, repeats=options.repeats)
    print_results("smtp-source straight into smtp-sink", results)
    write_result("source_sink", results, settings=vars(options), is_durable=False)


if __name__ == "__main__":
    main()

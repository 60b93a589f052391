"""`python -m engine.sink [--config FILE] [--log FILE] [--only NAME[=PORT]]...`: the sink for programs.

Prints one JSON line with the address of each personality once all of them listen. For people: `sendfleet
sink`.
"""

import argparse
import json
import sys
from pathlib import Path

from engine.sink.personality import PersonalityError
from engine.sink.server import Addresses, run


def _announce(addresses: Addresses) -> None:
    print(json.dumps(addresses), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="engine.sink", description="Loopback SMTP sink")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--only", action="append", default=[])
    options = parser.parse_args()
    ports = {name: int(port or 0) for name, _, port in (text.partition("=") for text in options.only)}
    try:
        run(options.config, log_path=options.log, only=ports, ports=ports, ready=_announce)
    except (PersonalityError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

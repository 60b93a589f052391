"""`sendfleet events`: the events logs of the regions on this machine, as they were written: JSON lines.

The logs are shipped at least once: after a crash some lines stand there twice, with the same `seq`.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import orjson
from rich.text import Text

from engine.cli.terminal import fleet_option, notes, read_fleet
from engine.values.ids import format_id, parse_id

POLL_S = 0.2
PATTERN = "*/events-*.jsonl"
FILTERS = ("event", "campaign", "recipient", "tenant", "id")


@click.command("events")
@fleet_option
@click.option("--follow", "-f", is_flag=True, help="Go on with new events until interrupted.")
@click.option("--event", help="Only this kind: delivered, deferred, bounced, expired, ...")
@click.option("--campaign", help="Only events of this campaign.")
@click.option("--recipient", help="Only events of this recipient.")
@click.option("--tenant", help="Only events of this tenant.")
@click.option("--id", "id", help="Only events of this message: 16 hex digits.")
def events_command(fleet_path: Path, follow: bool, **filters: str | None) -> None:
    """Print the events of the fleet on this machine, oldest first per region."""
    directory = Path(read_fleet(fleet_path).events.directory)
    wanted = {name: value for name, value in filters.items() if value is not None}
    if "id" in wanted:
        try:
            wanted["id"] = format_id(parse_id(wanted["id"]))
        except ValueError as error:
            raise click.UsageError(f"--id: {error}") from None
    stream = sys.stdout.buffer
    is_found = False
    for line in read_events(directory, follow=follow):
        if not wanted or _fits(line, wanted):
            is_found = True
            stream.write(line)
            if follow:
                stream.flush()
    if not is_found:
        what = ", ".join(f"--{name} {value}" for name, value in wanted.items())
        notes().print(Text(f"no events in {directory}" + (f" with {what}" if what else ""), style="yellow"))


def read_events(
    directory: Path, *, follow: bool = False, poll_s: float = POLL_S, pattern: str = PATTERN
) -> Iterator[bytes]:
    """Whole lines of every log below a directory; a line that is still being written waits for its end."""
    offsets: dict[Path, int] = {}
    while True:
        for path in sorted(directory.glob(pattern)):
            with path.open("rb") as file:
                file.seek(offsets.get(path, 0))
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    offsets[path] = offsets.get(path, 0) + len(line)
                    yield line
        if not follow:
            return
        time.sleep(poll_s)


def _fits(line: bytes, wanted: dict[str, str]) -> bool:
    try:
        event = orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return all(str(event.get(name)) == value for name, value in wanted.items())
